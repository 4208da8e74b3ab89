"""Jinja templates of the pages; everything that they insert is escaped."""

import functools

import jinja2
from markupsafe import Markup, escape

import pcd_hub
from pcd_hub.report.run_report import as_sentence

GENERATOR = "pcd_hub report"
"""Content of a page's ``generator``, by which a page of this package is recognised."""


@functools.cache
def environment() -> jinja2.Environment:
    """Return the environment of all templates."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("pcd_hub.report.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"code": with_code, "sentence": as_sentence}
    made.globals |= {"generator": GENERATOR, "version": pcd_hub.__version__}
    return made


def with_code(text: str) -> Markup:
    """Escape a text, and mark what is between backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # an odd number of backticks
        return escape(text)
    shown = (
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )
    return Markup("").join(shown)
