"""Strict JSON from elsewhere, and what its objects may hold."""

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

    That is UTF-8 without a mark, no key twice, finite numbers of at most 20 digits, no lone
    surrogates, at most 64 levels.

    Raises:
        WeightError: If it is anything else, or longer than ``max_bytes``.
    """
    if len(raw) > max_bytes:
        raise WeightError(f"{what} has {len(raw)} bytes, at most {max_bytes} are allowed")
    try:
        return _parsed(raw)
    except ValueError as error:
        raise WeightError(f"{what} is no strict JSON: {error}") from error


def _parsed(raw: bytes) -> Any:
    text = raw.decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    if _depth(raw) > _MAX_DEPTH:  # before the parser, which recurses
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
    value = json.loads(
        text,
        object_pairs_hook=_without_twins,
        parse_int=_short_int,
        parse_float=_finite_float,
        parse_constant=_finite_float,
    )
    if "\\u" in text:  # a lone surrogate can be escaped, but not be encoded
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _depth(raw: bytes) -> int:
    """The deepest nesting of brackets outside strings; linear, whatever the bytes."""
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    return max(accumulate(1 if byte in b"[{" else -1 for byte in brackets), default=0)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} stands twice")
        found[key] = value
    return found


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS or text == "-0":  # safetensors takes -0 for a fraction
        raise ValueError(f"{shown(text)} is no whole number of at most {_MAX_DIGITS} digits")
    return int(text)


def _finite_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shown(text)} is not finite")
    return value


# What an object may hold.


class Field(NamedTuple):
    """A test of one value, and the bound that a message names."""

    fits: Callable[[Any], bool]
    bound: str
    required: bool = True


def whole(low: int, high: int) -> Field:
    """A whole number; True is none."""
    return Field(
        lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"
    )


def number(low: float, high: float) -> Field:
    """A whole or broken number."""
    return Field(
        lambda v: type(v) in {int, float} and low <= v <= high, f"a number from {low} to {high}"
    )


def matching(pattern: str, bound: str) -> Field:
    """A string that the pattern matches from end to end."""
    return Field(lambda v: isinstance(v, str) and bool(re.fullmatch(pattern, v)), bound)


def one_of(values: Collection[Any]) -> Field:
    """One of these values, also in its type."""
    return Field(
        lambda v: any(type(v) is type(value) and v == value for value in values),
        " or ".join(map(str, values)),
    )


def optional(field: Field) -> Field:
    """The same, if it is there at all."""
    return field._replace(required=False)


def several(item: Field, low: int, high: int) -> Field:
    """A list of so many."""
    return Field(
        lambda v: isinstance(v, list) and low <= len(v) <= high and all(map(item.fits, v)),
        f"a list of {low if low == high else f'{low} to {high}'}, each {item.bound}",
    )


def or_null(*fields: Field) -> Field:
    """One of several forms, or null, or absent."""
    return Field(
        lambda v: v is None or any(field.fits(v) for field in fields),
        " or ".join([*(field.bound for field in fields), "null"]),
        required=False,
    )


OBJECT = Field(lambda v: isinstance(v, dict), "an object")
TEXT = Field(lambda v: isinstance(v, str), "a text")
FINITE = number(-1e300, 1e300)
COUNT = whole(0, 2**53)
SHA256 = matching(r"[0-9a-f]{64}", "64 lower-case hex digits")


def check_fields(found: Any, fields: Mapping[str, Field], *, what: str) -> None:
    """Check that ``found`` is an object of these fields and no others.

    Raises:
        WeightError: Naming the key, what was found and the bound.
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
    """``line`` without characters that a terminal obeys."""
    return "".join(c if c.isprintable() else "?" for c in line)


def shown(value: object) -> str:
    """``value`` for a message: short, and in characters that no terminal obeys."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 1, 60, 60
    return short.repr(value).encode("ascii", "backslashreplace").decode()[:120]
