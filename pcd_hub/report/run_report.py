"""Report of a run: its content, and ``report.md``, the same content as plain text."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcd_hub.files.markdown import escaped, table
from pcd_hub.report.page.chart import Curve
from pcd_hub.weights.cards.results import results_tables
from pcd_hub.weights.record import LICENSED, NOT_STATED, Measurement

MEAN_IOU = "probe_data_mean_iou"
"""Name of the curve of the mean IoU on labelled images."""
MAX_VALUES = 10
"""Points of a curve in a table."""
AGREEMENT = "agreement with the teacher"
"""Task whose scores are 100 % for the teacher itself."""
MEANING = (
    "Agreement with the teacher is measured on images that were not trained on; they only choose "
    "between the last weights and the best ones. It shows whether the student has learnt from the "
    "teacher beyond the images that it has seen. It does not show "
    "how useful the features are for your task: measure that on labelled images, however few."
)


@dataclass(frozen=True)
class Setting:
    """A derived setting."""

    option: str
    """Field of the configuration, such as ``optim.global_batch_size``."""
    value: Any
    reason: str
    """Reason that a person understands: "a quarter of 300 images"."""


@dataclass(frozen=True, kw_only=True)
class LoggedVerdict:
    """A verdict that was logged during the run."""

    step: int
    kind: str
    """Such as "learning" or "collapsing"."""
    words: str
    """What was measured."""
    cause: str = ""
    """The likely cause; empty if none is known."""
    remedy: str = ""
    is_bad: bool = False

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "LoggedVerdict | None":
        """Return the verdict that a record holds; None for anything else."""
        step = raw.get("step")
        if not isinstance(step, int):
            return None
        texts = {key: str(raw.get(key, "")) for key in ("kind", "words", "cause", "remedy")}
        return cls(step=step, is_bad=raw.get("is_bad") is True, **texts)


def last_fault(verdicts: Sequence[LoggedVerdict]) -> LoggedVerdict | None:
    """Return the last verdict if it is bad; None otherwise."""
    return verdicts[-1] if verdicts and verdicts[-1].is_bad else None


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A picture that is a grid of equally large parts."""

    path: str
    """Path relative to the run's folder."""
    rows: tuple[str, ...]
    """Label of each row."""
    columns: tuple[str, ...]
    """Label of each column."""
    images: str = ""
    """The images shown, such as "held-out images, 320 x 320 px"."""

    @classmethod
    def from_json(cls, raw: Any) -> "Sheet | None":
        """Return the sheet that ``dataclasses.asdict`` gave; None for anything else."""
        try:
            path, images = raw["path"], raw["images"]
            rows, columns = (tuple(map(str, raw[key])) for key in ("rows", "columns"))
        except (KeyError, TypeError):
            return None
        return cls(path=str(path), rows=rows, columns=columns, images=str(images))


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Content of the report."""

    weight: str
    """The weight's name."""
    run: str
    """The run's folder."""
    load: str
    """Name for ``timm.create_model``; empty if the exported weight is not in the folder."""
    what: str = ""
    """One sentence: what was distilled from what, on which images."""
    verdict: str
    """One sentence: whether the student is better than its start."""
    early_verdicts: Sequence[LoggedVerdict] = ()
    """Those that were logged during the run, oldest first."""
    measurements: Mapping[str, Measurement]
    """The record's measurements."""
    summary: Mapping[str, object]
    """What was trained on what, by label."""
    settings: Sequence[Setting]
    """Derived settings; empty if none were derived."""
    config_name: str
    config: Mapping[str, str] = field(default_factory=dict)
    """Effective value of every option."""
    survey: Mapping[str, object]
    """Results of the survey of the images, by label; empty if there was none."""
    duplicates: Sequence[tuple[str, str]] = ()
    """Examples of images that are nearly the same."""
    training: Mapping[str, object]
    """Steps, time and speed, by label."""
    timing: Mapping[str, str] = field(default_factory=dict)
    """Shares of the run's time, by label."""
    curves: Sequence[Curve] = ()
    features: Sheet | None = None
    """Images of the run, then the feature maps of each model as colours."""
    receptive_field: Sheet | None = None
    receptive_sides: Mapping[str, float] = field(default_factory=dict)
    """Side of the square with half of the receptive field, as a share of the image's, by model."""
    warnings: Sequence[str]
    """Warnings of the run."""
    pictures: Mapping[str, str]
    """Captions of the other pictures by their paths, relative to the report."""
    licenses: Mapping[str, str]
    """Licences of code, weights, teacher and data."""
    reads_rgb: bool = True
    """The weight takes RGB images, as evaluations do."""
    advice: Sequence[str]
    """What to try next, as Markdown."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run)

    @property
    def alarm(self) -> str:
        """One sentence: the last early verdict, if it is bad; otherwise empty."""
        last = last_fault(self.early_verdicts)
        if last is None:
            return ""
        cause = f"; likely cause: {last.cause}" if last.cause else ""
        remedy = f"; {last.remedy}" if last.remedy else ""
        return (
            f"warning: the last early verdict, at step {last.step:,}, was "
            f'"{last.kind}": {last.words}{cause}{remedy}'
        )

    @property
    def load_code(self) -> str:
        """Three lines of Python that load the backbone."""
        return (
            "import pcd_hub, timm\n\n"
            f"backbone = timm.create_model({json.dumps(self.load, ensure_ascii=False)}, "
            "pretrained=True, features_only=True)"
        )

    @property
    def probe_command(self) -> str:
        """The command that compares the weight with others on labelled images."""
        return f"pcd-hub probe LABELLED {shlex.quote(self.run)}"

    @property
    def publish_command(self) -> str:
        """The command that shows what publishing would do."""
        options = {"weights": "--license"} | {
            what: f"--{what}-license" for what in ("teacher", "data", "start")
        }
        missing = [what for what, stated in self.stated_licenses.items() if stated == NOT_STATED]
        flags = "".join(f" {options[what]} ID" for what in missing if what in options)
        target = shlex.quote(f"ORG/{self.weight}")
        return f"pcd-hub publish {shlex.quote(self.run)} {target}{flags} --dry-run"

    @property
    def stated_licenses(self) -> dict[str, str]:
        """The licence of each part that needs one."""
        licensed = (*LICENSED, *(("start",) if "start" in self.licenses else ()))
        return {what: self.licenses.get(what, NOT_STATED) for what in licensed}


def render_report(report: RunReport) -> str:
    """Render the report as Markdown."""
    sections = [
        f"# {escaped(report.weight)}: report of the run",
        escaped(report.what),
        f"**{escaped(as_sentence(report.verdict))}**",
        f"**{escaped(as_sentence(report.alarm))}**" if report.alarm else "",
        *results_tables(report.measurements),
        MEANING if measures_agreement(report.measurements) else "",
        _section("Use it", _usage(report)),
        _section("Try next", "\n".join(f"- {line}" for line in report.advice)),
        _section("What was trained", _facts(report.summary)),
        _section("Training", _facts({**report.training, **report.timing})),
        _section("Mean IoU during the run", _mean_iou(report)),
        _section("Early verdict", _early_verdicts(report)),
        _section("Settings", _settings(report)),
        _section("Images", _images(report)),
        _section(
            "Warnings", "\n".join(f"- {escaped(line)}" for line in report.warnings) or "None."
        ),
        _section(
            "Pictures",
            "\n\n".join(
                f"{escaped(text)}:\n\n![]({path})" for path, text in _pictures(report).items()
            ),
        ),
        _section("Publish it", _publishing(report)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def measures_agreement(measured: Mapping[str, Measurement]) -> bool:
    """Return whether the agreement with the teacher was measured."""
    return any(table.task == AGREEMENT for table in measured.values())


def as_sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _facts(facts: Mapping[str, object]) -> str:
    return table(("", ""), list(facts.items()))


def _usage(report: RunReport) -> str:
    load = f"""```python
{report.load_code}
```"""
    if not report.reads_rgb:
        return load
    return f"""{load}

