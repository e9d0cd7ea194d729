"""Which tensor dimensions a layer's outputs and inputs live on, and how its attributes follow its shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from cswap.errors import ArtifactError

Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class LayerRule:
    """How one kind of layer is cut and shrunk.

    `out`/`inn`: (tensor name, dimension) pairs its outputs/inputs live on; a channel-by-channel layer has both the same.
    `mixes`: an output reads every input, so the layer is a consumer of its inputs and a producer of its outputs.
    `refit`: sets the integer attributes from the shapes of the tensors. `additive`: MACs go with the sum of its two sides,
    not with their product. `channel`: the dimension of its input on which units lie.
    """

    out: Axes
    inn: Axes
    mixes: bool
    refit: Callable[[Any], None]
    additive: bool = False
    channel: int = 1


def is_depthwise(module: nn.Module) -> bool:
    """A convolution with one filter a channel, which acts on channels one by one."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def is_grouped(module: nn.Module) -> bool:
    """A convolution with groups that is not depthwise: it acts on blocks of channels one by one."""
    return isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module)


def is_frozen_norm(module: nn.Module) -> bool:
    """A batch norm of buffers alone (torchvision, timm and transformers each have their own class of it)."""
    own = dict(module.named_buffers(recurse=False))
    return "FrozenBatchNorm" in type(module).__name__ and {"weight", "bias", "running_mean", "running_var"} == set(own)


def _refit_conv(conv: _ConvNd) -> None:
    conv.out_channels, conv.in_channels = conv.weight.shape[0], conv.weight.shape[1]


def _refit_transposed(conv: _ConvNd) -> None:
    conv.in_channels, conv.out_channels = conv.weight.shape[0], conv.weight.shape[1]


def _refit_depthwise(conv: _ConvNd) -> None:
    conv.groups = conv.in_channels = conv.out_channels = conv.weight.shape[0]


def _refit_grouped(conv: _ConvNd) -> None:
    inn, out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    groups, rest = divmod(conv.weight.shape[0], out)
    if rest:
        raise ArtifactError(f"a convolution of {conv.groups} groups cannot keep {conv.weight.shape[0]} channels")
    conv.groups, conv.in_channels, conv.out_channels = groups, inn * groups, out * groups


def _refit_linear(linear: nn.Linear) -> None:
    linear.out_features, linear.in_features = linear.weight.shape


def _refit_norm(norm: _BatchNorm) -> None:
    sized = next(t for t in (norm.weight, norm.bias, norm.running_mean) if t is not None)
    norm.num_features = sized.shape[0]


def _refit_embedding(table: nn.Embedding) -> None:
    table.embedding_dim = table.weight.shape[1]


def _refit_prelu(prelu: nn.PReLU) -> None:
    prelu.num_parameters = prelu.weight.shape[0]


_CONV = LayerRule((("weight", 0), ("bias", 0)), (("weight", 1),), True, _refit_conv)
_TRANSPOSED = LayerRule((("weight", 1), ("bias", 0)), (("weight", 0),), True, _refit_transposed)
_DEPTHWISE_AXES: Axes = (("weight", 0), ("bias", 0))
_DEPTHWISE = LayerRule(_DEPTHWISE_AXES, _DEPTHWISE_AXES, False, _refit_depthwise)
_GROUPED = LayerRule(_DEPTHWISE_AXES, _DEPTHWISE_AXES, False, _refit_grouped)
_LINEAR = LayerRule((("weight", 0), ("bias", 0)), (("weight", 1),), True, _refit_linear, channel=-1)
_NORM_AXES: Axes = (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))
_NORM = LayerRule(_NORM_AXES, _NORM_AXES, False, _refit_norm)
_FROZEN_NORM = LayerRule(_NORM_AXES, _NORM_AXES, False, lambda _module: None)
_EMBEDDING = LayerRule((("weight", 1),), (), True, _refit_embedding, channel=-1)
_PRELU = LayerRule((("weight", 0),), (("weight", 0),), False, _refit_prelu)
_PRELU_SHARED = LayerRule((), (), False, lambda _module: None)


def rule_of(module: nn.Module) -> LayerRule | None:
    """The rule of a layer, or None for one that cannot be shrunk. A layer of our own brings its rule as `layer_rule`."""
    own = getattr(type(module), "layer_rule", None)
    if isinstance(own, LayerRule):
        return own
    if is_grouped(module):
        return None if isinstance(module, _ConvTransposeNd) else _GROUPED
    if is_depthwise(module):
        return _DEPTHWISE
    if isinstance(module, _ConvTransposeNd):
        return _TRANSPOSED
    if isinstance(module, _ConvNd):
        return _CONV
    if isinstance(module, nn.Linear):
        return _LINEAR
    if isinstance(module, _BatchNorm | _InstanceNorm):
        sized = any(t is not None for t in (module.weight, module.bias, module.running_mean))
        return _NORM if sized else None
    if is_frozen_norm(module):
        return _FROZEN_NORM
    if type(module) is nn.Embedding:
        return _EMBEDDING if module.max_norm is None else None
    if isinstance(module, nn.PReLU):
        return _PRELU if module.num_parameters > 1 else _PRELU_SHARED
    return None


def channel_dim(module: nn.Module) -> int:
    """The dimension of a consumer's INPUT on which its units lie: last for linear layers, 1 for convolutions."""
    rule = rule_of(module)
    return 1 if rule is None else rule.channel
