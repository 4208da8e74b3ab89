"""Scores on held-out images in tiny distillations: nothing changes, and everything resumes."""

import json

import pytest
import torch

from pcd_hub.errors import ConfigError
from pcd_hub.train import distill
from pcd_hub.train.distillation import building
from pcd_hub.train.held_out import held_out as module
from pcd_hub.train.held_out import plateau as rules
from pcd_hub.train.held_out import scores
from pcd_hub.train.held_out.held_out import HeldOut
from pcd_hub.train.held_out.scorer import Scorer
from tests.train.conftest import (
    assert_same,
    checkpoint,
    leave_out_pictures,
    resumed,
    run,
    trace,
)
from tests.train.held_out.conftest import history

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_run_scores_the_start_and_the_student_and_states_them(measured, tmp_path, capsys):
    folder = run(measured, tmp_path / "run")
    found = history(folder)
    assert [line["step"] for line in found] == [0, 2, 4, 6, 8, 10, 12]
    assert set(found[0]) == {"step", "retrieval", "cka", "effective_rank", "loss"}
    assert found[-1]["loss"] < found[0]["loss"]
    record = json.loads((folder / "record.json").read_text())
    assert record["data"]["images"] + record["held_out"]["images"] == 120
    assert "0.08 held out" in record["data"]["fingerprint"]
    stated = record["held_out"]
    assert stated["start"] == {key: found[0][key] for key in stated["start"]}
    assert stated["last"] == {key: found[-1][key] for key in stated["last"]}
    lowest = min(found[1:], key=lambda line: line["loss"])
    assert stated["best_step"] == lowest["step"]
    assert stated["stopped_early"] is False
    table = record["metrics"]["held_out"]
    assert table["images"] == stated["images"]
    assert table["means"]["random weights"] == pytest.approx(found[0]["cka"], abs=0.01)
    sentence = stated["verdict"]
    assert "random weights" in sentence
    assert sentence in capsys.readouterr().out
    card = (folder / "export" / "README.md").read_text()
    assert "agreement with the teacher" in card


@pytest.mark.parametrize("dropout", [False, True])
def test_measuring_changes_nothing_of_the_run(measured, tmp_path, monkeypatch, dropout):
    if dropout:  # draws random numbers in training
        build = building.build_student

        def with_dropout(*arguments):
            grid, start = build(*arguments)
            drop = torch.nn.functional.dropout
            grid.register_forward_hook(lambda module, _, out: drop(out, 0.3, module.training))
            return grid, start

        monkeypatch.setattr(building, "build_student", with_dropout)
    often = run([*measured, "--run.measure-every-steps=1"], tmp_path / "often")
    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "_measure", lambda *_: None)
        patch.setattr(distill, "save_weight", lambda *_, **__: None)
        never = run(measured, tmp_path / "never")
    assert trace(often) == trace(never)
    one, other = (checkpoint(folder, 12) for folder in (often, never))
    for part in ("distiller", "optimizer", "queue", "per_process"):
        assert_same(one[part], other[part])


def test_the_mode_of_every_module_is_restored(measured, tmp_path, monkeypatch):
    """Also of one that stays in eval mode in training."""
    modes = []
    score = Scorer.score

    def spy(self, step):
        frozen = next(m for m in self.distiller.modules() if isinstance(m, torch.nn.BatchNorm2d))
        frozen.eval()
        before = [m.training for m in self.distiller.modules()]
        try:
            return score(self, step)
        finally:
            modes.append((before, [m.training for m in self.distiller.modules()]))

    monkeypatch.setattr(Scorer, "score", spy)
    run([*measured, "--run.max-steps=2"], tmp_path / "run")
    assert len(modes) == 2
    for before, after in modes:
        assert before == after
        assert True in after
        assert False in after


