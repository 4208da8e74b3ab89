"""A self-supervised checkpoint -> a folder that ``--teacher.source local-dir:OUT`` loads.

    python scripts/convert_teacher.py mocov3_r50 r-50-1000ep.pth.tar teachers/mocov3_r50 \
        --license cc-by-nc-4.0

OUT holds ``teacher.safetensors`` and ``teacher.json``, the record: layout, head, source file with
its sha256, licence as you give it. The pickle is opened once, here, as plain tensors, and never
again. ``--help`` names the layouts.
"""

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from pcd_hub.errors import PCDHubError, TeacherError
from pcd_hub.models.checkpoints import read_checkpoint
from pcd_hub.models.layouts import FAMILIES, LAYOUTS, layout_of
from pcd_hub.models.teacher_folder import save_teacher
from pcd_hub.models.teacher_loading import load_teacher
from pcd_hub.models.teachers import TeacherFacts


def main(arguments: list[str] | None = None) -> int:
    """Convert, or say in one line why not; exit code 0 or 2."""
    known = ", ".join((*LAYOUTS, *(f"{family}:ARCH" for family in FAMILIES)))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", help=known)
    parser.add_argument("file", type=Path, help="the checkpoint: what torch saved, or .safetensors")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument(
        "--license", default="not stated", help="of the weights, as their source states it"
    )
    given = parser.parse_args(arguments)
    try:
        facts = convert(given.layout, given.file, given.out, license=given.license)
    except (PCDHubError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{facts.architecture}, head {facts.head}, license {facts.license}")
    print(f"--teacher.source local-dir:{given.out}")
    return 0


def convert(layout: str, file: Path, out: Path, *, license: str) -> TeacherFacts:  # noqa: A002
    """Write the teacher in ``file`` to the new folder ``out``; whole, or not at all.

    Raises:
        TeacherError: If ``out`` is there already, or the file is no whole teacher of ``layout``.
    """
    if out.exists():
        raise TeacherError(f"{out} is there already; give a new folder, or remove it first")
    name, _, architecture = layout.partition(":")
    described = layout_of(name, architecture)
    checkpoint = read_checkpoint(file.expanduser(), described)
    record = {
        "architecture": described.architecture,
        "license": license,
        "layout": layout,
        "source_file": file.name,
        "source_sha256": checkpoint.sha256,
        "source_bytes": file.expanduser().stat().st_size,
        "versions": {package: version(package) for package in ("pcd_hub", "timm", "torch")},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / "teacher"
        save_teacher(folder, checkpoint.encoder, checkpoint.head, record)
        facts = load_teacher(f"local-dir:{folder}").facts  # fits its architecture, keeps THE LAW
        folder.replace(out)
    return facts


if __name__ == "__main__":
    sys.exit(main())
