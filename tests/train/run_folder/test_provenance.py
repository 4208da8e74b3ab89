import hashlib
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
        dirty = provenance.code_state()["dirty"]
        file.unlink() if before is None else file.write_text(before)
        return dirty

    for name in ("recipes/distill.py", "pcd_hub/__init__.py", "pyproject.toml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("code")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.code_state() == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    for name in ("recipes/distill.py", "recipes/mine.py", "pcd_hub/a/b.py", "pyproject.toml"):
        assert dirty_with(name), name
    for name in ("README.md", "wandb/run/x", "dry-run/x/README.md", "mine.txt"):
        assert not dirty_with(name), name
    folder = new_folder(tmp_path / "recipes" / "out", "x")
    (folder / "metrics.jsonl").write_text("")
    assert not provenance.code_state()["dirty"]
    assert git("status", "--porcelain") == ""


def test_an_environment_in_somebodys_checkout_has_not_their_commit(tmp_path, monkeypatch):
    (tmp_path / "site" / "pcd_hub").mkdir(parents=True)
    (tmp_path / "site" / "pcd_hub" / "__init__.py").write_text("")
    (tmp_path / "theirs.py").write_text("")
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for arguments in (["init", "-q"], ["add", "theirs.py"], ["commit", "-qm", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path / "site")
    assert provenance.code_state() == {"commit": None, "dirty": None}


def test_an_installed_wheel_is_identified_by_its_files(tmp_path, monkeypatch):
    package, facts = tmp_path / "pcd_hub", tmp_path / "pcd_hub-9.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").write_text("code")
    (package / "a.py").write_text("more")
    lines = [
        f"pcd_hub/{name},sha256={provenance._hash(package / name, 'sha256')},4"
        for name in ("__init__.py", "a.py")
    ]
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: pcd_hub\nVersion: 9\n")
    (facts / "RECORD").write_text("\n".join([*lines, "pcd_hub-9.dist-info/RECORD,,"]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    clean = provenance.code_state()
    text = "".join(line.rpartition(",")[0] + "\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert clean == {"commit": None, "wheel_sha256": digest, "dirty": False}
    (package / "a.py").write_text("edited")
    assert provenance.code_state() == clean | {"dirty": True}
    (package / "a.py").unlink()
    assert provenance.code_state()["dirty"]
