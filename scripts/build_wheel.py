"""Build the wheel of a commit twice and compare: the same commit gives the same bytes.

    pip install build hatchling
    python scripts/build_wheel.py --output-dir dist

Both builds are of ``git archive``, in folders of their own, with files of other times and
permissions; ``SOURCE_DATE_EPOCH`` is the time of the commit. Prints the wheel's path and sha256.
Anyone who has the commit and the same version of hatchling gets the same sha256.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pcd_hub.errors import PCDHubError
from pcd_hub.weights.manifest import sha256

ROOT = Path(__file__).resolve().parents[1]


def build(commit: str, folder: Path, *, umask: int, root: Path = ROOT) -> Path:
    """Build the wheel of a commit of a git repository, in a new folder.

    Raises:
        PCDHubError: If git or the build fails.
    """
    source, wheels = folder / "source", folder / "wheels"
    folder.mkdir()
    before = os.umask(umask)
    try:
        _run(["git", "-C", str(root), "archive", "-o", str(folder / "source.tar"), commit])
        source.mkdir()
        tar = ["tar", "-xf", str(folder / "source.tar"), "-C", str(source)]
        _run([*tar, "--no-same-permissions"])  # those of the umask, also for root
        for path in source.rglob("*"):  # as if it was written now
            os.utime(path)
        time = _run(["git", "-C", str(root), "log", "-1", "--format=%ct", commit]).strip()
        words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source)]
        _run([sys.executable, *words], env={**os.environ, "SOURCE_DATE_EPOCH": time})
    finally:
        os.umask(before)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def build_twice(commit: str, output_dir: Path, *, root: Path = ROOT) -> tuple[Path, str]:
    """Build the wheel twice; return its path in ``output_dir`` and its sha256.

    Raises:
        PCDHubError: If a build fails, or the wheels differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        one = build(commit, Path(scratch) / "one", umask=0o022, root=root)
        two = build(commit, Path(scratch) / "two", umask=0o077, root=root)
        if (digest := sha256(one)) != (other := sha256(two)):
            raise PCDHubError(
                f"two builds of {commit} differ: {digest[:12]} and {other[:12]}; compare their "
                "files, as with diffoscope"
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(one, output_dir)), digest


def _run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)  # noqa: S603
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise PCDHubError(f"{' '.join(command[:4])} failed: {lines[-1]}")
    return done.stdout


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--commit", default="HEAD", help="what to build; default: HEAD")
    parser.add_argument("--output-dir", type=Path, default=Path("dist"), help="default: dist")
    options = parser.parse_args()
    try:
        wheel, digest = build_twice(options.commit, options.output_dir)
    except PCDHubError as error:
        sys.exit(f"build_wheel: {error}")
    print(f"{digest}  {wheel}")


if __name__ == "__main__":
    main()
