"""Write a weight in the format of another framework, with a README.md that says how to use it."""

from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath

import torch

from pcd_hub.errors import WeightError, nearest
from pcd_hub.files.quoted import in_quotes
from pcd_hub.files.strict_json import printable
from pcd_hub.files.write import atomic_folder
from pcd_hub.weights.create import read_named
from pcd_hub.weights.formats import executorch_files, folders, graphs, onnx_files, state_files
from pcd_hub.weights.formats.options import GraphOptions, check_options
from pcd_hub.weights.formats.readme import Usage, render_readme
from pcd_hub.weights.formats.ultralytics_files import write_ultralytics
from pcd_hub.weights.load import ReadWeight
from pcd_hub.weights.store import expanded

FORMATS: dict[str, Callable[[ReadWeight, Path, PurePath], Usage]] = {
    "torchvision": state_files.write_torchvision,
    "detectron2": state_files.write_detectron2,
    "mmdet": state_files.write_mmdet,
    "transformers": folders.write_transformers,
    "ultralytics": write_ultralytics,
    "timm": folders.write_timm,
}
"""Functions that write the tensors into a folder.

The path is that of the finished folder, as it is written within the quotes of the examples.
"""

GRAPHS: dict[str, Callable[[ReadWeight, Path, PurePath, GraphOptions], Usage]] = {
    "onnx": onnx_files.write_onnx,
    "torchscript": graphs.write_torchscript,
    "executorch": executorch_files.write_executorch,
}
"""The same, with options."""

TARGETS = (*FORMATS, *GRAPHS)


def export(
    name: str | Path,
    *,
    to: str,
    out: str | Path,
    pooled: bool = False,
    opset: int | None = None,
    precision: str | None = None,
    calibration: str | Path | None = None,
    num_calibration_images: int | None = None,
    max_size: int | None = None,
) -> Path:
    """Write a verified weight in the format of another framework.

    Args:
        name: A name for :func:`pcd_hub.create_model`.
        to: One of ``torchvision``, ``detectron2``, ``mmdet``, ``transformers``, ``ultralytics``,
            ``timm``, ``onnx``, ``torchscript`` and ``executorch``.
        out: The folder to create; it gets the weight and a README.md.
        pooled: The last three: one pooled embedding instead of the feature maps.
        opset: ``onnx``: the opset; 18 by default.
        precision: ``onnx``: ``float32`` (the default), ``float16`` or ``int8``; input and output
            stay float32.
        calibration: ``onnx`` in int8: a folder of images like those that the model will see.
        num_calibration_images: How many of them set the ranges, at most; 128 by default.
        max_size: ``executorch``: largest height and width in pixels; 512 by default.

    Returns:
        The folder.

    Raises:
        WeightError: If the format is unknown or cannot hold the architecture, an option does not
            belong to it, a package is missing, or ``out`` exists.
        DataError: If calibration images are too few or cannot be read.
        HubError: If the Hub refuses access or cannot be reached.
    """
    options = GraphOptions(
        pooled=pooled,
        opset=opset,
        precision=precision,
        calibration=calibration,
        num_calibration_images=num_calibration_images,
        max_size=max_size,
    )
    folder = expanded(str(out))
    _check(to, folder)
    check_options(to, options)
    weight = read_named(name)
    place = PurePosixPath(in_quotes(folder))
    try:
        with atomic_folder(folder) as draft, torch.random.fork_rng(devices=[]):
            if to in GRAPHS:
                usage = GRAPHS[to](weight, draft, place, options)
            else:
                usage = FORMATS[to](weight, draft, place)
            text = render_readme(weight, usage, to=to)
            (draft / "README.md").write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise WeightError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder"
        ) from error
    return folder


def _check(to: str, folder: Path) -> None:
    if to not in TARGETS:
        raise WeightError(
            f"--to {printable(to)[:60]}: expected one of {', '.join(TARGETS)}{nearest(to, TARGETS)}"
        )
    if folder.exists():
        raise WeightError(f"{folder} exists already; export to a new folder")
