"""The local store: finished weights by name, each a folder with the layout of its Hub repository.

::

    <PCD_HUB_HOME>/resnet18.pcd -> .versions/resnet18.pcd/<time>-<random>/
                                       model.safetensors  config.json  README.md  *.png
                                       pcd_manifest.json

A weight is written beside the others and appears under its name by one atomic rename of a link, so
that readers see the old one or the new one, whole; a crash at any moment leaves the old one. Its
manifest is written last and at once: a version that has one is whole. A plain folder under a name
works too (a bundle that was copied there). Every load checks size and sha256 against the manifest.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pcd_hub.errors import WeightError
from pcd_hub.weights.layout import MANIFEST_FILE, WEIGHTS_FILE
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import read_manifest, verify
from pcd_hub.weights.strict_json import shown
from pcd_hub.weights.writable import check_writable

_NAME = re.compile(r"[a-z0-9_]{1,100}\.pcd(_[a-z0-9_]{1,60})?")
_VERSIONS = ".versions"
_KEPT_VERSIONS = 3
_GRACE_SECONDS = 600


def home() -> Path:
    """The store's folder.

    ``PCD_HUB_HOME``; else ``pcd_hub`` in ``HF_HOME`` if that is set, or in the user's cache folder.

    Raises:
        WeightError: If it lies in a home folder that is not known.
    """
    if named := os.environ.get("PCD_HUB_HOME"):
        return expanded(named)
    cache = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return expanded(cache) / "pcd_hub"
    except WeightError as error:
        raise WeightError(
            f"the store lies in {cache}, and this user has no home folder; set PCD_HUB_HOME to a "
            "folder for it"
        ) from error


def expanded(path: str) -> Path:
    """``path`` with the home folder that a ``~`` stands for.

    Raises:
        WeightError: If nobody has that home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise WeightError(
            f"{shown(path)} begins with the home folder of an unknown user; write it out"
        ) from error


def enabled() -> bool:
    """False if ``PCD_HUB_LOCAL=0``: then no local weight is ever used."""
    return os.environ.get("PCD_HUB_LOCAL", "1") != "0"


def where(name: str) -> Path | None:
    """The folder of the local weight ``name`` (``resnet18.pcd``) as it stands now, or None.

    Raises:
        WeightError: If ``name`` is not ``ARCH.pcd`` or ``ARCH.pcd_WHAT``, or the store cannot be
            read.
    """
    check_name(name)
    if not enabled():
        return None
    with reading():
        folder = _led_to(home() / name)
        return folder if folder and (folder / WEIGHTS_FILE).is_file() else None


def names() -> list[str]:
    """The names of all local weights, whole or not.

    Raises:
        WeightError: If the store cannot be read.
    """
    if not enabled():
        return []
    with reading():
        if not home().is_dir():
            return []
        return sorted(path.name for path in home().iterdir() if is_name(path.name))


def add(name: str, export: Path) -> Path:
    """Copy the finished export folder into the store under ``name``.

    Returns the folder a reader will see. The weight that had the name before is kept as a version,
    of which the last three stay.

    Raises:
        WeightError: If the name is malformed, the export is damaged, a plain folder or another
            user's link in a sticky store holds the name, or the disk refuses it; then nothing has
            changed.
    """
    read_weight(export)
    link = _checked_link(name)
    versions = home() / _VERSIONS / name
    try:
        folder = _placed(export, versions, link)
    except OSError as error:
        stands = (
            f"the weight {name} stands as it was" if link.exists() else "nothing has that name yet"
        )
        raise WeightError(
            f"cannot save {export} as {link}: {error.strerror or error}; {stands}. Free some room, "
            "or set PCD_HUB_HOME to a folder on another disk, and add it again"
        ) from error
    _sweep(versions, current=folder)
    return folder


def check_can_add(name: str, *, num_bytes: int = 0) -> None:
    """Check that :func:`add` will be able to write, and leave nothing behind.

    Args:
        name: Of the weight.
        num_bytes: Its size.

    Raises:
        WeightError: If the name is malformed, or held by a plain folder or by a link that only
            another user may replace.
        ConfigError: If the store cannot be written, or has less room.
    """
    link = _checked_link(name)
    for folder in (link.parent, link.parent / _VERSIONS / name):
        check_writable(
            folder,
            what="the store",
            remedy="set PCD_HUB_HOME to another folder, or do without the store (--run.no-store)",
            num_bytes=num_bytes,
            with_links=True,
        )


