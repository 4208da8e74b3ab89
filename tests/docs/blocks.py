"""The code blocks of the project's pages.

An HTML comment before a block says what the test needs to know, and a reader of the page's source
sees it: ``<!-- not run: REASON -->``, or ``<!-- given: STATEMENTS -->``, Python that the block
takes for granted.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.md")
    for path in ROOT.glob(pattern)
)

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"<!-- (?P<kind>not run|given): (?P<text>[^>]*?) -->\s*\Z")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    """Line of its first line of code."""
    language: str
    code: str
    not_run: str
    """Why it is not run; empty if it is."""
    given: str
    """Statements that it takes for granted."""


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    return parse((ROOT / page).read_text(), page)


def parse(text: str, page: str) -> list[Block]:
    """Return the blocks in the text of a page."""
    blocks = []
    for found in _BLOCK.finditer(text):
        comment = _COMMENT.search(text[: found.start()])
        said = {comment["kind"]: " ".join(comment["text"].split())} if comment else {}
        indent = len(found["indent"])
        code = "".join(line[indent:] or "\n" for line in found["code"].splitlines(keepends=True))
        line = text.count("\n", 0, found.start("code")) + 1
        blocks.append(
            Block(
                page, line, found["language"], code, said.get("not run", ""), said.get("given", "")
            )
        )
    return blocks
