"""A pickle of tensors, followed as torch's unpickler would, but nothing is made of it.

torch's unpickler for tensors alone runs no code. But it may be told to fill the memory
(``bytearray(2**40)``), to compute for years (the hash of a tuple that holds itself twice, forty
times over), or to hand out memory of this process that nobody has written: a storage that is
called for by name, or a tensor that ends beyond its storage.
"""

import io
import pickletools
import re
from types import EllipsisType
from typing import Any, NamedTuple

_MAX_PICKLE_BYTES = 1024**2  # EfficientNet-B7, two branches and an optimizer: half
_MAX_PARTS = 1000
_MAX_STACK = 100_000  # containers are filled by the thousand
_MAX_BUILDS = 100

_ORDERED = "collections OrderedDict"
_REBUILDS_TENSOR = re.compile(r"torch\._utils _rebuild_tensor(_v[23])?")
_CALLED = (
    "torch._utils _rebuild_parameter",
    "torch.serialization _get_layout",
    "torch Size",
    "torch device",
)
_DTYPE = re.compile(r"torch (?:(?:b?float|u?int)(\d+)(?:_\w+)?|bool)")
STORAGE_ITEM_BYTES = {
    "torch.storage UntypedStorage": 1,
    "torch ComplexDoubleStorage": 16,
    "torch ComplexFloatStorage": 8,
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch QInt32Storage": 4,
    "torch QInt8Storage": 1,
    "torch QUInt8Storage": 1,
    "torch QUInt4x2Storage": 1,
    "torch QUInt2x4Storage": 1,
}
"""Storages of torch 2.6 to 2.14, as a pickle names them."""


class Storage(NamedTuple):
    """Memory that tensors lie in, as a pickle claims it."""

    item_bytes: int
    num_items: int

    @property
    def num_bytes(self) -> int:
        return self.item_bytes * self.num_items


class _Tuple(NamedTuple):
    items: tuple[Any, ...]
    parts: int
    """Of its items too, all of which its hash looks at."""


_Item = str | int | list[Any] | _Tuple | Storage | EllipsisType | None
"""On the unpickler's stack: text or a global's name, ...; an ellipsis for all else."""


class Pickle(NamedTuple):
    """What is known of a pickle."""

    value: _Item
    storages: dict[str, Storage]
    """By their keys."""


def follow(stream: io.BytesIO) -> Pickle:
    """Follow the pickle that begins here, to its end.

    Raises:
        ValueError: If it wants more than tensors in plain containers, or a tensor lies beyond its
            storage; or whatever else a damaged one leads to.
    """
    stack = _Stack()
    start, value = stream.tell(), None
    for opcode, argument, position in pickletools.genops(stream):
        if (position or 0) - start > _MAX_PICKLE_BYTES:
            raise ValueError(f"its structure has more than {_MAX_PICKLE_BYTES} bytes")
        value = stack.step(opcode, argument)
    return Pickle(value, stack.storages)


