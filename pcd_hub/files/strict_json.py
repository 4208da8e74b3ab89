"""Parse JSON from untrusted files strictly, and check its objects."""

import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from pcd_hub.errors import WeightError

_MAX_DEPTH = 64
_MAX_DIGITS = 20
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(raw: bytes, *, what: str, max_bytes: int) -> Any:
    """Parse strict JSON.

    The text must be UTF-8 without a byte order mark or lone surrogates, with unique keys, finite
    numbers, integers of at most 20 digits, and at most 64 levels of nesting.

    Raises:
        WeightError: If it is not, or it is longer than ``max_bytes``.
    """
    if len(raw) > max_bytes:
        raise WeightError(f"{what} has {len(raw)} bytes, expected at most {max_bytes}")
    try:
        return _parsed(raw)
    except ValueError as error:
        raise WeightError(f"{what} is not strict JSON: {error}") from error


def _parsed(raw: bytes) -> Any:
    text = raw.decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    if _depth(raw) > _MAX_DEPTH:  # checked first, because the parser recurses
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
    value = json.loads(
        text,
        object_pairs_hook=_unique_keys,
        parse_int=_short_int,
        parse_float=_finite_float,
        parse_constant=_finite_float,
    )
    if "\\u" in text:  # raises on lone surrogates, which cannot be encoded
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _depth(raw: bytes) -> int:
    """Return the maximum nesting depth of brackets outside strings, in linear time."""
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    return max(accumulate(1 if byte in b"[{" else -1 for byte in brackets), default=0)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the key {shown(key)} is repeated")
        unique[key] = value
    return unique


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS or text == "-0":  # safetensors reads -0 as a float
        raise ValueError(f"{shown(text)} is not an integer of at most {_MAX_DIGITS} digits")
    return int(text)


def _finite_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shown(text)} is not finite")
    return value


class Field(NamedTuple):
    """A check of one value, and its description for error messages."""

    fits: Callable[[Any], bool]
    bound: str
    required: bool = True


def whole(low: int, high: int) -> Field:
    """Return a check for integers, excluding booleans."""
    return Field(lambda v: type(v) is int and low <= v <= high, f"an integer from {low} to {high}")


def number(low: float, high: float) -> Field:
    """Return a check for numbers, excluding booleans."""
    return Field(
        lambda v: type(v) in {int, float} and low <= v <= high, f"a number from {low} to {high}"
    )


def matching(pattern: str, bound: str) -> Field:
    """Return a check for strings that match the whole pattern."""
    return Field(lambda v: isinstance(v, str) and bool(re.fullmatch(pattern, v)), bound)


def one_of(values: Collection[Any]) -> Field:
    """Return a check for these values; the type must match as well."""
    return Field(
        lambda v: any(type(v) is type(value) and v == value for value in values),
        " or ".join(map(str, values)),
    )


def optional(field: Field) -> Field:
    """Return the same check for an optional field."""
    return field._replace(required=False)


def several(item: Field, low: int, high: int) -> Field:
    """Return a check for lists of ``low`` to ``high`` items."""
    return Field(
        lambda v: isinstance(v, list) and low <= len(v) <= high and all(map(item.fits, v)),
        f"a list of {low if low == high else f'{low} to {high}'}, each {item.bound}",
    )


def either(*fields: Field) -> Field:
    """Return a check for values that fit one of ``fields``."""
    return Field(
        lambda v: any(field.fits(v) for field in fields),
        " or ".join(field.bound for field in fields),
    )


def or_null(*fields: Field) -> Field:
    """Return a check for values that fit one of ``fields``, or are null or absent."""
    return optional(either(*fields, Field(lambda v: v is None, "null")))


OBJECT = Field(lambda v: isinstance(v, dict), "an object")
TEXT = Field(lambda v: isinstance(v, str), "a string")
FINITE = number(-1e300, 1e300)
COUNT = whole(0, 2**53)
SHA256 = matching(r"[0-9a-f]{64}", "64 lower-case hex digits")


def check_fields(found: Any, fields: Mapping[str, Field], *, what: str) -> None:
    """Check that ``found`` is an object with these fields and no others.

    Raises:
        WeightError: If it is not; the message gives the key, the value found and the one expected.
    """
    if not isinstance(found, dict):
        raise WeightError(f"{what} is {shown(found)}, not an object")
    for key in found:
        if key not in fields:
            raise WeightError(
                f"{what} holds {shown(key)}, not one of its {len(fields)} known keys; "
                "was it written by a newer pcd_hub?"
            )
    for key, field in fields.items():
        if key not in found and field.required:
            raise WeightError(f"{what} has no {key}; it must be {field.bound}")
        if key in found and not field.fits(found[key]):
            raise WeightError(f"{what}: {key} is {shown(found[key])}; it must be {field.bound}")


def printable(line: str) -> str:
    """Replace unprintable characters, such as terminal control codes, by "?"."""
    return "".join(c if c.isprintable() else "?" for c in line)


def shown(value: object) -> str:
    """Format ``value`` for a message: short, in ASCII, without terminal control codes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 1, 60, 60
    return short.repr(value).encode("ascii", "backslashreplace").decode()[:120]
