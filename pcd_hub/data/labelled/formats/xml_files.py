"""Parse XML from untrusted files: no document type, so no entities; bounded depth."""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pcd_hub.data.labelled.formats.found import read_label_file
from pcd_hub.errors import DataError

_MAX_DEPTH = 32


class _RefusedError(Exception):
    """The file uses a part of XML that labels do not need."""


def read_xml(file: Path) -> Element:
    """Parse a file of labels.

    Raises:
        DataError: If it cannot be read, is not XML, declares a document type (entities can expand
            to gigabytes or name other files), or is nested too deeply.
    """
    try:
        return _parse(read_label_file(file))
    except (expat.ExpatError, _RefusedError, ValueError, LookupError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} cannot be read as XML ({error}); export it again") from error


def _parse(content: bytes) -> Element:
    builder, parser = TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise _RefusedError(f"nested deeper than {_MAX_DEPTH} levels")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: Any) -> None:
        raise _RefusedError("it declares a document type or entities, which labels do not need")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.Parse(content, True)  # noqa: FBT003 - without keywords
    return builder.close()


def text(element: Element, name: str, default: str = "") -> str:
    """Return the text of the first child of this name, without surrounding spaces."""
    return (element.findtext(name) or default).strip()


def number(value: str | None) -> float:
    """Parse a number; NaN, which every later check rejects, if it is none."""
    try:
        return float(value or "nan")
    except ValueError:
        return float("nan")


def whole(value: str | None) -> int:
    """Parse a size in pixels; 0, for unknown, if it is none."""
    found = number(value)
    return int(found) if 0 < found < 2**31 else 0
