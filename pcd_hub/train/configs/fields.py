"""Types of configuration fields and the bounds of every number, for ``--help`` and for errors.

A number of a configuration is annotated with its bounds, by one of the names below or by its own
``Annotated[int, Bounds(int, 1, 9)]``. tyro shows them in ``--help``; :func:`check` checks them.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from tyro.constructors import PrimitiveConstructorSpec

from pcd_hub.errors import ConfigError
from pcd_hub.image_size import height_width  # noqa: F401 - for users of HeightWidth

_LONGEST = 80
"""Maximum number of characters of a value in an error message."""

_SANITY = 10**9
"""Upper bounds from here on only catch typing errors; --help omits them."""


class Bounds(PrimitiveConstructorSpec[Any]):
    """Smallest and largest value of a number, and how tyro reads and prints it.

    Args:
        number: ``int`` or ``float``; floats must be finite whatever the bounds.
        low: Smallest value.
        high: Largest value.
        above: Exclude ``low`` itself.
    """

    number: type[int] | type[float]
    low: float
    high: float
    above: bool
    words: str
    """The bounds as part of a sentence: "an integer from 1 to 9"."""

    def __init__(
        self,
        number: type[int] | type[float],
        low: float,
        high: float = math.inf,
        *,
        above: bool = False,
    ) -> None:
        sign, kind = (">" if above else ">="), number.__name__.upper()
        super().__init__(
            nargs=1,
            metavar=f"{kind}{sign}{low}" + (f",<={high}" if high < _SANITY else ""),
            instance_from_str=lambda texts: number(texts[0]),
            is_instance=self.allows,
            str_from_instance=lambda value: [str(value)],
        )
        noun = "an integer" if number is int else "a number"
        if high == math.inf:
            words = f"{noun if number is int else 'a finite number'} {sign} {low}"
        else:
            words = f"{noun} > {low} and <= {high}" if above else f"{noun} from {low} to {high}"
        # The base class is a frozen dataclass.
        values = {"number": number, "low": low, "high": high, "above": above, "words": words}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def allows(self, value: object) -> bool:
        """Return True if ``value`` is a number within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int | self.number):
            return False
        not_too_low = self.low < value if self.above else self.low <= value
        return not_too_low and value <= self.high and abs(value) <= sys.float_info.max


