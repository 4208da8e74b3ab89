import subprocess

from pcd_hub.train.run_folder import provenance
from pcd_hub.train.run_folder.folder import new_folder


def test_dirty_means_the_code_and_a_run_hides_itself(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def dirty_with(name, text="new"):
        file = tmp_path / name
        before = file.read_text() if file.exists() else None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        dirty = provenance.git_state()["dirty"]
        file.unlink() if before is None else file.write_text(before)
        return dirty

    for name in ("recipes/distill.py", "pcd_hub/__init__.py", "pyproject.toml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("code")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.git_state() == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    for name in ("recipes/distill.py", "recipes/mine.py", "pcd_hub/a/b.py", "pyproject.toml"):
        assert dirty_with(name), name
    for name in ("README.md", "wandb/run/x", "dry-run/x/README.md", "mine.txt"):
        assert not dirty_with(name), name
    folder = new_folder(tmp_path / "recipes" / "out", "x")
    (folder / "metrics.jsonl").write_text("")
    assert not provenance.git_state()["dirty"]
    assert git("status", "--porcelain") == ""
