"""Check and parse an untrusted weights file: header, values, and names and shapes of tensors.

The bytes are checked before safetensors parses them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pcd_hub.errors import WeightError
from pcd_hub.files.strict_json import check_fields, one_of, parse_json, several, shown, whole
from pcd_hub.models.entries import build_skeleton
from pcd_hub.weights.safety import MAX_FILE_BYTES, check_buildable

_MAX_HEADER_BYTES = 1024**2
_MAX_METADATA_CHARACTERS = 64_000
_MAX_TENSORS = 20_000
_MAX_DIMS = 8
_MAX_ELEMENTS = 2**31
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_ITEM_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_TENSOR = {
    "dtype": one_of(_ITEM_BYTES),
    "shape": several(whole(0, _MAX_ELEMENTS), 0, _MAX_DIMS),
    "data_offsets": several(whole(0, MAX_FILE_BYTES), 2, 2),
}


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_header(raw: bytes | memoryview, *, what: str) -> dict[str, tuple[int, ...]]:
    """Check the header of a complete safetensors file; return the tensors' shapes by name.

    Raises:
        WeightError: If safetensors would reject the file, or if it has a repeated name, an unknown
            key or dtype, an unusual name, or excessive sizes.
    """
    return {name: entry.shape for name, entry in _entries(raw, what).items()}


def _entries(raw: bytes | memoryview, what: str) -> dict[str, _Entry]:
    text = _header_text(raw, what)
    header = parse_json(text, what=f"{what}: its header", max_bytes=_MAX_HEADER_BYTES)
    _check_metadata(header.pop("__metadata__", {}), what)
    if len(header) > _MAX_TENSORS:
        raise WeightError(f"{what} holds {len(header)} tensors, more than {_MAX_TENSORS}")
    entries = {name: _entry(name, found, what) for name, found in header.items()}
    _check_coverage(entries, len(raw) - 8 - len(text), what)
    return entries


def _header_length(raw: bytes | memoryview) -> int:
    return int.from_bytes(raw[:8], "little")


def _header_text(raw: bytes | memoryview, what: str) -> bytes:
    length, bound = _header_length(raw), min(_MAX_HEADER_BYTES, max(len(raw) - 8, 0))
    if not 2 <= length <= bound:
        raise WeightError(
            f"{what} has {len(raw)} bytes and states a header of {length}, "
            f"expected at least 2, and at most {bound}"
        )
    text = bytes(raw[8 : 8 + length])
    if not text.startswith(b"{"):
        raise WeightError(f"{what}: its header begins with {shown(text[:8])}, expected {{")
    return text


def _check_metadata(metadata: Any, what: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightError(f"{what}: __metadata__ is {shown(metadata)}, expected strings")
    length = sum(len(key) + len(value) for key, value in metadata.items())
    if length > _MAX_METADATA_CHARACTERS:
        raise WeightError(
            f"{what}: __metadata__ has {length} characters, more than {_MAX_METADATA_CHARACTERS}"
        )


def _entry(name: str, found: Any, what: str) -> _Entry:
    if not _TENSOR_NAME.fullmatch(name):
        raise WeightError(f"{what}: {shown(name)} is not a tensor's name ([A-Za-z0-9_.]{{1,256}})")
    check_fields(found, _TENSOR, what=f"{what}: {name[:80]}")
    shape, (begin, end) = tuple(found["shape"]), found["data_offsets"]
    if math.prod(dim for dim in shape if dim) > _MAX_ELEMENTS:
        raise WeightError(f"{what}: {name[:80]} of shape {shape} is larger than {_MAX_ELEMENTS}")
    if (size := math.prod(shape) * _ITEM_BYTES[found["dtype"]]) != end - begin:
        raise WeightError(
            f"{what}: {name[:80]} needs {size} bytes, data_offsets gives {end - begin}"
        )
    return _Entry(found["dtype"], shape, begin, end)


def _check_coverage(entries: Mapping[str, _Entry], size: int, what: str) -> None:
    """Check that the tensors fill the file without gaps or overlaps."""
    covered = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != covered:
            raise WeightError(
                f"{what}: {name[:80]} begins at byte {entry.begin}, expected {covered}: "
                f"{'a hole' if entry.begin > covered else 'an overlap'}"
            )
        covered = entry.end
    if covered != size:
        raise WeightError(f"{what}: its tensors take {covered} bytes, the file has {size} for them")


def load_tensors(raw: bytes, *, what: str) -> dict[str, Tensor]:
    """Check a complete safetensors file and parse it from the same bytes.

    Raises:
        WeightError: If :func:`check_header` fails, or a tensor contains NaN, infinity, or a bool
            that is neither 0 nor 1.
    """
    entries = _entries(raw, what)
    _check_bools(raw, entries, what)
    try:
        tensors = safetensors.torch.load(raw)
    except SafetensorError as error:
        raise WeightError(f"{what}: safetensors cannot parse it: {shown(str(error))}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise WeightError(f"{what}: {name[:80]} has a value that is not finite in float32")
    return tensors


def _check_bools(raw: bytes, entries: Mapping[str, _Entry], what: str) -> None:
    values = np.frombuffer(raw, np.uint8, offset=8 + _header_length(raw))
    for name, (dtype, _, begin, end) in entries.items():
        if dtype == "BOOL" and values[begin:end].max(initial=0) > 1:
            raise WeightError(f"{what}: {name[:80]} has a bool that is neither 0 nor 1")


def _is_finite(tensor: Tensor) -> bool:
    """Check only the extremes in float32, the model's dtype, to avoid a copy of the tensor."""
    return not tensor.numel() or all(bool(end.float().isfinite()) for end in tensor.aminmax())


Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""


def check_size(size: int, needed: Shapes, *, what: str) -> None:
    """Check, before reading a file, that it is no larger than these shapes need.

    Raises:
        WeightError: If ``size`` in bytes exceeds the largest allowed header plus float64 values.
    """
    most = 8 + _MAX_HEADER_BYTES + 8 * sum(map(math.prod, needed.values()))
    if size > most:
        raise WeightError(f"{what} has {size} bytes, its architecture needs at most {most}")


def check_fit(found: Shapes, needed: Shapes, *, what: str) -> None:
    """Check that names and shapes are exactly those of :func:`needed_shapes`.

    Raises:
        WeightError: If a tensor is missing or unexpected, or has another shape.
    """
    differences = {
        "missing": [name for name in needed if name not in found],
        "unexpected": [name for name in found if name not in needed],
        "of another shape": [n for n in needed if n in found and tuple(found[n]) != needed[n]],
    }
    for problem, names in differences.items():
        if names:
            raise WeightError(
                f"{what}: {len(names)} tensors are {problem}, first {shown(names[0])} "
                f"(here {found.get(names[0], 'absent')}, "
                f"in its architecture {needed.get(names[0], 'absent')})"
            )


def needed_shapes(
    architecture: str, model_args: Mapping[str, Any], *, what: str
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of a new model without a head.

    Raises:
        WeightError: If timm has no such architecture or cannot build it.
    """
    check_buildable(architecture, model_args, what=what)
    try:
        model = build_skeleton(architecture, **model_args)
    except Exception as error:  # depends on how the architecture handles the size
        raise WeightError(
            f"{what}: timm cannot build {architecture} with {shown(dict(model_args))}: "
            f"{type(error).__name__} {shown(str(error))}"
        ) from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
