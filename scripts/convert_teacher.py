"""Convert a self-supervised checkpoint to a folder that ``--teacher.source local-dir:OUT`` loads.

    python scripts/convert_teacher.py mocov3_r50 r-50-1000ep.pth.tar teachers/mocov3_r50 \
        --license cc-by-nc-4.0

OUT contains ``teacher.safetensors`` and ``teacher.json`` with the layout, the head, the SHA-256 of
the source file and the given licence. Only this script opens the pickle, and reads nothing but
tensors from it. ``--help`` lists the layouts.
"""

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pcd_hub.errors import PCDHubError, TeacherError
from pcd_hub.models.checkpoints import read_checkpoint
from pcd_hub.models.layouts import FAMILIES, LAYOUTS, layout_of
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.teachers import TeacherFacts


def main(arguments: list[str] | None = None) -> int:
    """Convert, or print a one-line error; return the exit status 0 or 2."""
    layouts = ", ".join((*LAYOUTS, *(f"{family}:ARCH" for family in FAMILIES)))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", help=f"one of {layouts}")
    parser.add_argument("file", type=Path, help="checkpoint saved by torch, or .safetensors")
    parser.add_argument("out", type=Path, help="new folder to write")
    parser.add_argument(
        "--license", default="not stated", help="licence of the weights, as stated by their source"
    )
    options = parser.parse_args(arguments)
    try:
        facts = convert(options.layout, options.file, options.out, license=options.license)
    except (PCDHubError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{facts.architecture}, head {facts.head}, license {facts.license}")
    print(f"--teacher.source local-dir:{options.out}")
    return 0


def convert(layout: str, file: Path, out: Path, *, license: str) -> TeacherFacts:  # noqa: A002
    """Convert the teacher in ``file`` to the new folder ``out``, completely or not at all.

    Raises:
        TeacherError: If ``out`` exists, or the file is not a complete teacher of ``layout``.
    """
    if out.exists():
        raise TeacherError(f"{out} exists: expected a new folder; choose another, or remove it")
    name, _, architecture = layout.partition(":")
    layout_record = layout_of(name, architecture)
    checkpoint = read_checkpoint(file.expanduser(), layout_record)
    record = {
        "architecture": layout_record.architecture,
        "license": license,
        "layout": layout,
        "source_file": file.name,
        "source_sha256": checkpoint.sha256,
        "source_bytes": file.expanduser().stat().st_size,
        **({"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD} if name in LAYOUTS else {}),
        "versions": {package: version(package) for package in ("pcd_hub", "timm", "torch")},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / "teacher"
        save_teacher(folder, checkpoint.encoder, checkpoint.head, record)
        facts = load_teacher(f"local-dir:{folder}").facts  # checks architecture and head
        folder.replace(out)
    return facts


if __name__ == "__main__":
    sys.exit(main())
