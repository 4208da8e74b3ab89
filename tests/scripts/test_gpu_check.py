"""The check of a GPU: limits of its parts, its report, and the whole of it on a CPU."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import timm

import benchmark
import gpu_check
import gpu_check_output
import gpu_check_parts
from pcd_hub.train.own_images.arguments import parse_distill

ABSENT = ("datasets", "pycocotools", "beartype", "imagecodecs")
"""Libraries that a machine may lack."""

WITHOUT = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {ABSENT!r}
        return None if absent else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def options(*arguments: str, output_dir: Path = Path("out")) -> argparse.Namespace:
    return gpu_check.build_parser().parse_args([f"--output-dir={output_dir}", *arguments])


@pytest.fixture
def parts(monkeypatch):
    """Replace the parts by short programs: name, minutes, Python code."""

    def replace(*programs: tuple[str, float, str]) -> None:
        made = [
            gpu_check.Part(
                name=name, minutes=minutes, command=lambda *_, code=code: ["-c", code, str(_[1])]
            )
            for name, minutes, code in programs
        ]
        monkeypatch.setattr(gpu_check, "PARTS", tuple(made))

    return replace


MACHINE = """
import json, pathlib, sys
facts = {"device": {"type": "cuda", "name": "G"}}
pathlib.Path(sys.argv[1], "result.json").write_text(json.dumps(facts))
"""


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(tmp_path, parts, capsys):
    parts(
        ("machine", 1, MACHINE),
        ("step at 224 px", 1, "print('hello')\nraise SystemExit('no | memory')"),
        ("data", 0.01, "import time\nprint('begins', flush=True)\ntime.sleep(60)"),
        ("tests", 1, "print('fine')"),
        ("training", float("inf"), "pass"),
    )
    started = time.monotonic()
    with pytest.raises(SystemExit, match="failed: step at 224 px, data"):
        gpu_check.main([f"--output-dir={tmp_path / 'out'}"])
    assert time.monotonic() - started < 30
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"]
    assert [part["status"] for part in found.values()] == [
        "ok",
        "failed: exit code 1: no | memory",
        "failed: stopped at its limit of 1 s",
        "ok",
        "ok",
    ]
    log = (tmp_path / "out" / "gpu_check.log").read_text()
    assert all(word in log for word in ("hello", "no | memory", "begins", "fine"))
    lines = (tmp_path / "out" / "gpu_check.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1, "one table"
    assert "| step at 224 px | failed: exit code 1: no / memory |" in capsys.readouterr().out


def is_running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_all_processes_of_a_part_end_with_it(tmp_path):
    code = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
time.sleep(100)
"""
    status, output = gpu_check.run_limited(
        [sys.executable, "-c", code], 2, tmp_path / "output.txt", "cpu"
    )
    assert status == "failed: stopped at its limit of 2 s"
    deadline = time.monotonic() + 20
    while is_running(int(output)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_gpu_nothing_of_its_size_is_run(tmp_path, parts):
    parts(("machine", 1, MACHINE.replace("cuda", "cpu")), ("tests", 1, "raise SystemExit(1)"))
    with pytest.raises(SystemExit, match="failed: machine"):
        gpu_check.main([f"--output-dir={tmp_path}"])
    table = (tmp_path / "gpu_check.md").read_text()
    assert "PyTorch finds no CUDA device; use --device cpu --tiny" in table
    assert "tests" not in table


def test_most_of_two_minutes_are_left_for_the_training():
    assert sum(part.minutes for part in gpu_check.PARTS[:-1]) <= 6
    assert gpu_check.PARTS[-1].name == "training"
    part = gpu_check.PARTS[-1]
    late = gpu_check.run_part(part, options(), Path("nowhere"), -1.0, sys.stdout)
    assert late["status"] == "skipped: no time was left"


@pytest.mark.parametrize("tiny", [[], ["--tiny"]])
@pytest.mark.parametrize("images", [False, True])
def test_every_command_is_accepted_by_what_it_calls(tmp_path, tiny, images):
    given = [*tiny, *([f"--images={tmp_path}", "--teacher=local-dir:t"] if images else [])]
    for part in gpu_check.PARTS:
        command = part.command(options(*given), tmp_path, 120.0)
        match command:
            case ["-m", "pcd_hub", "distill", *arguments]:
                name, config, _ = parse_distill(arguments)
                assert name == ("own_images" if images else "quickstart")
                assert not config.run.store
                if not tiny:
                    assert config.run.hours == pytest.approx(90 / 3600, rel=1e-3)
                    assert config.run.max_steps is None
                assert config.teacher.source == ("local-dir:t" if images else "quickstart")
            case [script, *arguments] if script.endswith("benchmark.py"):
                parsed = benchmark.build_parser().parse_args(arguments)
                assert parsed.out == tmp_path / "result.json"
                assert parsed.batch_size == (4 if tiny else 256)
            case [script, name, folder, *_]:
                assert script.endswith("gpu_check_parts.py")
                assert (name, folder) == (part.name, str(tmp_path))


def test_a_run_is_packed_into_pieces_that_join(tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    (out / "student.tar.07").write_text("of an earlier check")
    for name in ("export/model.safetensors", "checkpoints/step.pt", "pictures/a.png"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_bytes(os.urandom(70_000))
    monkeypatch.setattr(gpu_check_output, "FILE_BYTES", 40_000)
    packed = gpu_check_output.pack_run(run, out)
    assert packed["files"] == sorted(path.name for path in out.iterdir())
    assert len(packed["files"]) == 4
    assert all(path.stat().st_size <= 40_000 for path in out.iterdir())
    subprocess.run(["bash", "-c", packed["join"]], cwd=out, check=True)
    joined = out / "student"
    weight = "export/model.safetensors"
    assert (joined / weight).read_bytes() == (run / weight).read_bytes()
    assert (joined / "pictures").exists()
    assert not (joined / "checkpoints").exists()
    monkeypatch.setattr(gpu_check_output, "FILE_BYTES", 20_000)
    assert len(gpu_check_output.pack_run(run, out)["files"]) == 5, "without the pictures"
    monkeypatch.setattr(gpu_check_output, "FILE_BYTES", 10_000)
    assert gpu_check_output.pack_run(run, out) == {"files": [], "note": "not packed: 0 MiB"}
    assert not list(out.glob("student.tar.*"))
    assert gpu_check_output.pack_run(tmp_path / "none", out)["note"] == "no run"


def test_a_result_that_lacks_something_is_named():
    part = {"status": "ok", "seconds": 1.0, "result": {"step": {}}}
    report = {"parts": {"step at 224 px": part}, "student": {"files": []}}
    assert "incomplete result (KeyError: 'variants')" in gpu_check_output.table(report)


def test_tests_for_a_gpu_exist_and_are_skipped_without_one(tmp_path):
    files = [Path(path).name for path in gpu_check_parts.gpu_test_files()]
    assert {"test_loss.py", "test_devices.py", "test_speed.py"} <= set(files)


@pytest.mark.timeout(900)
def test_the_whole_check_on_a_cpu_without_what_a_machine_may_lack(tmp_path):
    site, out = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WITHOUT)
    script = str(Path(gpu_check.__file__))
    command = [sys.executable, script, f"--output-dir={out}", "--device=cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--minutes=40"],
        cwd=tmp_path,
        # As in CI: options for another run, which pytest would refuse here.
        env=os.environ | {"PYTHONPATH": str(site), "PYTEST_ADDOPTS": f"--basetemp={tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    log = (out / "gpu_check.log").read_text()
    assert done.returncode == 0, done.stderr + log[-6000:]
    files = sorted(path.name for path in out.iterdir())
    assert files == ["gpu_check.json", "gpu_check.log", "gpu_check.md", "student.tar.00"]
    report = json.loads((out / "gpu_check.json").read_text())
    parts = report["parts"]
    assert [part["status"] for part in parts.values()] == ["ok"] * 6
    assert parts["machine"]["result"]["missing"] == []
    assert parts["machine"]["result"]["matmul_flop_per_s"]["float32"] > 1e8
    row = parts["step at 224 px"]["result"]["step"]["variants"]["recipe"]
    assert 0 < row["share_of_matmul_rate"] < 1
    tests = parts["tests"]["result"]["tests"]
    assert {test["outcome"] for test in tests} == {"skipped"}
    assert len(tests) > 6
    assert parts["training"]["result"]["steps"] == 12
    assert "incomplete" not in (out / "gpu_check.md").read_text()
    subprocess.run(["tar", "-xf", str(out / "student.tar.00"), "-C", str(tmp_path)], check=True)
    export = tmp_path / "student" / "export"
    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert model.num_classes == 0
