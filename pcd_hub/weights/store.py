"""The local store: finished weights by name, each in a folder laid out as a Hub repository.

::

    <PCD_HUB_HOME>/resnet18.pcd -> .versions/resnet18.pcd/<time>-<random>/
                                       model.safetensors  config.json  README.md  *.png
                                       pcd_manifest.json

Each name is a symbolic link to one version, which timm follows; on Windows, and on file systems
without links, it is a text file that contains the path (as git stores links there). It is replaced
by one atomic rename once the new version is complete: readers get either the old weight or the new
one, and killing the process at any time leaves the old one. The manifest is written last, so a
version that has one is complete. A name can also be an ordinary folder (a copied weight). Every
load verifies size and sha256 against the manifest.
"""

import errno
import functools
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pcd_hub.errors import WeightError, nearest
from pcd_hub.files.read import read_bounded
from pcd_hub.files.strict_json import shown
from pcd_hub.files.writable import check_writable
from pcd_hub.files.write import atomic_file, atomic_write
from pcd_hub.weights.layout import IMPORTED, MANIFEST_FILE, TAG, WEIGHTS_FILE
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.manifest import read_manifest, verify

_NAME = re.compile(rf"[a-z0-9_]{{1,100}}\.{TAG}")
_VERSIONS = ".versions"
_MAX_POINTER_BYTES = 1000
log = logging.getLogger("pcd_hub")

_KEPT_VERSIONS = 3
_GRACE_SECONDS = 600


def home() -> Path:
    """Return the store's folder.

    This is ``PCD_HUB_HOME`` if set; otherwise ``pcd_hub`` in ``HF_HOME`` if set, or in the user's
    cache folder.

    Raises:
        WeightError: If the user's home folder cannot be determined.
    """
    if named := os.environ.get("PCD_HUB_HOME"):
        return expanded(named)
    cache = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return expanded(cache) / "pcd_hub"
    except WeightError as error:
        raise WeightError(
            f"the store would be in {cache}, but this user has no home folder; set PCD_HUB_HOME"
        ) from error


def expanded(path: str) -> Path:
    """Return ``path`` with a leading ``~`` replaced by the home folder.

    Raises:
        WeightError: If the home folder cannot be determined.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise WeightError(
            f"{shown(path)} begins with the home folder of an unknown user; write it out"
        ) from error


def enabled() -> bool:
    """Return whether the local store is enabled.

    ``PCD_HUB_LOCAL=0`` turns it off, and so does a home folder that this user may not enter, as in
    a container: the shipped weights must load nevertheless.
    """
    return os.environ.get("PCD_HUB_LOCAL", "1") != "0" and not _is_closed()


def _is_closed() -> bool:
    if os.environ.get("PCD_HUB_HOME"):
        return False
    try:
        home().stat()
    except PermissionError:
        _warn_once(f"cannot enter {home().parent}, so no local weight is found; set PCD_HUB_HOME")
        return True
    except OSError:  # it does not exist yet
        return False
    return False


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def where(name: str) -> Path | None:
    """Return the folder of the current version of ``name`` (``resnet18.pcd``), or None.

    Raises:
        WeightError: If ``name`` is not a weight's name, or the store cannot be read.
    """
    check_name(name)
    if not enabled():
        return None
    with reading():
        folder = _resolved(folder_of(name))
        return folder if folder and (folder / WEIGHTS_FILE).is_file() else None


def folder_of(name: str) -> Path:
    """Return the folder of the current version of ``name``, which need not exist."""
    path = home() / name
    with suppress(OSError, ValueError):  # a link, a folder, missing, or another kind of file
        target = read_bounded(path, _MAX_POINTER_BYTES).decode()
        if re.fullmatch(rf"{re.escape(f'{_VERSIONS}/{name}')}/[\w-]+", target):
            return path.parent / target
    return path


def names() -> list[str]:
    """Return the names of all local weights, complete or not.

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
    """Copy a finished export folder into the store under ``name`` and return the new folder.

    The previous weight of that name remains as a version; the last three are kept.

    Raises:
        WeightError: If the name is malformed or of another architecture, says ``pcd`` of an
            imported weight or the other way round, or is taken by an ordinary folder or by another
            user's weight in a sticky store, if the export is damaged, or if writing fails. The
            store is then unchanged.
    """
    record = read_weight(export).record
    path = _checked_path(name)
    tag, trained = (IMPORTED, "another library") if record.imported else ("pcd", "pcd_hub")
    architecture, _, given_tag = name.partition(".")
    if architecture != record.architecture:
        own = f"{record.architecture}.{tag}"
        raise WeightError(f"{name} names another architecture; expected {own} or {own}_WHAT")
    if given_tag.startswith(IMPORTED) != bool(record.imported):
        raise WeightError(f"{name}: expected the tag {tag} or {tag}_WHAT, as {trained} trained it")
    versions = home() / _VERSIONS / name
    try:
        make_folder(versions)
        folder = _copied(export, versions)
        try:
            _touch(folder_of(name))
            _point(path, folder)
        except OSError:  # not BaseException: on an interrupt the name may already point to it
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        state = f"the weight {name} is unchanged" if path.exists() else "no weight has that name"
        raise WeightError(
            f"cannot save {export} as {path}: {error.strerror or error}; {state}. Free some space, "
            "or set PCD_HUB_HOME to a folder on another disk, and add it again"
        ) from error
    _sweep(versions, current=folder)
    return folder


def replace(name: str, export: Path) -> Path | None:
    """Add a weight as :func:`add` does; return the folder of the one it replaced, if any.

    An intact copy that the store already has stays as it is.
    """
    replaced = where(name)
    if replaced and _is_copy(replaced, export):
        return None
    add(name, export)
    return replaced