class _Stack:
    """The unpickler's stack and memo."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._items: list[_Item] = []
        self._marks: list[int] = []
        self._memo: dict[object, _Item] = {}
        self._num_builds = 0

    def step(self, opcode: pickletools.OpcodeInfo, argument: object) -> _Item:
        """Take what the opcode takes, put what it makes; return that."""
        made: _Item = None
        if opcode.name == "MARK":
            self._marks.append(len(self._items))
        elif "PUT" in opcode.name:
            self._memo[argument] = self._items[-1]
        elif "GET" in opcode.name:
            self._items.append(self._memo[argument])
        else:
            made = self._made(opcode.name, argument, self._taken(opcode))
            self._items += [made] * len(opcode.stack_after)
            if len(self._items) > _MAX_STACK:
                raise ValueError(f"it begins more than {_MAX_STACK} objects before it ends any")
        return made

    def _taken(self, opcode: pickletools.OpcodeInfo) -> list[_Item]:
        before = opcode.stack_before
        if pickletools.markobject in before:
            start = self._marks.pop() - before.index(pickletools.markobject)
        else:
            start = len(self._items) - len(before)
        if start < 0:
            raise ValueError("its structure is damaged")
        taken = self._items[start:]
        del self._items[start:]
        return taken

    def _made(self, name: str, argument: object, taken: list[_Item]) -> _Item:
        match name:
            case "GLOBAL":
                return _global(str(argument))
            case "REDUCE":
                return _called(*taken)
            case "BINPERSID":
                return self._stored(*taken)
            case "BUILD":
                return self._built(*taken)
            case "STOP":
                return taken[0]
        return _container(name, taken) if argument is None else _scalar(argument)

    def _built(self, made: _Item, _: _Item) -> _Item:
        self._num_builds += 1
        if self._num_builds > _MAX_BUILDS:
            raise ValueError(f"it sets the attributes of more than {_MAX_BUILDS} objects")
        if made != _ORDERED:  # a tensor would be set to another storage
            raise ValueError("it sets the attributes of what is no OrderedDict")
        return made

    def _stored(self, facts: _Item) -> Storage:
        """The storage that a persistent id names; its last part says which storage it views."""
        match facts:
            case _Tuple(items=("storage", str() as kind, str() as key, _, int() as count, *views)):
                pass
            case _:
                raise ValueError("it asks for something that is no storage")
        item_bytes = STORAGE_ITEM_BYTES.get(kind)
        if item_bytes is None or count < 0 or not key.isascii():
            raise ValueError(f"it asks for a storage of {count} items of {kind[:80]!r}")
        if views not in ([], [None]):
            raise ValueError("a storage is part of another, as torch before 0.4 wrote; save again")
        storage = Storage(item_bytes, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it claims the storage {key[:80]!r} twice, each time differently")
        return storage


def _global(name: str) -> str:
    is_known = name in {_ORDERED, *_CALLED, *STORAGE_ITEM_BYTES}
    if not is_known and not _REBUILDS_TENSOR.fullmatch(name) and not _DTYPE.fullmatch(name):
        raise ValueError(f"it wants {name[:80]!r}, which tensors do not; save its state dict alone")
    return name


def _scalar(argument: object) -> _Item:
    return argument if isinstance(argument, str | int) else ...


def _container(name: str, taken: list[_Item]) -> _Item:
    """What an opcode without an argument makes."""
    if "TUPLE" in name:
        parts = 1 + sum(item.parts if isinstance(item, _Tuple) else 1 for item in taken)
        if parts > _MAX_PARTS:
            raise ValueError(f"it holds a tuple of more than {_MAX_PARTS} parts")
        return _Tuple(tuple(taken), parts)
    if name.startswith(("APPEND", "SETITEM")):
        return _filled(name, *taken)
    match name:
        case "EMPTY_LIST":
            return []
        case "NONE":
            return None
    return ...


def _filled(name: str, made: _Item, *items: _Item) -> _Item:
    if isinstance(made, list):
        if name.startswith("SETITEM"):
            raise ValueError("it exchanges the items of a list")
        made.extend(items)
    return made


def _called(function: _Item, arguments: _Item) -> _Item:
    if not isinstance(function, str) or not isinstance(arguments, _Tuple):
        raise TypeError("its structure is damaged")
    if function == _ORDERED:
        if arguments.items:
            raise ValueError("it fills an OrderedDict in a way that torch does not")
        return _ORDERED
    if _REBUILDS_TENSOR.fullmatch(function):
        _check_within(function, *arguments.items)
    elif function not in _CALLED:
        raise ValueError(f"it calls {function[:80]!r}, which no tensor does")
    return ...


def _check_within(
    function: str, storage: _Item, offset: _Item, size: _Item, stride: _Item, *rest: _Item
) -> None:
    """Check that a tensor lies in its storage: torch would let the storage grow, unwritten."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    item_bytes = _dtype_bytes(rest[2]) if function.endswith("_v3") else storage.item_bytes
    start, sizes, strides = _number(offset), _numbers(size), _numbers(stride)
    reach = 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    end = start + (0 if 0 in sizes else reach)
    if end * item_bytes > storage.num_bytes:
        raise ValueError(
            f"a tensor ends {end * item_bytes} bytes into a storage of {storage.num_bytes}"
        )


def _dtype_bytes(dtype: _Item) -> int:
    found = _DTYPE.fullmatch(dtype) if isinstance(dtype, str) else None
    if found is None:
        raise ValueError("a tensor has no dtype")
    return max(1, int(found[1] or 8) // 8)


def _numbers(items: _Item) -> list[int]:
    if not isinstance(items, _Tuple):
        raise TypeError("a tensor has no size")
    return [_number(item) for item in items.items]


def _number(item: _Item) -> int:
    if not isinstance(item, int) or item < 0:
        raise ValueError("a tensor's size, stride or offset is no whole number from 0")
    return item
