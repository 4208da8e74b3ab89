"""``pcd-hub probe oxford_pets`` and ``benchmark``, on small archives from a server here."""

import json

import pytest

from pcd_hub.data.labelled.published.sets import SETS
from pcd_hub.errors import ConfigError, StudentError
from pcd_hub.train.frozen import probe, published
from pcd_hub.train.frozen.compare import main as compare
from tests.data.labelled.published.drawn_archives import DRAWN, running_server

FAST = ["--data.image-size=32", "--run.seeds=0"]


@pytest.fixture
def server(monkeypatch):
    """Serve all three sets."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running_server() as server:
        for real, archives in DRAWN:
            monkeypatch.setitem(SETS, real.name, server.serve(real, archives()))
        yield server


@pytest.fixture
def evaluated(monkeypatch):
    """Replace the evaluations; return what they were asked to do."""
    calls = []

    def evaluate(arguments):
        calls.append(arguments)
        return [{"units": {"mean IoU": "%"}, "scores": {"resnet18": {"mean IoU": (1.0, 2.0)}}}]

    monkeypatch.setattr("pcd_hub.train.frozen.segmentation_probe.main", evaluate)
    monkeypatch.setattr("pcd_hub.train.frozen.knn.main", evaluate)
    return calls


def test_a_set_is_probed_by_its_name_at_its_own_size(server, evaluated, capsys):
    probe.main(["oxford_pets", "random:test_resnet", "--probe.steps", "3"])
    folder = published.default_place() / "oxford_pets"
    size, options = (
        "--data.image-size=192",
        ["--models", "random:test_resnet", "--probe.steps", "3"],
    )
    start = [f"--data.source={folder}", "--data.test-split=test", size]
    assert evaluated == [[*start, *options]]
    printed = capsys.readouterr().out
    assert ", 1 MB to download\n  licence: CC BY-SA 4.0: huggingface.co/datasets/timm" in printed
    server.requests.clear()
    probe.main(["oxford_pets", "random:test_resnet"])
    assert not server.requests
    assert "to download" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["eurosat", "benchmark"])
def test_a_folder_of_that_name_is_ambiguous(tmp_path, monkeypatch, evaluated, name):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        (tmp_path / name / split).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{name} is a folder here.*; write ./{name} for the"):
        probe.main([name])
    probe.main([f"./{name}"])
    assert evaluated[0][0] == f"--data.source=./{name}"


def test_a_wrong_model_or_option_is_refused_before_the_first_download(server, evaluated):
    with pytest.raises(StudentError, match="resnet_18"):
        probe.main(["benchmark", "random:resnet_18"])
    with pytest.raises(ConfigError, match="steps"):  # of one evaluation, not of the other
        probe.main(["benchmark", "random:test_resnet", "--probe.steps=3"])
    assert not server.requests
    assert not evaluated


def test_the_benchmark_has_a_folder_for_each_set(server, evaluated, tmp_path):
    probe.main(["benchmark", "random:test_resnet", f"--run.output-dir={tmp_path / 'out'}"])
    folders = [call[-1] for call in evaluated]
    assert folders == [f"--run.output-dir={tmp_path / 'out' / name}" for name in SETS]


def test_the_benchmark_makes_one_table_and_appends_all_results(
    server, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    models = ["random:test_resnet", "random:test_vit"]
    tables = probe.main(["benchmark", *models, *FAST, "--append=results.jsonl"])
    labelled = [one["dataset"] for one in tables if one["task"] != "label-free report"]
    assert labelled == ["oxford_pets/test", "eurosat/test", "dtd/test"]
    assert {one["seeds"] for one in tables} == {(0,)}
    printed = capsys.readouterr().out
    head = "| model | oxford_pets: mean IoU (%) | eurosat: k-NN top-1 (%) | dtd: k-NN top-1 (%) |"
    rows = printed.partition(head)[2].split("\n")[2:4]
    assert [row.split(" | ")[0] for row in rows] == [f"| {model}" for model in models]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(models) * len(tables)
    assert all(len(one["data_sha256"]) == 64 for one in lines)
    assert len(compare(["results.jsonl"])) == len(tables)


def test_the_sets_are_listed(capsys):
    sets = probe.main(["--list-sets"])
    assert [one["name"] for one in sets] == list(SETS)
    assert json.dumps(sets)
    printed = capsys.readouterr().out
    assert "| eurosat | EuroSAT (RGB)" in printed
    assert f"They are kept in {published.default_place()}" in printed


def test_a_model_without_a_score_leaves_its_cell_empty():
    one = {"units": {"mean IoU": "%"}, "scores": {"a": {"mean IoU": (50.0, 52.0)}}}
    two = {"units": {"top-1": "%"}, "scores": {"b": {"top-1": (70.0,)}}}
    assert published.summary({"pets": [one], "land": [two]}).splitlines()[2:] == [
        "| a | 51.00 ± 1.41 |  |",
        "| b |  | 70.00 |",
    ]


def test_a_misspelt_set_is_suggested():
    with pytest.raises(ConfigError, match="did you mean 'oxford_pets'"):
        probe.main(["oxfordpets"])
