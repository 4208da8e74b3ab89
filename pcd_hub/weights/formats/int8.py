"""Quantise an ONNX file to int8 by onnxruntime. Importing it needs onnxruntime."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports] - optional
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import (  # pyright: ignore[reportMissingImports]
    quant_pre_process,
)

from pcd_hub.errors import WeightError, first_line
from pcd_hub.weights.formats.calibration import Calibration


class _Reader(CalibrationDataReader):
    """The calibration images, one at a time."""

    def __init__(self, calibration: Calibration) -> None:
        self._batches = self._read(calibration)

    def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(self._batches, None)

    @staticmethod
    def _read(calibration: Calibration) -> Iterator[dict[str, Any]]:
        for image in calibration.images.split(1):
            yield {"images": calibration.normalised(image).numpy()}


def quantise(file: Path, calibration: Calibration) -> None:
    """Replace a float32 file by its int8 version: QDQ, weights per channel.

    Activations are uint8: with int8 weights they have fast kernels on x86 CPUs, which int8
    activations have not (onnxruntime's documentation of quantisation, "U8S8"), and on ARM CPUs.

    Raises:
        WeightError: If onnxruntime cannot quantise the graph.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(file, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                file,
                _Reader(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # onnx, onnxruntime and numpy raise many types
            raise WeightError(
                f"--precision int8: onnxruntime cannot quantise the graph "
                f"({type(error).__name__}: {first_line(error)[:200]}); use float16"
            ) from error