Count = Annotated[int, Bounds(int, 1, 10**9)]
CountOrZero = Annotated[int, Bounds(int, 0, 10**9)]
ImageSide = Annotated[int, Bounds(int, 8, 2**14)]
"""Height or width of an image in pixels."""
HeightWidth = ImageSide | tuple[ImageSide, ImageSide]
"""Height and width of an image in pixels; one number for both."""
Channels = Annotated[int, Bounds(int, 1, 2**16)]
Workers = Annotated[int, Bounds(int, 0, 1024)]
"""Loader processes; with 0 the training process loads the data itself."""
Seed = Annotated[int, Bounds(int, 0, 2**32 - 1)]
Share = Annotated[float, Bounds(float, 0, 1)]
LabelShare = Annotated[float, Bounds(float, 0, 1, above=True)]
"""Share of the labelled images, more than none."""
Area = Annotated[float, Bounds(float, 0, 1, above=True)]
"""Share of an image's area."""
Positive = Annotated[float, Bounds(float, 0, above=True)]
NotNegative = Annotated[float, Bounds(float, 0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One field of a configuration, as an option of the command line."""

    name: str
    """Flag, e.g. ``--optim.epochs``."""
    value: Any
    kind: Any
    """Type annotation."""
    example: Any
    """Default value; MISSING if there is none."""

    @property
    def key(self) -> str:
        """Name in a file, e.g. ``optim.lr_per_256``."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def flags(self) -> tuple[str, ...]:
        """The flag, and the negative one of a switch."""
        return (self.name, negated(self.name)) if self.kind is bool else (self.name,)


def negated(flag: str) -> str:
    """Return the flag that turns a switch off: ``--run.no-store`` for ``--run.store``."""
    group, dot, last = flag.removeprefix("--").rpartition(".")
    return f"--{group}{dot}no-{last}"


@runtime_checkable
class Group(Protocol):
    """A group of fields that may contradict each other."""

    def validate(self, group: str) -> None:
        """Raise a ConfigError if they do; ``group`` is the options' prefix, e.g. ``--data.``."""


def options(config: object, group: str = "--") -> Iterator[Option]:
    """Yield every field of ``config``, including those of its groups."""
    kinds = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        name, value = group + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{name}.")
        else:
            yield Option(name=name, value=value, kind=kinds[field.name], example=field.default)


def groups(config: object, prefix: str = "") -> Iterator[str]:
    """Yield the name of every group of fields, e.g. ``optim``."""
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        if dataclasses.is_dataclass(part := getattr(config, field.name)):
            yield prefix + field.name
            yield from groups(part, f"{prefix}{field.name}.")


def check(config: object, group: str = "--") -> None:
    """Check every field against its type and bounds, and the fields of a group against each other.

    Raises:
        ConfigError: If a field is invalid; the message gives option, value and expected values.
    """
    for option in options(config, group):
        if not allows(option.kind, option.value):
            raise wrong_value(option, option.value)
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        if isinstance(part := getattr(config, field.name), Group):
            part.validate(f"{group}{field.name.replace('_', '-')}.")


def wrong_value(option: Option, value: object) -> ConfigError:
    """Return the error for an invalid value of ``option``; an empty tuple means no value."""
    typed = f"{option.name} {as_typed(value)}".rstrip()
    known = option.example not in (None, "", (), dataclasses.MISSING)
    example = f", as {as_typed(option.example)}" if known else ""
    return ConfigError(f"{typed}: expected {describe(option.kind)}{example}")


def as_typed(value: object) -> str:
    """Return ``value`` as typed on the command line, in at most one short line."""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def one_as_text(values: tuple[str, ...]) -> str | list[str]:
    """Return a single text as it is, and several as a list: the form of ``data.source`` in files.

    Readers of the release before know one text only.
    """
    return values[0] if len(values) == 1 else list(values)


def allows(kind: Any, value: object) -> bool:
    """Return True if a field annotated with ``kind`` may hold ``value``."""
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case None:
            return value is None if kind is types.NoneType else isinstance(value, kind)
        case typing.Annotated:
            found = bounds(kind)
            return found.allows(value) if found else allows(inner[0], value)
        case typing.Literal:
            return any(type(value) is type(one) and value == one for one in inner)
        case types.UnionType | typing.Union:
            return any(allows(one, value) for one in inner)
        case _:  # tuple
            if not isinstance(value, tuple):
                return False
            kinds = inner[:1] * len(value) if inner[-1] is ... else inner
            return len(kinds) == len(value) and all(map(allows, kinds, value))


def describe(kind: Any) -> str:
    """Describe the values of a field annotated with ``kind``."""
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case None:
            plain = {bool: "True or False", str: "text", Path: "a path", types.NoneType: "None"}
            return plain[kind]
        case typing.Annotated:
            found = bounds(kind)
            return found.words if found else describe(inner[0])
        case typing.Literal:
            return ("one of " if len(inner) > 1 else "") + ", ".join(map(str, inner))
        case types.UnionType | typing.Union:
            return " or ".join(_describe_member(one, inner) for one in inner)
        case _:  # tuple
            return (
                f"any number of values, each {describe(inner[0])}"
                if inner[-1] is ...
                else f"{len(inner)} values, each {describe(inner[0])}"
            )


def _describe_member(kind: Any, members: tuple[Any, ...]) -> str:
    """Describe one member of a union; it may be a tuple of another member."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
    if kinds and all(one in members for one in kinds):
        return f"{len(kinds)} such values"
    return describe(kind)


def bounds(kind: Any) -> Bounds | None:
    """Return the bounds of a number's annotation, if it has any."""
    return next((note for note in kind.__metadata__ if isinstance(note, Bounds)), None)
