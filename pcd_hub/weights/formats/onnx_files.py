"""Write ONNX in float32, float16 or int8."""

import copy
import importlib.util
import json
import warnings
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from pcd_hub.errors import WeightError, first_line, pip_install
from pcd_hub.weights.formats.calibration import Calibration, read_calibration
from pcd_hub.weights.formats.graphs import (
    TOLERANCE,
    Difference,
    Graph,
    check_close,
    describe_outputs,
    graph_of,
    measure,
)
from pcd_hub.weights.formats.options import MIN_OPSET, GraphOptions
from pcd_hub.weights.formats.readme import Usage
from pcd_hub.weights.load import ReadWeight

METADATA = "pcd_hub."
"""Prefix of the entries that an export adds to the metadata of an ONNX file."""
FLOAT16_TOLERANCE = 2e-2
INT8_LIMIT = 0.5
"""Root mean square difference, as a share of the values', above which int8 is of no use."""

_TYPES = {
    "float32": "float32",
    "float16": "float16 weights, float32 input and output",
    "int8": "int8 weights per channel and uint8 activations (QDQ), float32 input and output",
}


class _Network(nn.Module):
    """A model with float32 input and output, whatever the type of its weights."""

    def __init__(self, model: nn.Module, *, half: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half() if half else model
        self.half_weights = half

    def forward(self, images: Tensor) -> Any:
        if not self.half_weights:
            return self.model(images)
        result = self.model(images.half())
        return [one.float() for one in result] if isinstance(result, list) else result.float()


def write_onnx(weight: ReadWeight, folder: Path, place: PurePath, options: GraphOptions) -> Usage:
    """Write an ONNX file with dynamic batch, height and width.

    Raises:
        WeightError: If a package is missing, torch cannot write the graph, or onnxruntime, if
            installed, computes other values.
        DataError: If calibration images are too few or cannot be read.
    """
    precision, opset = options.effective_precision, options.opset or MIN_OPSET
    _check_packages(precision)
    calibration = None
    if precision == "int8":
        assert options.calibration is not None  # check_options
        calibration = read_calibration(
            weight, options.calibration, num_images=options.num_calibration_images
        )
    graph = graph_of(weight, pooled=options.pooled)
    file = folder / f"{weight.record.name}.onnx"
    _write(weight, graph, file, opset=opset, half=precision == "float16")
    if calibration:
        from pcd_hub.weights.formats.int8 import quantise  # noqa: PLC0415 - needs onnxruntime

        quantise(file, calibration)
    _add_metadata(weight, file, precision)
    return Usage(
        file=file.name,
        code=f"""import onnxruntime
session = onnxruntime.InferenceSession("{place / file.name}")
{", ".join(graph.names)}, = session.run(None, {{"images": images}})  # float32, (B, C, H, W)""",
        notes=(*_notes(opset, calibration), describe_outputs(graph)),
        precision=_TYPES[precision],
        difference=_compared(graph, file, precision, calibration),
    )


def _check_packages(precision: str) -> None:
    runtime = ("onnxruntime",) if precision == "int8" else ()
    for package in ("onnx", "onnxscript", *runtime):
        if importlib.util.find_spec(package) is None:
            raise WeightError(
                f"--to onnx needs {package}, which is missing; {pip_install('integrations')}"
            )


def _write(weight: ReadWeight, graph: Graph, file: Path, *, opset: int, half: bool) -> None:
    axes = (0,) if graph.fixed_size else (0, 2, 3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Network(graph.network, half=half).eval(),
                (graph.images,),
                file,
                input_names=["images"],
                output_names=graph.names,
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise WeightError(
            f"--to onnx: torch {torch.__version__} cannot write {weight.record.architecture}: "
            f"{type(error).__name__} {first_line(error)[:200]}"
        ) from error


def _add_metadata(weight: ReadWeight, file: Path, precision: str) -> None:
    """Store what a reader needs beside the graph: the normalisation, and where it comes from."""
    import onnx  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional

    cfg = weight.config["pretrained_cfg"]
    facts = {
        "name": weight.record.name,
        "precision": precision,
        "mean": json.dumps(cfg["mean"]),
        "std": json.dumps(cfg["std"]),
        "source_sha256": weight.weights_sha256,
    }
    model = onnx.load(file)
    for key, value in facts.items():
        model.metadata_props.add(key=METADATA + key, value=value)
    onnx.save(model, file)


def _notes(opset: int, calibration: Calibration | None) -> tuple[str, ...]:
    if calibration is None:
        return (f"Opset {opset}.",)
    height, width = calibration.images.shape[-2:]
    ranges = (
        f"Quantised statically by onnxruntime, ranges (minimum and maximum) from "
        f"{len(calibration.images)} calibration images of {height} x {width} px; compared with "
        f"timm's features on {len(calibration.compared)} others."
    )
    return (f"Opset {opset}. {ranges}",)


def _compared(graph: Graph, file: Path, precision: str, calibration: Calibration | None) -> str:
    """Compare the features with timm's and describe the difference."""
    try:
        import onnxruntime  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional
    except ModuleNotFoundError:
        return "not measured, as onnxruntime is missing"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(one) for one in session.run(None, {"images": images.numpy()})]

    batches = graph.other_images()
    if calibration:
        batches = list(calibration.normalised(calibration.compared).split(4))
    difference = measure(run, graph.network, batches)
    if calibration:
        _check_useful(difference)
    else:
        tolerance = FLOAT16_TOLERANCE if precision == "float16" else TOLERANCE
        check_close(difference, "ONNX", tolerance)
    return f"{difference} (onnxruntime {onnxruntime.__version__}, CPU)"


def _check_useful(difference: Difference) -> None:
    if not difference.rms <= INT8_LIMIT:
        raise WeightError(
            f"--precision int8: the features differ from timm's by {difference.rms:.0%} (root mean "
            f"square), expected at most {INT8_LIMIT:.0%}; use other calibration images, or float16"
        )
