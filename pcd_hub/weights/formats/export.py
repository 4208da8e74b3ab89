"""Write a weight in the format of another framework, with a README.md that says how to use it."""

from collections.abc import Callable
from pathlib import Path

import torch

from pcd_hub.errors import WeightError, nearest
from pcd_hub.files.strict_json import printable
from pcd_hub.files.write import atomic_folder
from pcd_hub.weights.create import read_named
from pcd_hub.weights.formats import folders, graphs, state_files
from pcd_hub.weights.formats.readme import Usage, render_readme
from pcd_hub.weights.load import ReadWeight
from pcd_hub.weights.store import expanded

FORMATS: dict[str, Callable[[ReadWeight, Path, Path], Usage]] = {
    "torchvision": state_files.write_torchvision,
    "detectron2": state_files.write_detectron2,
    "mmdet": state_files.write_mmdet,
    "transformers": folders.write_transformers,
    "timm": folders.write_timm,
}
"""Functions that write the tensors into a folder, given its final path for the examples."""

GRAPHS = ("onnx", "torchscript")
TARGETS = (*FORMATS, *GRAPHS)


def export(
    name: str,
    *,
    to: str,
    out: str | Path,
    pooled: bool = False,
    opset: int | None = None,
    half: bool = False,
) -> Path:
    """Write a verified weight in the format of another framework.

    Args:
        name: A name for :func:`pcd_hub.create_model`.
        to: One of ``torchvision``, ``detectron2``, ``mmdet``, ``transformers``, ``timm``,
            ``onnx`` and ``torchscript``.
        out: The folder to create; it gets the weight and a README.md.
        pooled: ``onnx`` and ``torchscript``: one pooled embedding instead of the feature maps.
        opset: ``onnx``: the opset; 18 by default.
        half: ``onnx``: weights in float16; input and output stay float32.

    Returns:
        The folder.

    Raises:
        WeightError: If the format is unknown or cannot hold the architecture, an option does not
            belong to it, a package is missing, or ``out`` exists.
        HubError: If the Hub refuses access or cannot be reached.
    """
    folder = expanded(str(out))
    _check(to, folder, pooled=pooled, opset=opset, half=half)
    weight = read_named(name)
    try:
        with atomic_folder(folder) as draft, torch.random.fork_rng(devices=[]):
            match to:
                case "onnx":
                    usage = graphs.write_onnx(
                        weight, draft, folder, pooled=pooled, opset=opset or graphs.OPSET, half=half
                    )
                case "torchscript":
                    usage = graphs.write_torchscript(weight, draft, folder, pooled=pooled)
                case _:
                    usage = FORMATS[to](weight, draft, folder)
            text = render_readme(weight, usage, to=to)
            (draft / "README.md").write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise WeightError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder"
        ) from error
    return folder


def _check(to: str, folder: Path, *, pooled: bool, opset: int | None, half: bool) -> None:
    if to not in TARGETS:
        raise WeightError(
            f"--to {printable(to)[:60]}: expected one of {', '.join(TARGETS)}{nearest(to, TARGETS)}"
        )
    if folder.exists():
        raise WeightError(f"{folder} exists already; export to a new folder")
    if pooled and to not in GRAPHS:
        raise WeightError(f"--pooled belongs to {' and '.join(GRAPHS)}, not to {to}; leave it out")
    if (opset is not None or half) and to != "onnx":
        raise WeightError(f"--opset and --half belong to onnx, not to {to}; leave them out")
    if opset is not None and not graphs.OPSET <= opset <= graphs.MAX_OPSET:
        raise WeightError(
            f"--opset {opset}: expected {graphs.OPSET} to {graphs.MAX_OPSET}, which torch writes"
        )
