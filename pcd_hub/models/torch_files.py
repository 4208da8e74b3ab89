"""Read files of ``torch.save`` without ``torch.load``.

``torch.load(weights_only=True)`` runs no code. But in torch 2.6 and still in 2.14, a file of a few
bytes can make it exhaust memory (an archive that unpacks to terabytes, ``bytearray(2**40)``),
compute for years (the hash of sixty nested tuples, each containing the next one twice), or return
uninitialised memory of the process (a storage requested by name). This reader builds only
plain containers and tensors whose bytes are all in the file. Other objects that training code saves
beside them, such as its options, become placeholders: nothing is imported or called.
"""

import io
import math
import operator
import pickle
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pcd_hub.files.read import read_bounded

MAX_FILE_BYTES = 16 * 1024**3
_MAX_PICKLE_BYTES = 8 * 1024**2  # read in 1 to 2 s; the tensors are not among them
_MAX_DIMS = 32
_OLD_FORMAT_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINUNICODE, pickle.SHORT_BINSTRING),  # Python 2 wrote text as bytes
    *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
)
"""Opcodes used by ``torch.save``, except BUILD, NEWOBJ, SETITEM and SETITEMS: see below."""


class UnknownObjectError(ValueError):
    """A pickle contains an object of a kind that is neither read nor ignored."""


class _Ignored:
    """An object that is not used, such as the options of a training script."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        pass

    def extend(self, _: object) -> None:
        """Ignore the items of a list or deque."""

    append = extend


class _Storage(NamedTuple):
    dtype: torch.dtype
    data: bytearray


def read_torch_file(file: Path) -> tuple[Any, bytes]:
    """Return the object that ``torch.save`` wrote to ``file``, and the file's content.

    Raises:
        OSError: If the file cannot be read, or is not a regular file.
        Exception: If the file is damaged or malicious; the type depends on the cause.
    """
    with file.open("rb") as opened:
        start = opened.read(14)  # checked before the rest is read into memory
    is_archive = start.startswith(b"PK\3\4")
    if not is_archive and start[2:] != _OLD_FORMAT_START:
        raise ValueError(f"it begins with {start[:8]!r}, expected what torch.save writes")
    content = read_bounded(file, MAX_FILE_BYTES)
    return (_read_archive if is_archive else _read_old_format)(content), content


def _read_archive(content: bytes) -> Any:
    """Read the format used since torch 1.6: a zip archive of a pickle and one file per storage."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > len(content):
            raise ValueError(f"it unpacks to {size} bytes, more than the {len(content)} it has")
        roots = [name[:-8] for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"it contains {len(roots)} files data.pkl, expected one")
        pickled = archive.read(f"{roots[0]}data.pkl")
        if len(pickled) > _MAX_PICKLE_BYTES:
            raise ValueError(f"its data.pkl has {len(pickled)} bytes, at most {_MAX_PICKLE_BYTES}")
        order = f"{roots[0]}byteorder"
        if order in archive.namelist() and archive.read(order) != sys.byteorder.encode():
            raise ValueError("it was saved on a machine of another byte order; save it again here")
        unpickler = _Unpickler(io.BytesIO(pickled), max_bytes=len(content))
        value = unpickler.load()
        for key, storage in unpickler.storages.items():
            _fill(storage, archive.read(f"{roots[0]}data/{key}"), key)
    return value


def _read_old_format(content: bytes) -> Any:
    """Read the format used before torch 1.6: five pickles, then the storages."""
    place = 0
    loaded: list[tuple[Any, dict[str, _Storage]]] = []
    for _ in ("magic number", "version", "machine", "object", "keys of its storages"):
        stream = io.BytesIO(content[place : place + _MAX_PICKLE_BYTES])
        unpickler = _Unpickler(stream, max_bytes=len(content))
        loaded.append((unpickler.load(), unpickler.storages))
        place += stream.tell()
    (value, storages), (keys, _) = loaded[-2:]
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or sorted(keys) != sorted(storages):
        raise ValueError("it does not hold exactly the storages of its tensors")
    for key in keys:
        storage = storages[key]
        count, end = content[place : place + 8], place + 8 + len(storage.data)
        if int.from_bytes(count, "little") * storage.dtype.itemsize != len(storage.data):
            raise ValueError(f"storage {key[:80]!r} is stated with two sizes")
        _fill(storage, content[place + 8 : end], key)
        place = end
    return value


def _fill(storage: _Storage, content: bytes, key: str) -> None:
    if len(content) != len(storage.data):
        raise ValueError(
            f"storage {key[:80]!r} has {len(content)} bytes, expected {len(storage.data)}"
        )
    storage.data[:] = content


