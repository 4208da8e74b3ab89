"""``pcd-hub probe --append`` and ``--references``, by the command line; with a loopback Hub."""

import json
import re

import pytest
import timm

from pcd_hub.evaluate.results import Evaluation
from pcd_hub.evaluate.results_file.file import read_results
from pcd_hub.train.frozen import references
from pcd_hub.weights.manifest import sha256, weights_sha256
from tests.cli.outcome import outcome
from tests.hub.server import LoopbackHub
from tests.hub.surroundings import go_offline, point_client_at, settle
from tests.weights.making import exported, files_of

SMALL = ("--data.image-size=32", "--run.seeds", "0", "1")
STEPS = ("--probe.steps=2",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of the commands."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_each_model_is_one_line_that_compare_reads(segmentation, folder, tmp_path, capsys):
    export = exported(tmp_path / "run" / "export")
    command = ("probe", str(segmentation), "random:test_resnet", str(tmp_path / "run"))
    done = outcome(capsys, *command, "--append", "results.jsonl", *STEPS, *SMALL)
    assert done.code == 0, done.err
    one, two = read_results(folder / "results.jsonl").values()
    table = Evaluation.load(folder / "runs" / "linear_seg")
    assert (one.model, one.weights_sha256) == ("random:test_resnet", None)
    assert (two.model, two.weights_sha256) == (f"local-dir:{export}", weights_sha256(export))
    assert one.architecture == two.architecture == "test_resnet"
    assert one.metrics["mean IoU"].values == table.scores["random:test_resnet"]["mean IoU"]
    assert (one.metrics["mean IoU"].n, one.seeds) == (2, (0, 1))
    assert one.data_sha256 == table.data_sha256
    assert one.versions["timm"] == timm.__version__
    assert "pcd_hub" in one.versions
    assert one.created == table.details["created"]
    shown = outcome(capsys, "compare", "results.jsonl", "--json")
    (compared,) = json.loads(shown.out)
    assert compared["scores"] == json.loads(json.dumps(table.scores))
    assert compared["protocol_version"] == 1
    again = outcome(capsys, "compare", "results.jsonl", "runs")
    assert again.out.count(f"| local-dir:{export} |") == 1, "the line is a copy of the run"


def test_a_second_result_of_one_model_is_refused_before_it_is_computed(
    segmentation, folder, capsys
):
    command = ("probe", str(segmentation), "random:test_resnet", "--append=results.jsonl")
    assert outcome(capsys, *command, *STEPS, *SMALL).code == 0
    before = (folder / "results.jsonl").read_bytes()
    refused = outcome(capsys, *command, *STEPS, *SMALL)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert re.search("results.jsonl, line 1 has a result of random:test_resnet on ", refused.err)
    assert (folder / "results.jsonl").read_bytes() == before
    assert [path.name for path in (folder / "runs").glob("linear_seg*")] == ["linear_seg"]
    other = outcome(capsys, *command, "--probe.steps=3", *SMALL)
    assert other.code == 0, "another protocol"
    assert outcome(capsys, "compare", "results.jsonl").out.count("| model |") == 2


def test_a_wrong_file_is_refused_before_anything_is_computed(segmentation, folder, capsys):
    command = ("probe", str(segmentation), "random:test_resnet", *STEPS, *SMALL)
    refused = outcome(capsys, *command, "--append=results.csv")
    assert (refused.code, refused.err) == (
        2,
        "error: --append results.csv: expected a file whose name ends in .jsonl\n",
    )
    (folder / "results.jsonl").write_text("torn")
    refused = outcome(capsys, *command, "--append=results.jsonl")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "results.jsonl, line 1 is not strict JSON" in refused.err
    assert not (folder / "runs").exists()


def test_neighbours_and_agreement_are_a_line_each(classes, folder, capsys):
    command = ("probe", str(classes), "random:test_resnet", "--append=results.jsonl")
    done = outcome(capsys, *command, "--report.num-images=7", "--report.retrieval-k=1", *SMALL)
    assert done.code == 0, done.err
    one, two = read_results(folder / "results.jsonl").values()
    assert (one.task, two.task) == ("image classification", "label-free report")
    assert one.architecture == two.architecture == "test_resnet"
    assert one.data_sha256 != two.data_sha256
    assert len(json.loads(outcome(capsys, "compare", "results.jsonl", "--json").out)) == 2


def test_a_folder_of_timm_is_known_by_its_bytes(segmentation, folder, tmp_path, capsys):
    export = exported(tmp_path / "export")
    (export / "pcd_manifest.json").unlink()
    command = ("probe", str(segmentation), "--append=results.jsonl", *STEPS, *SMALL, "--models")
    assert outcome(capsys, *command, f"local-dir:{export}").code == 0
    (line,) = read_results(folder / "results.jsonl").values()
    assert line.weights_sha256 == sha256(export / "model.safetensors")
    copy = export.rename(tmp_path / "copy")
    refused = outcome(capsys, *command, f"local-dir:{copy}")
    assert refused.err.startswith("error: results.jsonl, line 1 has a result of local-dir:")


def test_a_finished_model_is_in_the_file_when_the_next_one_fails(
    segmentation, folder, tmp_path, capsys
):
    (broken := tmp_path / "broken").mkdir()
    command = ("probe", str(segmentation), "random:test_resnet", f"local-dir:{broken}")
    failed = outcome(capsys, *command, "--append=results.jsonl", *STEPS, *SMALL)
    assert failed.code == 1
    assert [one.model for one in read_results(folder / "results.jsonl").values()] == [
        "random:test_resnet"
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with the first of the references; the others are missing."""
    model = timm.create_model("resnet18.a1_in1k")
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("timm/resnet18.a1_in1k", files_of(tmp_path / "timm"))
        point_client_at(hub, monkeypatch)
        yield hub
        settle()


def test_reachable_references_are_rows_and_the_others_are_named(segmentation, folder, hub, capsys):
    command = ("probe", str(segmentation), "random:test_resnet", "--append=results.jsonl")
    done = outcome(capsys, *command, "--references", *STEPS, *SMALL)
    assert done.code == 0, done.err
    (line,) = [one for one in done.err.splitlines() if one.startswith("references left out: ")]
    missing = "resnet18.fb_ssl_yfcc100m_ft_in1k, convnext_tiny.dinov3_lvd1689m"
    assert line.startswith(f"references left out: {missing} (401 Client Error")  # as for private
    table = Evaluation.load(folder / "runs" / "linear_seg")
    assert list(table.scores) == ["random:test_resnet", "resnet18.a1_in1k"]
    assert list(table.details["references_left_out"]) == list(references.REFERENCES[1:])


def test_a_reference_in_the_file_is_not_computed_again(segmentation, folder, hub, capsys):
    start = ("probe", str(segmentation), "--append=results.jsonl", "--references", *STEPS, *SMALL)
    first = outcome(capsys, *start, "--models", "resnet18.a1_in1k")
    assert first.code == 0, first.err
    requests = len([call for call in hub.requests if "a1_in1k" in call.path])
    second = outcome(capsys, *start, "--models", "random:test_resnet")
    assert second.code == 0, second.err
    assert "linear segmentation probe: resnet18.a1_in1k in results.jsonl already" in second.err
    assert len([call for call in hub.requests if "a1_in1k" in call.path]) == requests
    models = [one.model for one in read_results(folder / "results.jsonl").values()]
    assert models == ["resnet18.a1_in1k", "random:test_resnet"]


def test_a_reference_is_scored_in_the_evaluation_that_lacks_it(classes, folder, hub, capsys):
    command = ("probe", str(classes), "--append=results.jsonl", "--report.num-images=7", *SMALL)
    command += ("--report.retrieval-k=1", "--models")
    assert outcome(capsys, *command, "resnet18.a1_in1k").code == 0
    first, second = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text(first)
    done = outcome(capsys, *command, "random:test_resnet", "--references")
    assert done.code == 0, done.err
    assert "image classification: resnet18.a1_in1k in results.jsonl already" in done.err
    found = [(one.task[:5], one.model) for one in read_results(folder / "results.jsonl").values()]
    assert found == [
        ("image", "resnet18.a1_in1k"),
        ("image", "random:test_resnet"),
        ("label", "random:test_resnet"),
        ("label", "resnet18.a1_in1k"),
    ]
    assert json.loads(second)["task"] == "label-free report"


def test_without_a_network_all_references_are_named_in_one_line(
    segmentation, folder, monkeypatch, capsys
):
    go_offline(monkeypatch)
    command = ("probe", str(segmentation), "random:test_resnet", "--references")
    done = outcome(capsys, *command, *STEPS, *SMALL)
    assert done.code == 0, done.err
    (line,) = [one for one in done.err.splitlines() if one.startswith("references left out: ")]
    assert all(name in line for name in references.REFERENCES)
    assert list(Evaluation.load(folder / "runs" / "linear_seg").scores) == ["random:test_resnet"]


def test_a_reference_in_the_cache_needs_no_network(hub, monkeypatch, capsys):
    assert references.reachable_references([], image_size=64)[0] == ["resnet18.a1_in1k"]
    go_offline(monkeypatch)
    assert references.reachable_references([], image_size=64)[0] == ["resnet18.a1_in1k"]
    assert references.reachable_references(references.REFERENCES, image_size=64) == ([], {})
    assert capsys.readouterr().err.count("references left out: ") == 2


def test_the_references_are_models_of_timm():
    for name in references.REFERENCES:
        assert name in timm.list_pretrained(f"{name.partition('.')[0]}.*")
