"""Types of configuration fields and the bounds of every number, for ``--help`` and for errors.

A number of a configuration is annotated with its bounds, by one of the names below or by its own
``Annotated[int, Bounds(int, 1, 9)]``. tyro shows them in ``--help``; :func:`check` holds a
configuration to them.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from tyro.constructors import PrimitiveConstructorSpec

from pcd_hub.errors import ConfigError

_LONGEST = 80
"""Characters of a value in an error."""


class Bounds(PrimitiveConstructorSpec[Any]):
    """Least and largest value of a number, and how tyro reads and shows it.

    Args:
        number: ``int`` or ``float``; floats must be finite whatever the bounds.
        low: Least value.
        high: Largest value.
        above: Whether ``low`` itself is excluded.
    """

    number: type[int] | type[float]
    low: float
    high: float
    above: bool
    words: str
    """As part of a sentence: "a whole number from 1 to 9"."""

    def __init__(
        self,
        number: type[int] | type[float],
        low: float,
        high: float = math.inf,
        *,
        above: bool = False,
    ) -> None:
        least = f"{'>' if above else '>='}{low}"
        most = "" if high == math.inf else f",<={high}"
        super().__init__(
            nargs=1,
            metavar=f"{number.__name__.upper()}{least}{most}",
            instance_from_str=lambda texts: number(texts[0]),
            is_instance=self.allows,
            str_from_instance=lambda value: [str(value)],
        )
        if above:
            span = f"above {low}" + ("" if high == math.inf else f" and at most {high}")
        else:
            span = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        finite = "finite " if high == math.inf else ""
        words = f"a {'whole ' if number is int else finite}number {span}"
        # The class it extends is frozen.
        for name, value in {"number": number, "low": low, "high": high, "above": above}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "words", words)

    def allows(self, value: object) -> bool:
        """Whether ``value`` is such a number."""
        if isinstance(value, bool) or not isinstance(value, int | self.number):
            return False
        not_too_low = self.low < value if self.above else self.low <= value
        return not_too_low and value <= self.high and abs(value) < math.inf


Count = Annotated[int, Bounds(int, 1, 10**9)]
CountOrZero = Annotated[int, Bounds(int, 0, 10**9)]
ImageSide = Annotated[int, Bounds(int, 8, 2**14)]
"""Height or width of an image in pixels."""
Channels = Annotated[int, Bounds(int, 1, 2**16)]
Workers = Annotated[int, Bounds(int, 0, 1024)]
"""Processes that prepare data; 0 is none but the training process itself."""
Seed = Annotated[int, Bounds(int, 0, 2**32 - 1)]
Share = Annotated[float, Bounds(float, 0, 1)]
Area = Annotated[float, Bounds(float, 0, 1, above=True)]
"""Share of an image that shows something."""
Positive = Annotated[float, Bounds(float, 0, above=True)]
NotNegative = Annotated[float, Bounds(float, 0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One field of a configuration, as it is typed."""

    name: str
    """As ``--optim.epochs``."""
    value: Any
    kind: Any
    """Its annotation."""
    example: Any
    """Its default, MISSING if it has none."""


@runtime_checkable
class Group(Protocol):
    """A group of fields that may contradict each other."""

    def check(self, group: str) -> None:
        """Raise a ConfigError if they do; ``group`` starts their options, as ``--data.``."""


def options(config: object, group: str = "--") -> Iterator[Option]:
    """Every field of ``config``, those of its groups included."""
    kinds = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        name, value = group + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{name}.")
        else:
            yield Option(name=name, value=value, kind=kinds[field.name], example=field.default)


def check(config: object, group: str = "--") -> None:
    """Hold every field to its type and its bounds, and the fields of a group to each other.

    Raises:
        ConfigError: For the first that is wrong: option, value, and what is expected.
    """
    for option in options(config, group):
        if not allows(option.kind, option.value):
            raise wrong_value(option, option.value)
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        if isinstance(part := getattr(config, field.name), Group):
            part.check(f"{group}{field.name.replace('_', '-')}.")


def wrong_value(option: Option, value: object) -> ConfigError:
    """The error of a value that ``option`` cannot have, or of none (an empty tuple)."""
    typed = f"{option.name} {as_typed(value)}".rstrip()
    known = option.example not in (None, "", (), dataclasses.MISSING)
    example = f", as {as_typed(option.example)}" if known else ""
    return ConfigError(f"{typed}: expected {words(option.kind)}{example}")


def as_typed(value: object) -> str:
    """``value`` as on the command line, shortened: the elements of a tuple with spaces between."""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def allows(kind: Any, value: object) -> bool:
    """Whether a field annotated with ``kind`` may hold ``value``."""
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case None:
            return value is None if kind is types.NoneType else isinstance(value, kind)
        case typing.Annotated:
            bounds = _bounds(kind)
            return bounds.allows(value) if bounds else allows(inner[0], value)
        case typing.Literal:
            return value in inner
        case types.UnionType | typing.Union:
            return any(allows(one, value) for one in inner)
        case _:  # tuple
            if not isinstance(value, tuple):
                return False
            kinds = inner[:1] * len(value) if inner[-1] is ... else inner
            return len(kinds) == len(value) and all(map(allows, kinds, value))


def words(kind: Any) -> str:
    """Describe the values of a field annotated with ``kind``."""
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case None:
            plain = {bool: "True or False", str: "text", Path: "a path", types.NoneType: "None"}
            return plain[kind]
        case typing.Annotated:
            bounds = _bounds(kind)
            return bounds.words if bounds else words(inner[0])
        case typing.Literal:
            return ("one of " if len(inner) > 1 else "") + ", ".join(map(str, inner))
        case types.UnionType | typing.Union:
            return " or ".join(map(words, inner))
        case _:  # tuple
            return (
                f"any number of values, each {words(inner[0])}"
                if inner[-1] is ...
                else f"{len(inner)} values, each {words(inner[0])}"
            )


def _bounds(kind: Any) -> Bounds | None:
    return next((note for note in kind.__metadata__ if isinstance(note, Bounds)), None)
