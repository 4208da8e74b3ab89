"""Escape values for Markdown."""

import html
import re


def escaped(value: object) -> str:
    """Escape a value for Markdown: one line, no HTML, no markup, no table borders."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    # An underscore inside a word is not markup.
    return re.sub(r"([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", line)


def table(heads: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Render a table; the cells are escaped."""
    lines = [heads, ("---",) * len(heads), *(tuple(map(escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
