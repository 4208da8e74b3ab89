"""Hook of mkdocs: pages of the repository outside docs/ are part of the site.

Links between files are written for the repository, so that they work in a clone and on a code host.
Here they are followed: a Markdown file becomes a page, any other file is copied. Source files get
the ending ``.txt``, so that a browser shows them.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository"
"""Folder of the site that holds what lies outside docs/."""

_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that a page links to, and those that these link to."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    while pages:
        for path in _linked(pages.pop()):
            place = site_path(path)
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(path)))
                if path.suffix == ".md":
                    pages.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Write the links of a page for the site."""
    here = Path(str(page.file.abs_src_path)).parent
    folder = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        path = (here / link["path"]).resolve()
        if not path.is_file():
            return link[0]  # mkdocs reports it
        return posixpath.relpath(site_path(path), folder or ".") + (link["anchor"] or "")

    return _LINK.sub(moved, markdown)


def site_path(path: Path) -> str:
    """Return the path in the site of a file of the repository."""
    place = path.relative_to(ROOT).as_posix()
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    readable = "" if path.suffix in {".md", ".png", ".svg"} else ".txt"
    return f"{OUTSIDE}/{place}{readable}"


def _linked(page: Path) -> list[Path]:
    text = page.read_text(encoding="utf-8")
    paths = [(page.parent / link["path"]).resolve() for link in _LINK.finditer(text)]
    return [path for path in paths if path.is_file() and path.is_relative_to(ROOT)]
