"""``report.md`` of a run: whether it worked, what was trained on what, and what to do next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcd_hub.files.markdown import escaped, table
from pcd_hub.weights.card import results_tables
from pcd_hub.weights.record import LICENSED, NOT_STATED, Measurement

_MEANING = (
    "Agreement with the teacher is measured on images that were not trained on; they only choose "
    "between the last weights and the best ones. It shows whether the student has learnt from the "
    "teacher beyond the images that it has seen. It does not show "
    "how useful the features are for your task: measure that on labelled images, however few."
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A derived setting."""

    option: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Content of the report."""

    weight: str
    """The weight's name."""
    run: str
    """The run's folder."""
    load: str
    """Name for ``timm.create_model``."""
    verdict: str
    """One sentence: whether the student is better than its start."""
    measurements: Mapping[str, Measurement]
    """The record's measurements."""
    summary: Mapping[str, object]
    """What was trained on what, by label."""
    settings: Sequence[Setting]
    """Derived settings; empty if none were derived."""
    config_name: str
    survey: Mapping[str, object]
    """Results of the survey of the images, by label; empty if there was none."""
    duplicates: Sequence[tuple[str, str]] = ()
    """Examples of images that are nearly the same."""
    training: Mapping[str, object]
    """Steps, time and speed, by label."""
    warnings: Sequence[str]
    """Warnings of the run."""
    pictures: Mapping[str, str]
    """Captions of the pictures by their paths, relative to the report."""
    licenses: Mapping[str, str]
    """Licences of code, weights, teacher and data."""
    advice: Sequence[str]
    """What to try next, as Markdown."""


def render_report(report: RunReport) -> str:
    """Render the report as Markdown."""
    sections = [
        f"# {escaped(report.weight)}: report of the run",
        f"**{escaped(_sentence(report.verdict))}**",
        *results_tables(report.measurements),
        _MEANING if report.measurements else "",
        _section("Use it", _usage(report)),
        _section("Try next", "\n".join(f"- {line}" for line in report.advice)),
        _section("What was trained", _facts(report.summary)),
        _section("Training", _facts(report.training)),
        _section("Settings", _settings(report)),
        _section("Images", _images(report)),
        _section(
            "Warnings", "\n".join(f"- {escaped(line)}" for line in report.warnings) or "None."
        ),
        _section(
            "Pictures",
            "\n\n".join(
                f"{escaped(text)}:\n\n![]({path})" for path, text in report.pictures.items()
            ),
        ),
        _section("Publish it", _publishing(report)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _facts(facts: Mapping[str, object]) -> str:
    return table(("", ""), list(facts.items()))


def _usage(report: RunReport) -> str:
    return f"""```python
import pcd_hub, timm

backbone = timm.create_model("{report.load}", pretrained=True, features_only=True)
```

Compare it with other models on labelled images, a folder with masks or class folders:

```sh
pcd-hub probe LABELLED {report.run}
```"""


def _settings(report: RunReport) -> str:
    where = "All settings are in `config.json`."
    if not report.settings:
        return f"They are those of the configuration {escaped(report.config_name)}. {where}"
    rows: list[tuple[object, ...]] = [
        (f"--{each.option.replace('_', '-')}", each.value, each.reason) for each in report.settings
    ]
    return f"{table(('option', 'derived value', 'reason'), rows)}\n\n{where}"


def _images(report: RunReport) -> str:
    if not report.survey:
        return ""
    pairs = [f"- {escaped(one)} and {escaped(other)}" for one, other in report.duplicates]
    examples = "\n\nCopies, for example:\n\n" + "\n".join(pairs) if pairs else ""
    return _facts(report.survey) + examples


def _publishing(report: RunReport) -> str:
    licensed = (*LICENSED, *(("start",) if "start" in report.licenses else ()))
    missing = [what for what in licensed if report.licenses.get(what, NOT_STATED) == NOT_STATED]
    options = {"weights": "--license"} | {
        what: f"--{what}-license" for what in ("teacher", "data", "start")
    }
    flags = "".join(f" {options[what]} ID" for what in missing if what in options)
    stated = ", ".join(
        f"{what} {escaped(report.licenses.get(what, NOT_STATED))}" for what in licensed
    )
    return f"""```sh
pcd-hub publish {report.run} ORG/{report.weight}{flags} --dry-run
```

Licences: {stated}. The teacher's licence may extend to the student. Without `--dry-run` this
uploads the weight, its card and its record, but no image of yours."""