def _is_copy(stored: Path, export: Path) -> bool:
    try:
        if read_manifest(stored) != read_manifest(export):
            return False
        verify(stored)
        verify(export)
    except WeightError:  # damaged: to be replaced, or refused
        return False
    return True


def notice_of_kept(name: str, replaced: Path) -> str:
    """Return one line for a user whose weight was replaced."""
    return f"replaced {name} in the store; the previous weight is kept in {replaced}"


def check_can_add(name: str, *, num_bytes: int = 0) -> None:
    """Check that :func:`add` can write to the store, without leaving any files there.

    Args:
        name: The weight's name.
        num_bytes: The weight's size.

    Raises:
        WeightError: If the name is malformed, or taken by an ordinary folder or by a weight that
            only another user may replace.
        ConfigError: If the store is not writable, or has less than ``num_bytes`` free.
    """
    path = _checked_path(name)
    for folder in (path.parent, path.parent / _VERSIONS / name):
        check_writable(
            folder,
            what="the store",
            remedy="set PCD_HUB_HOME to another folder, or turn the store off (--run.no-store)",
            num_bytes=num_bytes,
        )


def make_folder(folder: Path) -> None:
    """Create a folder inside the store, with the permissions of the store itself."""
    top = home()
    top.mkdir(parents=True, exist_ok=True)
    if folder == top or folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(stat.S_IMODE(top.stat().st_mode))


def is_name(name: str) -> bool:
    """Return whether ``name`` is a valid weight name."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return ``name`` if it is a valid weight name.

    Raises:
        WeightError: If it is not ``ARCH.pcd[_WHAT]``, or ``ARCH.imported[_WHAT]`` of a weight that
            another library trained.
    """
    if not is_name(name):
        likely = [each for each in (f"{name.partition('.')[0]}.pcd",) if is_name(each)]
        raise WeightError(
            f"{shown(name)} is not a weight's name, expected ARCH.pcd or ARCH.pcd_WHAT, "
            f"as resnet18.pcd_mydata{nearest(name, likely, cutoff=0.85)}"
        )
    return name


@contextmanager
def reading() -> Iterator[None]:
    """Turn any OSError inside the block into a one-line WeightError.

    Raises:
        WeightError: For any OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        raise WeightError(
            f"cannot read the store {home()}: {error.strerror or error}; "
            "set PCD_HUB_HOME to a folder of your own"
        ) from error


def _resolved(path: Path) -> Path | None:
    try:
        return Path(os.path.realpath(path, strict=True))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WeightError(f"the link {path} leads to itself; remove it") from error
        raise


def _checked_path(name: str) -> Path:
    """Return the path of ``name``; raise if this user may not create or replace it."""
    path = home() / check_name(name)
    with reading():
        if path.is_dir() and not path.is_symlink():
            raise WeightError(
                f"{path} is a plain folder that the store did not create; move it away to save "
                f"{name} there"
            )
        if os.path.lexists(path) and not _may_replace(path):
            raise WeightError(
                f"{path} belongs to another user, and nobody else may replace it in a sticky "
                "folder (mode 1777); choose another name, or set PCD_HUB_HOME to another folder"
            )
    return path


def _may_replace(path: Path) -> bool:
    folder = path.parent.stat()
    sticky = folder.st_mode & stat.S_ISVTX
    return not sticky or os.geteuid() in {0, folder.st_uid, path.lstat().st_uid}


def _copied(export: Path, versions: Path) -> Path:
    """Copy the export, flushed to disk, into a new folder; remove the folder after an error."""
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=versions))
    try:
        folder.chmod(0o755)
        for name in [*(entry["path"] for entry in read_manifest(export)["files"]), MANIFEST_FILE]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # Readable by every user of the store, regardless of the umask.
            with atomic_file(folder / name, mode=0o644) as draft:
                shutil.copyfile(export / name, draft)
        verify(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _point(path: Path, folder: Path) -> None:
    """Make ``path`` point to ``folder`` by one atomic rename."""
    draft = path.with_name(f".{path.name}.{folder.name}")
    try:
        _write_pointer(draft, folder.relative_to(path.parent).as_posix())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _write_pointer(draft: Path, target: str) -> None:
    if os.name != "nt":  # Windows: links need a privilege, and links to folders cannot be replaced
        with suppress(PermissionError):  # a file system without links, such as FAT
            os.symlink(target, draft)  # noqa: PTH211 - the target is relative to the link
            return
    atomic_write(draft, target, mode=0o644)


def _touch(version: Path) -> None:
    """Record the time when the version was superseded, for the readers' grace period."""
    with suppress(OSError):  # no version yet, or another user's: readers then have less time
        os.utime(version)


def _sweep(versions: Path, *, current: Path) -> None:
    """Remove versions beyond the last few, after a grace period for readers.

    Incomplete copies, left by a killed process, do not count, and are removed once no process can
    still be writing them.
    """
    others = [path for path in versions.iterdir() if path != current]
    complete = sorted((p for p in others if (p / MANIFEST_FILE).is_file()), key=_superseded)
    ends = {version: _superseded(version) for version in complete[:-_KEPT_VERSIONS]}
    ends |= {version: _last_written(version) for version in others if version not in complete}
    for old, end in ends.items():
        if time.time() - end > _GRACE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def _superseded(version: Path) -> float:
    """Return the time when the version was superseded; 0 if another process just removed it."""
    try:
        return version.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _last_written(version: Path) -> float:
    """Return the time of the last write to the version; 0 if another process just removed it."""
    last = _superseded(version)
    with suppress(OSError):
        for path in version.iterdir():
            last = max(last, path.stat().st_mtime)
    return last