Compare it with other models on labelled images, a folder with masks or class folders:

```sh
{report.probe_command}
```"""


def _settings(report: RunReport) -> str:
    where = "All settings are in `config.json`."
    if not report.settings:
        return f"They are those of the configuration {escaped(report.config_name)}. {where}"
    rows: list[tuple[object, ...]] = [
        (f"--{each.option.replace('_', '-')}", each.value, each.reason) for each in report.settings
    ]
    return f"{table(('option', 'derived value', 'reason'), rows)}\n\n{where}"


def _mean_iou(report: RunReport) -> str:
    curve = next((curve for curve in report.curves if curve.name == MEAN_IOU), None)
    if curve is None:
        return ""
    rows = [(f"{step:,.0f}", f"{value:.1f}") for step, value in curve.points(MAX_VALUES)]
    return table(("step", "mean IoU, %"), [*rows])


def _early_verdicts(report: RunReport) -> str:
    if not report.early_verdicts:
        return ""
    heads = ("step", "verdict", "measured", "likely cause", "remedy")
    rows = [(v.step, v.kind, v.words, v.cause, v.remedy) for v in report.early_verdicts]
    return table(heads, [*rows])


def _images(report: RunReport) -> str:
    if not report.survey:
        return ""
    pairs = [f"- {escaped(one)} and {escaped(other)}" for one, other in report.duplicates]
    examples = "\n\nCopies, for example:\n\n" + "\n".join(pairs) if pairs else ""
    return _facts(report.survey) + examples


def _pictures(report: RunReport) -> dict[str, str]:
    found: dict[str, str] = {}
    if report.features is not None:
        rows = ", ".join(report.features.rows)
        found[report.features.path] = (
            f"First three principal components of the feature maps as colours, on "
            f"{report.features.images}; rows: {rows}"
        )
    if report.receptive_field is not None:
        models = ", ".join(report.receptive_field.columns)
        found[report.receptive_field.path] = f"Effective receptive fields: {models}"
    return found | dict(report.pictures)


def _publishing(report: RunReport) -> str:
    stated = ", ".join(
        f"{what} {escaped(stated)}" for what, stated in report.stated_licenses.items()
    )
    return f"""```sh
{report.publish_command}
```

Licences: {stated}. The teacher's licence may extend to the student. Without `--dry-run` this
uploads the weight, its card and its record, but no image of yours."""