class _Unpickler(pickle._Unpickler):
    """Unpickler for plain containers, and tensors over zeroed storages that are filled later."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }

    def __init__(self, pickled: io.BytesIO, *, max_bytes: int) -> None:
        super().__init__(pickled, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}
        self._bytes_left = max_bytes

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a global; raise if it is not allowed."""
        full_name = f"{module}.{name}"
        if full_name in _GLOBALS:
            return _GLOBALS[full_name]
        if full_name in _IGNORED or module.partition(".")[0] in _IGNORED_PACKAGES:
            return _Ignored
        raise UnknownObjectError(
            f"it contains a {full_name[:80]!r}, expected only tensors in plain containers; load it "
            "with the code that wrote it, and save torch.save(model.state_dict(), FILE)"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage for a persistent id."""
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, _, int() as count, *views):
                num_bytes = count * dtype.itemsize
            case _:
                raise TypeError("it asks for something other than a storage")
        if any(view is not None for view in views):
            raise ValueError("a storage is part of another, as torch before 0.4 wrote; save again")
        if key not in self.storages:
            if not 0 <= num_bytes <= self._bytes_left:
                raise ValueError(f"storage {key[:80]!r} claims more bytes than the file has")
            self._bytes_left -= num_bytes
            self.storages[key] = _Storage(dtype, bytearray(num_bytes))
        storage = self.storages[key]
        if (dtype, num_bytes) != (storage.dtype, len(storage.data)):
            raise ValueError(f"storage {key[:80]!r} is claimed twice, as different ones")
        return storage

    def load_newobj(self) -> None:
        """Create an object that is not used; no other."""
        _, kind = self.stack.pop(), self.stack.pop()
        if kind is not _Ignored:
            raise TypeError("it creates an object that is neither a tensor nor a plain container")
        self.stack.append(_Ignored())

    def load_build(self) -> None:
        """Ignore attributes of an OrderedDict, which ``nn.Module.state_dict`` sets."""
        self.stack.pop()
        if type(self.stack[-1]) not in {dict, _Ignored}:
            raise TypeError("it sets the attributes of something other than an OrderedDict")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        """Fill a dict; allow only keys that hash quickly and cannot be made to collide."""
        if type(self.stack[-1]) is _Ignored:
            return
        if type(self.stack[-1]) is not dict:
            raise TypeError("it sets the items of something other than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) and not (type(key) is int and abs(key) < 2**31):
                raise TypeError(f"it has a key of {type(key).__name__}, expected str or int")
            self.stack[-1][key] = value

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _rebuild_tensor_v2(
    storage: _Storage, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> Tensor:
    return _rebuild_tensor_v3(storage, offset, size, stride, False, None, storage.dtype)  # noqa: FBT003


def _rebuild_tensor_v3(
    storage: _Storage,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    _requires_grad: object,
    _hooks: object,
    dtype: torch.dtype,
    *_: object,
) -> Tensor:
    """Return a view of the storage; ``as_strided`` checks the bounds."""
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor has no storage")
    if len(size) > _MAX_DIMS or math.prod(map(operator.index, size)) >= 2**62:
        raise ValueError(f"a tensor has more than {_MAX_DIMS} dimensions or 2**62 values")
    values = torch.empty(0, dtype=dtype)
    if storage.data:
        values = torch.frombuffer(storage.data, dtype=dtype)
    return values.as_strided(size, stride, offset)


def _ordered_dict() -> dict[str, Any]:
    """Return an empty dict; take no arguments, as repeated copies of a large dict are slow."""
    return {}


_DTYPES: tuple[torch.dtype, ...] = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.complex128, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_NAMES = ("Double", "Float", "Half", "BFloat16", "ComplexDouble", "ComplexFloat")
_NAMES += ("Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda _factory: {},
    "torch._utils._rebuild_tensor": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, _requires_grad, _hooks: data,
    **{f"torch.{name}Storage": dtype for name, dtype in zip(_NAMES, _DTYPES, strict=True)},
    "torch.storage.UntypedStorage": torch.uint8,
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
_IGNORED = {
    *("torch.Size", "torch.device", "torch.serialization._get_layout"),
    *("torch.torch_version.TorchVersion", "argparse.Namespace", "types.SimpleNamespace"),
    *("collections.Counter", "collections.deque", "__builtin__.list", "__builtin__.dict"),
    "_codecs.encode",  # bytes, such as the values of an array of NumPy's
    *(f"__builtin__.{name}" for name in ("set", "frozenset", "complex", "bytes", "object")),
    "copy_reg._reconstructor",
}
"""Found in training checkpoints beside the tensors."""
_IGNORED_PACKAGES = {
    "__main__",  # classes of the training script
    *("datetime", "pathlib", "numpy", "mmengine", "mmcv"),
    *("omegaconf", "yacs", "easydict", "addict"),  # options
    *("lightning", "lightning_fabric", "pytorch_lightning", "timm", "transformers"),
}
