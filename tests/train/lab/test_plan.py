"""Lists of runs: what they may say."""

import pytest
import yaml

from pcd_hub.errors import ConfigError
from pcd_hub.train.lab.options import parse_lab
from pcd_hub.train.lab.plan import read_plan
from tests.train.lab.conftest import changed


def read(file, *arguments):
    return read_plan(file, parse_lab([str(file), *arguments])[0])


def test_rows_differ_from_the_base_as_they_say(tiny_list):
    plan = read(tiny_list, "--images", "a", "b", "--teacher", "timm:x", "--labelled=sets")
    random, pcd, pooled = plan.rows
    assert (random.model, plan.baseline, plan.seeds) == ("random:test_resnet", "pcd", (0, 1))
    assert pcd.config.data.source == ("a", "b")
    assert pooled.config.teacher.source == "timm:x"
    assert (pcd.config.method.targets, pooled.config.method.targets) == ("pixels", "pooled")
    assert pcd.config.optim.weight_decay == 0.05, "the quickstart's"
    assert {pcd.config.student.weights, pooled.config.student.weights} == {"none"}, "not auto"
    (evaluation,) = plan.evaluations
    assert evaluation.config.data.source == "sets/discs"
    assert (
        read(tiny_list, "--seeds", "4,2").seeds
        == read(tiny_list, "--seeds", "4", "2").seeds
        == (4, 2)
    )


def test_the_teacher_is_evaluated_and_the_reference_of_knn(tiny_list):
    knn = {"recipe": "knn", "data": {"source": "hf-disk:sets"}}
    changed(tiny_list, rows={"teacher": {"model": "teacher"}}, evaluations={"classes": knn})
    plan = read(tiny_list, "--teacher=timm:x")
    assert plan.rows[-1].model == "teacher:timm:x"
    assert plan.evaluations[1].config.teacher.source == "timm:x"
    assert plan.evaluations[1].config.data.source == "hf-disk:sets"


def test_another_length_of_a_row_replaces_max_steps(tiny_list):
    changed(tiny_list, rows={"epochs": {"optim.epochs": 3}})
    config = read(tiny_list).rows[-1].config
    assert (config.run.max_steps, config.optim.epochs) == (None, 3)


def test_the_base_may_be_a_file_next_to_the_list(tiny_list):
    (tiny_list.parent / "own.yaml").write_text("method: {queue_length: 7}\nderive: true")
    changed(tiny_list, base={"config": "own.yaml"})
    row = read(tiny_list).rows[1]
    assert row.config.derive
    assert "method.queue_length" in row.given
    assert "optim.clip_grad_norm" not in row.given


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"bases": {}}, "section bases; did you mean 'base'"),
        ({"rows": {}}, "rows: expected at least one"),
        ({"rows": {"a/b": None}}, "rows: 'a/b': expected a name of letters"),
        ({"rows": {"train": None}}, "'train': expected a name"),
        ({"rows": {"x": 3}}, "rows: x 3: expected fields"),
        ({"rows": {"x": {"method.temperatur": 1}}}, "unknown field 'method.temperatur'"),
        ({"rows": {"x": {"method.temperature": -1}}}, "row x: method.temperature -1: expected"),
        ({"rows": {"x": {"run.seed": 1}}}, "row x: run.seed is set for each run by the lab"),
        ({"rows": {"x": {"model": "random:a", "data.hue": 0}}}, "x: expected the name of a model"),
        ({"rows": {"x": {"student.arch": "a,b"}}}, "student.arch a,b: expected one architecture"),
        ({"rows": {"x": {"student.weights": "row:random"}}}, "row: random; expected one of pcd"),
        ({"base": {"config": "quickstar"}}, "base: config quickstar; did you mean 'quickstart'"),
        ({"base": {"run.output_dir": "x"}}, "run.output_dir is set for each run"),
        ({"base": 3}, "base 3: expected fields"),
        ({"seeds": [1, 1]}, "seeds 1 1|seeds .1, 1.: expected different integers"),
        ({"seeds": [-1]}, "expected different integers >= 0"),
        ({"baseline": "pdc"}, "baseline pdc; did you mean 'pcd'"),
        ({"evaluations": {"x": {"recipe": "linear"}}}, "recipe linear; did you mean 'linear_seg"),
        ({"evaluations": {"x": {"recipe": "detect", "model": "m"}}}, "model is set for each run"),
        ({"evaluations": {"x": {"recipe": "knn", "append": "r"}}}, "append is set for each run"),
        ({"evaluations": {"x": {"recipe": "knn", "references": True}}}, "references is set for"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_refused_in_one_line(tiny_list, sections, message):
    ((name, value),) = sections.items()
    old = yaml.safe_load(tiny_list.read_text()).get(name)
    added = old | value if isinstance(old, dict) and isinstance(value, dict) and value else value
    changed(tiny_list, **{name: added}, replace=True)
    with pytest.raises(ConfigError, match=message) as error:
        read(tiny_list)
    assert "\n" not in str(error.value)


def test_no_list_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no list of runs: expected a YAML file"):
        parse_lab([])
    with pytest.raises(ConfigError, match=r"none.yaml: cannot read it \(it is missing"):
        read(tmp_path / "none.yaml")
