"""Write graphs: ONNX and TorchScript."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcd_hub.errors import WeightError, first_line
from pcd_hub.weights.create import build_model
from pcd_hub.weights.formats.readme import Usage
from pcd_hub.weights.load import ReadWeight

OPSET = 18
MAX_OPSET = 23


class _Network(nn.Module):
    """A model with float32 input and output, whatever the type of its weights."""

    def __init__(self, model: nn.Module, *, half: bool = False) -> None:
        super().__init__()
        self.model = model.half() if half else model
        self.half_weights = half

    def forward(self, images: Tensor) -> Any:
        if not self.half_weights:
            return self.model(images)
        result = self.model(images.half())
        return [one.float() for one in result] if isinstance(result, list) else result.float()


def write_onnx(
    weight: ReadWeight, folder: Path, place: Path, *, pooled: bool, opset: int, half: bool
) -> Usage:
    """Write an ONNX file with dynamic batch, height and width.

    Raises:
        WeightError: If onnx or onnxscript is missing, torch cannot write the graph, or onnxruntime,
            if installed, computes other values.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise WeightError(
                f'--to onnx needs {package}, which is missing; pip install "pcd_hub[integrations]"'
            )
    network, images, names = _network(weight, pooled=pooled, half=half)
    fixed = bool(weight.config["pretrained_cfg"].get("fixed_input_size"))
    file = f"{weight.record.name}.onnx"
    axes = (0,) if fixed else (0, 2, 3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (images,),
                folder / file,
                input_names=["images"],
                output_names=names,
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
    checked = _check_onnx(network, folder / file, images, half=half, fixed=fixed)
    dtype = "float16 weights, float32 input and output" if half else "float32"
    return Usage(
        file=file,
        code=f"""import onnxruntime
session = onnxruntime.InferenceSession("{place / file}")
{", ".join(names)}, = session.run(None, {{"images": images}})  # float32, (B, C, H, W)""",
        notes=(f"Opset {opset}; {dtype}; {checked}.", _shapes(network, images, names)),
    )


def write_torchscript(weight: ReadWeight, folder: Path, place: Path, *, pooled: bool) -> Usage:
    """Write a traced graph, which needs torch alone.

    Raises:
        WeightError: If the traced graph computes other values at another size.
    """
    network, images, names = _network(weight, pooled=pooled)
    fixed = bool(weight.config["pretrained_cfg"].get("fixed_input_size"))
    file = f"{weight.record.name}.torchscript.pt"
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(network, images, check_trace=False, strict=False)
        for other in _other_images(images, fixed=fixed):
            _compare(_listed(traced(other)), _listed(network(other)), "TorchScript", 1e-4)
        torch.jit.save(traced, folder / file)
    return Usage(
        file=file,
        code=f"""import torch
network = torch.jit.load("{place / file}")
{", ".join(names)} = network(images)  # float32, (B, C, H, W)""",
        notes=(_shapes(network, images, names),),
    )


def _network(
    weight: ReadWeight, *, pooled: bool, half: bool = False
) -> tuple[nn.Module, Tensor, list[str]]:
    """Return the network, images for it, and the names of its outputs."""
    model = build_model(weight, **({} if pooled else {"features_only": True})).eval()
    channels, *size = weight.config["pretrained_cfg"]["input_size"]
    if not weight.config["pretrained_cfg"].get("fixed_input_size"):
        size = [64, 96]
    images = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        count = len(_listed(model(images)))
    names = ["embedding"] if pooled else [f"features{number}" for number in range(count)]
    return _Network(model, half=half).eval(), images, names


def _listed(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _other_images(images: Tensor, *, fixed: bool) -> list[Tensor]:
    """Return images of the traced size and, if the network takes it, of another one."""
    return [images] if fixed else [images, images.repeat(2, 1, 2, 1)[:3]]


@torch.inference_mode()
def _check_onnx(network: nn.Module, file: Path, images: Tensor, *, half: bool, fixed: bool) -> str:
    try:
        import onnxruntime  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional
    except ModuleNotFoundError:
        return "not compared with timm's features, as onnxruntime is missing"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    tolerance = 2e-2 if half else 1e-4
    for other in _other_images(images, fixed=fixed):
        found = [torch.from_numpy(one) for one in session.run(None, {"images": other.numpy()})]
        _compare(found, _listed(network(other)), "ONNX", tolerance)
    return f"agrees with timm's features to {tolerance:g} of the largest value (onnxruntime)"


def _compare(found: list[Tensor], expected: list[Tensor], what: str, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        if (one - other).abs().max() > tolerance * other.abs().max():
            raise WeightError(
                f"the {what} graph computes other values than the model; please report this"
            )


@torch.inference_mode()
def _shapes(network: nn.Module, images: Tensor, names: list[str]) -> str:
    """Describe the outputs: channels, and the stride of feature maps."""
    facts = []
    for name, output in zip(names, _listed(network(images)), strict=True):
        stride = f", stride {images.shape[-1] // output.shape[-1]}" if output.ndim == 4 else ""
        facts.append(f"`{name}` {output.shape[1]} channels{stride}")
    return f"Outputs: {'; '.join(facts)}."
