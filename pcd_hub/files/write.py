"""Atomic writes: readers see either the old file or the complete new one."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write ``content`` to ``path`` atomically; text is encoded as UTF-8, newlines unchanged.

    Args:
        path: The file to create or replace.
        content: The new content.
        mode: Permissions, regardless of the umask; default: as the umask allows.

    Raises:
        OSError: If the write fails; ``path`` is then unchanged.
    """
    with atomic_file(path, mode=mode) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` after the block.

    The content is flushed to disk before the rename, and the folder after it. If the block raises,
    ``path`` is unchanged. Only a killed process leaves its ``.*.draft`` file behind.

    Args:
        path: The file to create or replace.
        mode: Permissions; see :func:`atomic_write`.
    """
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.draft")
    try:
        yield draft
        if mode is not None:
            draft.chmod(mode)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder for the block to fill; then rename it to the new ``folder``.

    The folder is readable by every user. If the block raises, nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