def make_folder(folder: Path) -> None:
    """Make a folder inside the store, as open to others as the store itself is."""
    top = home()
    top.mkdir(parents=True, exist_ok=True)
    if folder == top or folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(stat.S_IMODE(top.stat().st_mode))


def is_name(name: str) -> bool:
    """Whether ``name`` may name a weight."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return ``name`` if it may name a weight.

    Raises:
        WeightError: If it is not ``ARCH.pcd`` or ``ARCH.pcd_WHAT``.
    """
    if not is_name(name):
        raise WeightError(
            f"{shown(name)} is no weight's name; use ARCH.pcd or ARCH.pcd_WHAT, "
            "as resnet18.pcd_mydata"
        )
    return name


@contextmanager
def reading() -> Iterator[None]:
    """Turn the system's refusal to read the store into one line.

    Raises:
        WeightError: For any OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        raise WeightError(
            f"the store {home()} cannot be read: {error.strerror or error}; "
            "set PCD_HUB_HOME to a folder of your own"
        ) from error


def _led_to(link: Path) -> Path | None:
    """Where a link, or a plain folder, leads; None if nothing is there."""
    try:
        return Path(os.path.realpath(link, strict=True))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WeightError(f"the link {link} leads to itself; remove it") from error
        raise


def _checked_link(name: str) -> Path:
    """The link that leads to a weight, if this user may make or replace it."""
    link = home() / check_name(name)
    with reading():
        if link.is_dir() and not link.is_symlink():
            raise WeightError(
                f"{link} is a plain folder, not made by the store; move it away to save {name} "
                "there"
            )
        if link.is_symlink() and not _may_replace(link):
            raise WeightError(
                f"{link} belongs to another user, and nobody else may replace it in a sticky "
                "folder (mode 1777); choose another name, or set PCD_HUB_HOME to another folder"
            )
    return link


def _may_replace(link: Path) -> bool:
    """Whether the sticky bit of its folder, if that has one, lets this user replace a link."""
    folder = link.parent.stat()
    sticky = folder.st_mode & stat.S_ISVTX
    return not sticky or os.geteuid() in {0, folder.st_uid, link.lstat().st_uid}


def _placed(export: Path, versions: Path, link: Path) -> Path:
    """A copy to which ``link`` leads; after an error none."""
    make_folder(versions)
    folder = _copied(export, versions)
    try:
        _touch(link)
        _point(link, folder)
    except OSError:  # nothing else: an interrupt may come when the link leads there already
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _copied(export: Path, versions: Path) -> Path:
    """A complete copy, on disk, under a name that nobody else uses; after an error none."""
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=versions))
    try:
        folder.chmod(0o755)
        for name in [*(entry["path"] for entry in read_manifest(export)["files"]), MANIFEST_FILE]:
            _copy_at_once(export / name, folder / name)
        verify(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _copy_at_once(source: Path, target: Path) -> None:
    """Copy a file, which gets its name when all of it is on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(".draft")
    shutil.copyfile(source, draft)
    draft.chmod(0o644)  # whatever the umask: who may enter the store may read it
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(target)


def _point(link: Path, folder: Path) -> None:
    """Make ``link`` lead to ``folder``, atomically."""
    temporary = link.with_name(f".{link.name}.{folder.name}")
    temporary.symlink_to(folder.relative_to(link.parent))
    try:
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _touch(link: Path) -> None:
    """Note when the present version was superseded, for the grace period of readers."""
    with suppress(OSError):  # no link yet, or another user's: readers then have less grace
        os.utime(link)


def _sweep(versions: Path, *, current: Path) -> None:
    """Remove versions beyond the last few, but none that a reader may just have been pointed to.

    Half copies, which a kill leaves, count for nothing, and go once nobody can be writing them.
    """
    others = [path for path in versions.iterdir() if path != current]
    whole = sorted((p for p in others if (p / MANIFEST_FILE).is_file()), key=_superseded)
    ends = {version: _superseded(version) for version in whole[:-_KEPT_VERSIONS]}
    ends |= {version: _last_written(version) for version in others if version not in whole}
    for old, end in ends.items():
        if time.time() - end > _GRACE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def _superseded(version: Path) -> float:
    """When it was last the present one; 0 if another writer has just removed it."""
    try:
        return version.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _last_written(version: Path) -> float:
    """When the copy last went on; 0 if another writer has just removed it."""
    last = _superseded(version)
    with suppress(OSError):
        for path in version.iterdir():
            last = max(last, path.stat().st_mtime)
    return last
