"""The page as HTML: content, order, escaping, and accessibility that needs no browser."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from pcd_hub.report.page.content import read_report
from pcd_hub.report.page.render import curve_values, render_comparison, render_page
from pcd_hub.report.page.run_folder import Notes
from pcd_hub.report.page.templates import environment
from tests.report.page.making import CONFIG, FEATURES, NOTES, PROBE, finished_run

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(1)>&lt;b&gt;{{ 7*7 }}"""
VOID = {"meta", "link", "img", "br", "input", "line", "path"}


class Page(HTMLParser):
    """Elements, texts and attributes of a page; an element that is not closed is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag):
        return [data for place, data in self.texts if place == tag]

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture
def report(tmp_path):
    return read_report(finished_run(tmp_path / "run"))


def test_the_page_has_its_parts_in_order(report):
    page = Page(render_page(report))
    assert page.text("h1") == ["test_resnet.pcd: report of the run"]
    assert page.text("h2") == [
        *("Features", "Curves", "Scores", "Receptive field", "Time", "Training", "Warnings"),
        *("Use it", "Publish it", "Try next", "Configuration"),
    ]
    paragraphs = [text for place, text in page.texts if place == "p"]
    assert paragraphs[0] == report.what
    assert paragraphs[1].startswith("It was not measured whether")


def test_a_bad_last_verdict_stands_at_the_top_and_all_have_a_section(tmp_path):
    said = {"kind": "flat", "words": "no sign", "cause": HOSTILE, "remedy": "", "is_bad": True}
    verdicts = ({**said, "step": 3, "kind": "learning"}, {**said, "step": 1200})
    text = render_page(read_report(finished_run(tmp_path / "run", verdicts=verdicts)))
    page = Page(text)
    assert "Early verdict" in page.text("h2")
    (alarm,) = [text for text in page.text("p") if text.startswith("Warning")]
    assert 'the last early verdict, at step 1,200, was "flat": no sign; likely cause: ' in alarm
    assert "flat (warning)" in page.text("td")
    assert "<script>alert" not in text


def test_the_page_loads_nothing_and_runs_nothing(report):
    text = render_page(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.values("content")
    for value in (*page.values("src"), *page.values("href")):
        assert value.startswith("data:")
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "@import" not in text
    assert "url(" not in text


def test_pictures_and_charts_have_a_text_and_the_page_a_language_and_title(report):
    page = Page(render_page(report))
    assert page.values("lang") == ["en"]
    assert page.text("title") == ["test_resnet.pcd: report of the run"]
    assert page.tags.count("img") == 8 + 2
    assert len(page.values("alt")) == page.tags.count("img")
    assert all(page.values("alt"))
    assert page.tags.count("svg") == 4
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    named = [one for value in page.values("aria-labelledby") for one in value.split()]
    assert set(named) <= set(ids)
    assert page.tags.count("table") == page.tags.count("caption")


def test_the_scale_from_start_to_teacher_is_in_words(report):
    assert "75 % of the way from start to teacher" in render_page(report)


def test_what_was_not_measured_is_said(tmp_path):
    folder = finished_run(tmp_path / "run", metrics={}, notes=Notes())
    (folder / "metrics.jsonl").unlink()
    text = render_page(read_report(folder))
    assert "No feature maps of the run's own images are in its folder." in text
    assert text.count("<p>Not measured") == 3
    assert "with the start and the teacher for comparison: not measured" in text
    assert "The exported weight is not in the run's folder." in text


def test_a_picture_that_cannot_be_shown_is_a_warning(report):
    (report.folder / FEATURES.path).write_bytes(b"nothing")
    text = render_page(report)
    assert "features.png cannot be shown: " in text
    assert "No feature maps" in text


def test_scenes_are_shown_only_without_pictures_of_the_runs_images(report, tmp_path):
    (report.folder / "pictures" / "pca.png").write_bytes(
        (report.folder / FEATURES.path).read_bytes()
    )
    with_scenes = read_report(report.folder)
    assert "generated scenes, teacher, student" not in render_page(with_scenes)
    without = dataclasses.replace(with_scenes, features=None)
    assert "generated scenes, teacher, student" in render_page(without)


def test_hostile_names_are_text(tmp_path):
    columns = (HOSTILE, f"{HOSTILE}`{HOSTILE}`")
    notes = dataclasses.replace(
        NOTES,
        warnings=(HOSTILE, f"`{HOSTILE}`", f"odd ` {HOSTILE}"),
        features=dataclasses.replace(FEATURES, columns=columns, images=HOSTILE),
    )
    probe = dataclasses.replace(
        PROBE, task=HOSTILE, dataset=HOSTILE, metric=HOSTILE, protocol=HOSTILE, command=HOSTILE
    )
    folder = finished_run(
        tmp_path / "run<img src=x onerror=alert(1)>'\"",
        notes=notes,
        name=HOSTILE,
        recipe=HOSTILE,
        config={**CONFIG, HOSTILE: {HOSTILE: HOSTILE}},
        data={"source": HOSTILE, "images": 3, "fingerprint": HOSTILE},
        teacher={"source": HOSTILE, "architecture": HOSTILE, "license": HOSTILE},
        start={"name": HOSTILE},
        metrics={"probe": dataclasses.asdict(probe)},
        licenses={"code": HOSTILE, "start": HOSTILE},
        held_out={
            "start": {"cka": 1},
            "verdict": HOSTILE,
            "outcome": "better",
            "best_step": 1,
            "last_step": 1,
        },
        hardware={"device": HOSTILE, "processes": 1, "seconds": 9},
    )
    with (folder / "metrics.jsonl").open("a") as file:
        names = HOSTILE.replace('"', '\\"')
        file.writelines(f'{{"step": {step}, "{names}": 1}}\n' for step in (30, 31))
    report = read_report(folder)
    other = read_report(finished_run(tmp_path / "other", metrics={}))
    for text in (render_page(report), render_comparison([report, other])):
        page = Page(text)
        assert "script" not in page.tags
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]
        assert all(value.startswith("data:image/") for value in page.values("src"))
        whole = "".join(data for _, data in page.texts)
        assert whole.count("<script>alert(1)</script>") > 10
        assert whole.count("{{ 7*7 }}") == whole.count("<script>alert(1)")


def test_a_hostile_path_is_quoted_in_code_and_commands(tmp_path):
    folder = finished_run(tmp_path / 'a"b; rm -rf $HOME')
    (folder / "export").mkdir()
    (folder / "export" / "pcd_manifest.json").write_text("{}")
    report = read_report(folder)
    assert f"'{folder}'" in report.publish_command
    assert report.probe_command == f"pcd-hub probe LABELLED '{folder}'"
    loaded = {}
    code = report.load_code.split("timm.create_model")[1]
    exec(f"def create(name, **_): return name\nloaded = create{code}", loaded)
    assert loaded["loaded"] == f"local-dir:{folder}/export"


def test_several_runs_are_side_by_side(report, tmp_path):
    config = {**CONFIG, "optim": {"global_batch_size": 64}}
    other = read_report(finished_run(tmp_path / "other", config=config))
    page = Page(render_comparison([report, other]))
    assert page.text("h1") == ["2 runs side by side"]
    assert page.tags.count("svg") == 4
    assert page.tags.count("path") == 8
    styles = [value for tag, name, value in page.attributes if (tag, name) == ("path", "class")]
    assert styles == ["line s0", "line s1"] * 4
    assert page.text("text").count("A") == 4
    assert page.tags.count("img") == 16
    cells = page.text("td")
    assert ("16" in cells, "64" in cells) == (True, True)


def test_the_table_of_values_has_the_first_and_the_last_step(report):
    (_, points), *_ = curve_values(report.curves)
    assert len(points) == 10
    assert (points[0], points[-1]) == ((0.0, 5.0), (19.0, 3.1))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(scheme):
    style = render_style()
    colours = [dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("@media")]
    found = colours[0] if scheme == "light" else colours[1]
    for background in ("page", "box"):
        for name in ("text", "quiet", "link", "warn"):
            assert contrast(found[name], found[background]) >= 4.5, (name, background)
    for number in range(8):
        assert contrast(found[f"c{number}"], found["page"]) >= 4.5, "letters at the curves' ends"
    assert contrast(found["quiet"], found["grid"]) >= 3, "border of the scale"


def render_style():
    return environment().get_template("style.css").render()


def contrast(one, other):
    """Contrast of WCAG 2.1."""
    light, dark = sorted(map(_luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour):
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
