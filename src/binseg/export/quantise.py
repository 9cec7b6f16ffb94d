"""8-bit whole numbers inside a network, calibrated on real images."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from binseg.export.core import require

__all__ = ["quantise"]


def quantise(
    model: bytes, samples: Sequence[np.ndarray], *, name: str, kept: Sequence[str] = ()
) -> bytes:
    """Quantise an ONNX model: weights by channel, activations by their range on the samples.

    Scales are symmetric (the form that OpenVINO and ONNX Runtime compute fastest), and the graph
    keeps floats at its ends (QDQ).

    Args:
        model: float32 ONNX.
        samples: inputs as the model takes them, from validation images.
        name: of the model's input.
        kept: names of nodes that stay in floats.

    Raises:
        MissingExtraError: onnx or onnxruntime isn't installed.
    """
    require("onnx")
    require("onnxruntime")
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives the samples one by one."""

        def __init__(self) -> None:
            self._left: Iterator[Mapping[str, np.ndarray]] = iter(
                {name: sample} for sample in samples
            )

        def get_next(self) -> Any:
            return next(self._left, None)

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises a step that its own function does
    try:
        with tempfile.TemporaryDirectory() as scratch:
            before, after = Path(scratch) / "float.onnx", Path(scratch) / "int8.onnx"
            before.write_bytes(model)
            prepared = Path(scratch) / "prepared.onnx"
            quantization.quant_pre_process(str(before), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(after),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv", "ConvTranspose"],
                nodes_to_exclude=list(kept),
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            return after.read_bytes()
    finally:
        logging.getLogger().setLevel(level)
