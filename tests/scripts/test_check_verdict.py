"""The check of the early verdict: what counts as named and as a false alarm, and real runs."""

import pytest

import check_verdict
from check_verdict import Run, broken_runs, good_runs, is_alarm, is_verdict


def test_the_runs_are_named_apart_and_as_many_as_the_goals_ask_for():
    broken, good = list(broken_runs()), list(good_runs())
    assert len({run.name for run in (*broken, *good)}) == len(broken) + len(good)
    assert len(broken) >= 10
    assert len(good) == 20
    assert all(run.named_by for run in broken)
    assert not any(run.named_by for run in good)


def test_students_start_from_random_weights_as_the_limits_were_chosen(tmp_path):
    for run in (*broken_runs(), *good_runs()):
        if run.config == "quickstart" and "random" not in run.teacher:
            arguments = check_verdict.arguments_of(
                run, folders=["photos"], teacher="timm:resnet18", out=tmp_path, steps=20
            )
            assert "--student.weights=none" in arguments


def test_an_alarm_is_a_verdict_or_a_normalisation_that_does_not_fit():
    assert is_alarm("warning: step 3 of 120, resnet18: flat: no sign of learning")
    assert is_alarm(
        "local-dir:teacher: mean (0, 0, 0) and std (1, 1, 1) do not fit the teacher: ..."
    )
    assert not is_verdict("step 3 of 120, resnet18: 3 images/s")
    assert not is_alarm("local-dir:teacher: the teacher gets images of 32 px, a 1 x 1 feature map")


@pytest.mark.parametrize(
    ("sabotage", "named_by"), [("other images", "paired wrongly"), ("", "paired wrongly")]
)
def test_a_broken_run_ends_after_its_first_tenth(tiny, tmp_path, sabotage, named_by):
    run = Run(name="run", sabotage=sabotage, named_by=named_by)
    arguments = [*tiny, f"--run.output-dir={tmp_path}", "--run.no-store", "--run.max-steps=20"]
    row = check_verdict.train_one(run, arguments, steps=20)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) <= 3
    assert not (tmp_path / "export").exists()
    assert bool(row["named"]) == bool(sabotage)


def test_the_tables_count_what_was_named_and_the_false_alarms(capsys):
    one, other, *_ = broken_runs()
    good, *_ = good_runs()
    check_verdict.show(
        {
            one.name: {"name": one.name, "named": [[2, "a fault"]], "alarms": []},
            other.name: {"name": other.name, "named": [], "alarms": []},
            good.name: {
                "name": good.name,
                "named": [],
                "alarms": [[7, "step 7 of 9: flat"]],
                "last_verdict": "",
            },
        }
    )
    printed = capsys.readouterr().out
    assert "| 2 | a fault |" in printed
    assert "1 of 2 named within the first 10%" in printed
    assert "1 false alarms in 1 runs" in printed
