"""Prune, export to ONNX, quantise to int8 with onnxruntime: static, calibrated on real images.

Needs: pip install 'cswap[demo,export]'
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import cswap
from cswap.artifacts.export import export
from cswap.demo import digits, digits_resnet, train


class Images(CalibrationDataReader):
    """The calibration images, in batches."""

    def __init__(self, images: torch.Tensor) -> None:
        self.batches = iter(images.split(32))

    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch.numpy()}


def accuracy(file: Path, data) -> float:
    """Fraction that is right, by onnxruntime."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["output"], {"input": data.tensors[0].numpy()})
    return float((torch.from_numpy(logits).argmax(1) == data.tensors[1]).float().mean())


def main() -> tuple[float, float]:
    """Accuracy of the pruned network in float32 and in int8."""
    data, held_out = digits()
    model = train(digits_resnet(8), data, epochs=8)
    calibration = cswap.calibration_set(data, per_class=24)
    path = cswap.prune_path(model, calibration, target="params=0.2")
    small = path.apply(model, "params=0.2")
    with tempfile.TemporaryDirectory() as scratch:
        plain, ready, int8 = (Path(scratch) / n for n in ("float32.onnx", "ready.onnx", "int8.onnx"))
        export(small, plain, held_out.tensors[0][:64], format="onnx")
        quant_pre_process(str(plain), str(ready))
        quantize_static(
            str(ready), str(int8), Images(calibration.inputs(0, len(calibration))), quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
        before, after = accuracy(plain, held_out), accuracy(int8, held_out)
        print(
            f"float32 {before:.3f} ({plain.stat().st_size:,} bytes), int8 {after:.3f} ({int8.stat().st_size:,} bytes)"
        )
    return before, after


if __name__ == "__main__":
    main()
