"""Write the gallery: one HTML page that needs no network."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pcd_hub.errors import ConfigError
from pcd_hub.files.write import atomic_write
from pcd_hub.report.gallery.content import GalleryEntry, gallery_entries, score_columns
from pcd_hub.report.page.templates import environment
from pcd_hub.report.page.write import check_replaceable

PAGE = "index.html"


def write_gallery(folder: Path) -> tuple[Path, int]:
    """Write ``index.html`` with all known weights into a folder, which is created.

    Returns:
        The page, and the number of its weights.

    Raises:
        ConfigError: If it cannot be written, or another file has its place.
    """
    entries = gallery_entries()
    page = folder / PAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_replaceable(page, remedy="name another folder")
        atomic_write(page, render_gallery(entries))
    except OSError as error:
        raise ConfigError(
            f"cannot write {page} ({error.strerror or error}); name another folder"
        ) from error
    return page, len(entries)


def render_gallery(entries: Sequence[GalleryEntry]) -> str:
    """Render the page; without scripts it is a table and a section for each weight."""
    loader = environment().loader
    assert loader is not None
    script, _, _ = loader.get_source(environment(), "gallery.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("gallery.html.jinja")
        .render(
            entries=entries,
            datasets=score_columns(entries),
            licenses=sorted({entry.license for entry in entries}),
            script=Markup(script),  # noqa: S704 - a file of this package
            script_hash=f"sha256-{digest}",
        )
    )
