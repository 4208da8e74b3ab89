"""What torch saved, looked through before torch opens it.

``weights_only=True`` runs no code. But a file of a few bytes can still make it fill the memory (an
archive that unpacks to terabytes, ``bytearray(2**40)``) or compute for years (the hash of a tuple
that holds itself twice, forty times over); checkpoints of tensors need none of that.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator

_MAX_PICKLE_BYTES = 1024**2  # EfficientNet-B7, two branches and an optimizer: half
_MAX_PARTS = 1000
_MAX_BUILDS = 100
_LEGACY_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_DICT = "collections OrderedDict"
_GLOBALS = re.compile(
    rf"{_DICT}|torch\._utils _rebuild_(tensor(_v[23])?|parameter)|torch\.serialization _get_layout"
    r"|torch (\w+Storage|Size|device|b?float\d+(_\w+)?|u?int\d+|bool)"
    r"|torch\.storage (Untyped|Typed)Storage"
)

_Item = str | int
"""On the unpickler's stack: a global's name, or how many parts a tuple has; 1 for all else."""


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
        ValueError: If it unpacks to more than it is, or wants more than tensors in plain
            containers; or whatever else a damaged file leads to.
    """
    check_start(content)
    for stream in _archived(content) if content.startswith(b"PK") else _in_a_row(content):
        _check_pickle(stream)


def _archived(content: bytes) -> Iterator[io.BytesIO]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > len(content):
            raise ValueError(f"it unpacks to {size} bytes, and has {len(content)}")
        names = [name.casefold() for name in archive.namelist()]  # as torch looks for them
        if len(set(names)) < len(names):
            raise ValueError("it holds a file twice")
        for name in archive.namelist():
            if name.casefold().endswith(".pkl"):
                yield io.BytesIO(archive.read(name))


def _in_a_row(content: bytes) -> Iterator[io.BytesIO]:
    """Magic number, version, machine, the object, the names of its tensors' memory."""
    stream = io.BytesIO(content)
    for _ in range(5):
        yield stream


def _check_pickle(stream: io.BytesIO) -> None:
    """Follow the unpickler's stack, but make nothing."""
    stack: list[_Item] = []
    marks: list[int] = []
    memo: dict[object, _Item] = {}
    start, builds = stream.tell(), 0
    for opcode, argument, position in pickletools.genops(stream):
        if (position or 0) - start > _MAX_PICKLE_BYTES:
            raise ValueError(f"its structure has more than {_MAX_PICKLE_BYTES} bytes")
        builds += opcode.name == "BUILD"
        if builds > _MAX_BUILDS:
            raise ValueError(f"it sets the attributes of more than {_MAX_BUILDS} objects")
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif "PUT" in opcode.name:
            memo[argument] = stack[-1]
        elif "GET" in opcode.name:
            stack.append(memo[argument])
        else:
            taken = _taken(opcode, stack, marks)
            stack += [_made(opcode.name, argument, taken)] * len(opcode.stack_after)


def _taken(opcode: pickletools.OpcodeInfo, stack: list[_Item], marks: list[int]) -> list[_Item]:
    before = opcode.stack_before
    if pickletools.markobject in before:
        start = marks.pop() - before.index(pickletools.markobject)
    else:
        start = len(stack) - len(before)
    if start < 0:
        raise ValueError("its structure is damaged")
    taken = stack[start:]
    del stack[start:]
    return taken


def _made(name: str, argument: object, taken: list[_Item]) -> _Item:
    if name == "GLOBAL":
        if not _GLOBALS.fullmatch(str(argument)):
            raise ValueError(
                f"it wants {str(argument)[:80]!r}, which tensors do not; save its state dict alone"
            )
        return str(argument)
    if name == "REDUCE" and taken[0] == _DICT and taken[1] != 0:
        raise ValueError("it fills an OrderedDict in a way that torch does not")
    if name == "EMPTY_TUPLE":
        return 0
    if not name.startswith("TUPLE"):
        return 1
    parts = 1 + sum(item if isinstance(item, int) else 1 for item in taken)
    if parts > _MAX_PARTS:
        raise ValueError(f"it holds a tuple of more than {_MAX_PARTS} parts")
    return parts
