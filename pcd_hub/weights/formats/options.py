"""Options of the exports as graphs, checked before anything is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pcd_hub.errors import WeightError, nearest
from pcd_hub.files.strict_json import printable

MIN_OPSET = 18
MAX_OPSET = 23
PRECISIONS = ("float32", "float16", "int8")
NUM_COMPARED_IMAGES = 16
"""Calibration images that are set aside, to compare the features of int8 with timm's."""
MIN_CALIBRATION_IMAGES = 16
NUM_CALIBRATION_IMAGES = 128
MIN_MAX_SIZE, MAX_SIZE, MAX_MAX_SIZE = 128, 512, 4096


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Options that belong to graphs; None where the user gave none."""

    pooled: bool = False
    """One pooled embedding instead of the feature maps."""
    opset: int | None = None
    """ONNX: the opset; default: 18."""
    precision: str | None = None
    """ONNX: ``float32``, ``float16`` or ``int8``; default: ``float32``."""
    calibration: str | Path | None = None
    """ONNX, int8: images from which the ranges of the values are measured."""
    num_calibration_images: int | None = None
    """ONNX, int8: how many of them are used at most; default: 128."""
    max_size: int | None = None
    """ExecuTorch: largest height and width in pixels; default: 512."""

    @property
    def effective_precision(self) -> str:
        """The precision that the options ask for."""
        return self.precision or "float32"


class _Option(NamedTuple):
    flag: str
    targets: tuple[str, ...]


_OPTIONS = {
    "pooled": _Option("--pooled", ("onnx", "torchscript", "executorch")),
    "opset": _Option("--opset", ("onnx",)),
    "precision": _Option("--precision", ("onnx",)),
    "calibration": _Option("--calibration", ("onnx",)),
    "num_calibration_images": _Option("--calibration-images", ("onnx",)),
    "max_size": _Option("--max-size", ("executorch",)),
}


def check_options(to: str, options: GraphOptions) -> None:
    """Check that the options belong to the format and fit each other.

    Raises:
        WeightError: If they do not.
    """
    for name, (flag, targets) in _OPTIONS.items():
        if getattr(options, name) not in {None, False} and to not in targets:
            raise WeightError(f"{flag} belongs to {_listed(targets)}, not to {to}; leave it out")
    _check_range("--opset", options.opset, MIN_OPSET, MAX_OPSET, ", which torch writes")
    _check_range("--max-size", options.max_size, MIN_MAX_SIZE, MAX_MAX_SIZE, " pixels")
    _check_precision(options)


def _check_range(flag: str, value: int | None, least: int, most: int, what: str) -> None:
    if value is not None and not least <= value <= most:
        raise WeightError(f"{flag} {value}: expected {least} to {most}{what}")


def _check_precision(options: GraphOptions) -> None:
    if options.precision not in {None, *PRECISIONS}:
        raise WeightError(
            f"--precision {printable(str(options.precision))[:60]}: expected one of "
            f"{', '.join(PRECISIONS)}{nearest(str(options.precision), PRECISIONS)}"
        )
    if options.effective_precision == "int8":
        _check_calibration(options)
        return
    for flag in ("calibration", "num_calibration_images"):
        if getattr(options, flag) is not None:
            raise WeightError(
                f"{_OPTIONS[flag].flag} belongs to --precision int8, not to "
                f"{options.effective_precision}; leave it out"
            )


def _check_calibration(options: GraphOptions) -> None:
    if options.calibration is None:
        needed = MIN_CALIBRATION_IMAGES + NUM_COMPARED_IMAGES
        raise WeightError(
            f"--precision int8: no images; expected --calibration FOLDER, {needed} or more images "
            "like those that the model will see"
        )
    number = options.num_calibration_images
    if number is not None and number < MIN_CALIBRATION_IMAGES:
        raise WeightError(
            f"--calibration-images {number}: expected an integer >= {MIN_CALIBRATION_IMAGES}"
        )


def _listed(targets: tuple[str, ...]) -> str:
    *others, last = targets
    return f"{', '.join(others)} and {last}" if others else last
