"""Recovery by hand, in float64: rows collected one place at a time, one dense least-squares problem a layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def rows_by_hand(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """A layer's inputs as (rows, D) for each of its groups, by loops over samples and places."""
    x = x.double()
    if isinstance(layer, nn.Linear):
        return [x.reshape(-1, x.shape[-1])]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if isinstance(layer, nn.Conv3d):
        assert set(layer.padding) == {0}
        assert set(layer.dilation) == {1}
        (kt, kh, kw), (st, sh, sw) = layer.kernel_size, layer.stride
        places = [
            image[:, t : t + kt, i : i + kh, j : j + kw].flatten()
            for image in x
            for t in range(0, x.shape[2] - kt + 1, st)
            for i in range(0, x.shape[3] - kh + 1, sh)
            for j in range(0, x.shape[4] - kw + 1, sw)
        ]
        return list(torch.stack(places).chunk(layer.groups, 1))
    if isinstance(layer, nn.Conv1d):
        two = nn.Conv2d(
            layer.in_channels, layer.out_channels, (1, *layer.kernel_size), (1, *layer.stride), (0, *layer.padding),
            (1, *layer.dilation), layer.groups, padding_mode=layer.padding_mode,
        )  # fmt: skip
        return rows_by_hand(two, x.unsqueeze(2))
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = layer.kernel_size, layer.stride, layer.dilation, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, (pw, pw, ph, ph), mode=mode)
    rows = []
    for image in x:
        for i in range(0, image.shape[1] - dh * (kh - 1), sh):
            for j in range(0, image.shape[2] - dw * (kw - 1), sw):
                rows.append(image[:, i : i + dh * (kh - 1) + 1 : dh, j : j + dw * (kw - 1) + 1 : dw].flatten())
    whole = torch.stack(rows)
    return list(whole.chunk(layer.groups, 1))


def targets_by_hand(layer: nn.Module, y: torch.Tensor) -> list[torch.Tensor]:
    """What it should give, (rows, O) for each of its groups."""
    if isinstance(layer, nn.Linear):
        return [y.double().reshape(-1, y.shape[-1])]
    flat = y.double().movedim(1, -1).reshape(-1, y.shape[1])
    return list(flat.chunk(layer.groups, 1))


def ridge_by_hand(
    rows: torch.Tensor, targets: torch.Tensor, prior: torch.Tensor, strength: float, *, intercept: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """W (D, O) and c (O,) as ONE ordinary least-squares problem: the penalty as rows of its own, the constant as a column."""
    centred = rows - rows.mean(0) if intercept else rows
    scale = float(centred.square().sum(0).mean()) or 1.0
    penalty = (strength * scale) ** 0.5 * torch.eye(rows.shape[1], dtype=torch.float64)
    left = torch.cat([rows, penalty])
    right = torch.cat([targets, penalty @ prior])
    if intercept:
        ones = torch.cat([torch.ones(len(rows), 1), torch.zeros(len(penalty), 1)]).double()
        left = torch.cat([left, ones], 1)
    found = torch.linalg.lstsq(left, right, driver="gelsd").solution
    return (found[:-1], found[-1]) if intercept else (found, torch.zeros(targets.shape[1], dtype=torch.float64))


def lines_by_hand(
    fit: torch.Tensor, judge: torch.Tensor, kept: list[int], gone: list[int], matters: list[float], samples: int, strengths: tuple[float, ...],
    *, constant: bool = True,
) -> list[tuple[int, float]]:  # fmt: skip
    """For each unit that goes the kept one whose line tells it best, and the slope, one line and one sum of squares at a time.

    fit, judge: (rows, C) what the reader reads of samples that fit and of those that choose. A slope is (Σab)/(Σb² + ridge) about
    the means of `fit`; of the strengths that counts for which the squares explained on `judge`, weighed by `matters`, are most.
    """
    mean = fit.mean(0) if constant else torch.zeros(fit.shape[1], dtype=torch.float64)
    own, other = fit.double() - mean, judge.double() - mean
    usual = sum(float(own[:, k].square().mean()) for k in kept) / len(kept)

    def explained(rows: torch.Tensor, unit: int, k: int, s: float) -> float:
        left = rows[:, unit] - s * rows[:, k]
        return float(rows[:, unit].square().mean() - left.square().mean())

    best: tuple[float, list[tuple[int, float]]] = (0.0, [(kept[0], 0.0)] * len(gone))
    for strength in strengths:
        found, total = [], 0.0
        for unit, weight in zip(gone, matters, strict=True):
            slopes = {
                k: float((own[:, unit] * own[:, k]).mean() / (own[:, k].square().mean() + strength / samples * usual))
                for k in kept
            }
            k = max(kept, key=lambda k, unit=unit, slopes=slopes: explained(own, unit, k, slopes[k]))
            gain = explained(other, unit, k, slopes[k])
            total += weight * gain
            found.append((k, slopes[k] if gain > 0 else 0.0))
        if total > best[0]:
            best = (total, found)
    return best[1]