@pytest.fixture(scope="module")
def whole(measured, tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        return run(measured, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("at", [4, 7, 10])
def test_a_resumed_run_has_the_same_scores_and_the_same_best(
    measured, whole, tmp_path, monkeypatch, at
):
    again = resumed(measured, tmp_path / "again", monkeypatch, at=at)
    assert history(again) == history(whole)
    assert_same(checkpoint(again, 12), checkpoint(whole, 12))
    one, other = (torch.load(f / "checkpoints" / "best.pt") for f in (again, whole))
    assert_same(one, other)
    stated = [json.loads((f / "record.json").read_text())["held_out"] for f in (again, whole)]
    assert stated[0] == stated[1]


def flatten(patch):
    """Find a plateau after 8 steps, and decay over the next 4."""
    patch.setattr(module, "plateau", lambda losses: len(losses) >= 4)
    patch.setattr(rules, "DECAY_SHARE", 0.5)


@pytest.fixture
def flat(monkeypatch):
    flatten(monkeypatch)


@pytest.fixture(scope="module")
def ends_early(measured):
    return [*measured, "--run.max-steps=40", "--run.stop-on-plateau"]


@pytest.fixture(scope="module")
def ended_early(ends_early, tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        flatten(patch)
        return run(ends_early, tmp_path_factory.mktemp("ended_early") / "run")


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize("at", [None, 7, 9, 11])
def test_a_plateau_ends_the_run_early_and_a_resumed_run_the_same(
    ends_early, ended_early, tmp_path, monkeypatch, caplog, at
):
    caplog.set_level("INFO")
    arguments, whole, folder = ends_early, ended_early, tmp_path / "run"
    if at is None:
        run(arguments, folder)
    else:
        resumed(arguments, folder, monkeypatch, at=at)
        assert trace(folder) == trace(whole)
        assert history(folder) == history(whole)
        assert_same(checkpoint(folder, 12), checkpoint(whole, 12))
    assert "the run ends after 12 steps instead of 40" in caplog.text
    rates = [line["lr"] for line in trace(folder)]
    assert len(rates) == 12
    assert rates[8:] == pytest.approx([rates[8] * f for f in (1, 0.8536, 0.5, 0.1464)], rel=1e-3)
    record = json.loads((folder / "record.json").read_text())
    stated = record["held_out"]
    assert (stated["stopped_early"], stated["planned_steps"], stated["last_step"]) == (True, 40, 12)
    assert record["steps"] == stated["exported_step"]
    assert record["images_seen"] == 8 * record["steps"]
    assert (folder / "checkpoints" / "step_00000012.pt").exists()
    if at in {None, 11}:  # on the plateau's own schedule, whole or resumed in it
        run(arguments, folder, "--run.resume")
        assert len(trace(folder)) == 12, "it is finished"


@pytest.mark.usefixtures("flat")
def test_a_run_that_ended_early_can_be_made_longer(measured, tmp_path):
    arguments = [*measured, "--run.stop-on-plateau"]
    folder = run([*arguments, "--run.max-steps=40"], tmp_path / "run")
    early = trace(folder)
    run([*arguments, "--run.max-steps=44"], folder, "--run.resume")
    longer = trace(folder)
    assert longer[:12] == early
    assert longer[12]["lr"] > 5 * early[-1]["lr"], "the schedule of 44 steps"
    steps = [line["step"] for line in history(folder)]
    assert steps[:9] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert len(longer) == 27, "a plateau of the scores from step 12 on: 18, and half of it"


@pytest.mark.usefixtures("flat")
def test_a_run_that_no_longer_may_end_early_gets_its_planned_length(measured, tmp_path):
    arguments = [*measured, "--run.max-steps=40"]
    folder = run([*arguments, "--run.stop-on-plateau"], tmp_path / "run")
    assert len(trace(folder)) == 12
    run([*arguments, "--run.no-stop-on-plateau"], folder, "--run.resume")
    assert len(trace(folder)) == 40
    assert not json.loads((folder / "record.json").read_text())["held_out"]["stopped_early"]


@pytest.fixture
def worse_at_the_end(monkeypatch):
    """Destroy the student in the last steps, and count every difference."""
    rate = distill.learning_rate
    monkeypatch.setattr(
        distill, "learning_rate", lambda step, *a: 0.5 if step >= 9 else rate(step, *a)
    )
    monkeypatch.setattr(scores, "NOISE", 0.0)


@pytest.mark.usefixtures("worse_at_the_end")
def test_the_best_weights_are_exported_if_the_last_are_worse(measured, tmp_path):
    folder = run(measured, tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    stated, found = record["held_out"], history(folder)
    assert found[-1]["loss"] > min(line["loss"] for line in found)
    assert stated["exported_step"] == stated["best_step"] == record["steps"] < 12
    assert stated["last_step"] == 12
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == stated["best_step"]
    from safetensors.torch import load_file

    exported = load_file(folder / "export" / "model.safetensors")
    for name, value in exported.items():
        torch.testing.assert_close(value, best["student"][name], rtol=1e-3, atol=1e-4)
    last = checkpoint(folder, 12)["distiller"]
    changed = [not torch.equal(value, last[f"student.model.{n}"]) for n, value in exported.items()]
    assert any(changed)


@pytest.mark.usefixtures("worse_at_the_end")
def test_damaged_best_weights_are_not_exported(measured, tmp_path, monkeypatch, caplog):
    choose = HeldOut.choose

    def damaged(self):
        (self.folder.checkpoints / "best.pt").write_bytes(b"cut off")
        return choose(self)

    monkeypatch.setattr(HeldOut, "choose", damaged)
    folder = run(measured, tmp_path / "run")
    assert "best.pt is damaged" in caplog.text
    stated = json.loads((folder / "record.json").read_text())["held_out"]
    assert stated["exported_step"] == 12


def test_a_student_worse_than_its_start_is_a_warning(measured, tmp_path, monkeypatch, caplog):
    compare = module.compare_with_start
    monkeypatch.setattr(module, "compare_with_start", lambda a, b, **name: compare(b, a, **name))
    monkeypatch.setattr(scores, "NOISE", 0.0)
    folder = run([*measured, "--run.max-steps=40", "--data.image-size=64"], tmp_path / "run")
    stated = json.loads((folder / "record.json").read_text())["held_out"]
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING" and "start" in r.message]
    assert stated["outcome"] == "worse"
    assert "worse than its start" in warning.message
    assert "train longer" in warning.message


def test_a_plateau_needs_held_out_images(measured, tmp_path):
    with pytest.raises(ConfigError, match="needs held-out images, found --data.held-out 0; add"):
        run([*measured, "--data.held-out=0", "--run.stop-on-plateau"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--method.loss=cosine_smooth_l1", "--method.head=linear"],
        ["--method.loss=similarity_kl", "--data.image-size=64", "--method.temperature=0.07"],
        ["--method.targets=pooled"],
        ["--method.targets=pooled", "--method.loss=cosine_smooth_l1"],
        ["--speed.precision=bf16"],
        ["--student.arch=test_vit"],
    ],
)
@pytest.mark.usefixtures("own_precision")
def test_every_loss_and_precision_is_scored(measured, tmp_path, options):
    folder = run([*measured, *options, "--optim.lr-per-256=0.1"], tmp_path / "run")
    found = history(folder)
    assert min(line["loss"] for line in found[1:]) < found[0]["loss"]
