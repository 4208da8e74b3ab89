"""What torch saved, looked through before torch opens it.

``weights_only=True`` runs no code. But a file of a few bytes can still make it fill the memory (an
archive that unpacks to terabytes), or return memory of this process that nobody has written (a
tensor whose values are not in the file); checkpoints of tensors need none of that.
"""

import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pcd_hub.files.read import read_bounded
from pcd_hub.models.unpickling import Storage, follow

MAX_FILE_BYTES = 16 * 1024**3
"""Of a teacher's weights."""
_LEGACY_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_END = struct.Struct("<4s4H2IH")  # of an archive (APPNOTE.TXT 4.3.16)
_LOCATOR_64 = struct.Struct("<4sIQI")  # 4.3.15
_END_64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14


def read_saved(file: Path) -> bytes:
    """The bytes of a file that torch saved, looked through.

    Raises:
        OSError: If it cannot be read, or is no regular file.
        ValueError: As :func:`check_saved`; or whatever else a damaged file leads to.
    """
    with file.open("rb") as opened:
        check_start(opened.read(14))  # before the whole of it is in memory
    content = read_bounded(file, MAX_FILE_BYTES)
    check_saved(content)
    return content


def check_start(start: bytes) -> None:
    """Check the first bytes of a file that torch is said to have saved.

    Raises:
        ValueError: If torch saved no such file.
    """
    if not start.startswith(b"PK\3\4") and start[2:14] != _LEGACY_START:
        raise ValueError(f"it begins with {start[:8]!r}, as nothing does that torch saves")


def check_saved(content: bytes) -> None:
    """Check what torch saved, as an archive or in its older form.

    Raises:
        ValueError: If it unpacks to more than it is, wants more than tensors in plain containers,
            or does not hold all of a tensor; or whatever else a damaged file leads to.
    """
    check_start(content)
    if content.startswith(b"PK"):
        _check_archive(content)
    else:
        _check_old_form(content)


def _check_archive(content: bytes) -> None:
    _check_end(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > len(content):
            raise ValueError(f"it unpacks to {size} bytes, and has {len(content)}")
        records = _by_name(entries)
        for name, entry in records.items():
            if name.endswith(".pkl"):
                pickle = follow(io.BytesIO(archive.read(entry)))
                _check_records(pickle.storages, records)


def _check_end(content: bytes) -> None:
    """Check that nothing lies between an archive's directory and its end.

    Else zipfile and torch may each find another directory.
    """
    place = len(content) - _END.size
    signature, *_, size, offset, comment = _END.unpack(content[place:])
    locator = content[place - _LOCATOR_64.size : place]
    if locator.startswith(b"PK\6\7"):
        place -= _LOCATOR_64.size + _END_64.size
        if _LOCATOR_64.unpack(locator)[2] != place or content[place : place + 4] != b"PK\6\6":
            raise ValueError("the end of the archive is damaged")
        *_, size, offset = _END_64.unpack_from(content, place)
    if signature != b"PK\5\6" or comment or offset + size != place:
        raise ValueError("the archive does not end with its directory")


def _by_name(entries: Iterable[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """An archive's files by their names below its one folder, as torch looks for them."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for entry in entries:
        folder, _, name = entry.orig_filename.casefold().partition("/")
        folders.add(folder)
        if name in found:
            raise ValueError("it holds a file twice")
        found[name] = entry
    if len(folders) > 1:
        raise ValueError("it has more than one folder")
    return found


def _check_records(storages: dict[str, Storage], records: dict[str, zipfile.ZipInfo]) -> None:
    """Check that each storage has all its bytes; torch 2.6 does not."""
    for key, storage in storages.items():
        record = records.get(f"data/{key}".casefold())
        size = None if record is None else record.file_size
        if size != storage.num_bytes:
            raise ValueError(f"storage {key[:80]!r} claims {storage.num_bytes} bytes, has {size}")


def _check_old_form(content: bytes) -> None:
    """Magic number, version, machine, the object, its storages' keys; then their values."""
    stream = io.BytesIO(content)
    *_, saved, listed = [follow(stream) for _ in range(5)]
    keys, storages, place = listed.value, saved.storages, stream.tell()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("it does not hold exactly the storages that its tensors lie in")
    for key in map(str, keys):
        storage = storages[key]
        count = int.from_bytes(content[place : place + 8], "little")
        place += 8 + storage.num_bytes
        if count != storage.num_items or place > len(content):
            raise ValueError(f"storage {key[:80]!r} does not have its {storage.num_bytes} bytes")
