import errno
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import timm
import torch

import pcd_hub
from pcd_hub.errors import StudentError, WeightError
from pcd_hub.models.timm_loading import create_pretrained
from pcd_hub.weights import manifest, store
from pcd_hub.weights.create import read_by_name
from pcd_hub.weights.export import check_exportable, export_weight
from pcd_hub.weights.record import WeightRecord
from tests.stress import store_campaign
from tests.weights.making import exported, filled, flip, record, rewritten

NAME = "test_resnet.pcd"


def test_a_weight_is_found_under_its_name(tmp_path):
    assert store.where(NAME) is None
    store.add(NAME, exported(tmp_path / "export"))
    assert pcd_hub.where(NAME) == (store.home() / NAME).resolve()
    assert read_by_name(NAME)
    assert sorted(p.name for p in store.where(NAME).iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "pca.png",
        "pcd_manifest.json",
    ]


def test_the_home_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "elsewhere"))
    assert store.home() == tmp_path / "elsewhere"
    monkeypatch.delenv("PCD_HUB_HOME")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert store.home() == tmp_path / "hf" / "pcd_hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.home() == tmp_path / "cache" / "pcd_hub"


def test_the_newer_weight_replaces_the_older_which_is_kept(tmp_path):
    first = store.add(NAME, filled(1.0, tmp_path / "one"))
    second = store.add(NAME, filled(2.0, tmp_path / "two"))
    assert store.where(NAME) == second
    manifest.verify(first)


def test_an_intact_copy_is_not_added_again(tmp_path):
    export = filled(1.0, tmp_path / "one")
    first = store.add(NAME, export)
    assert store.replace(NAME, export) is None
    assert store.where(NAME) == first
    flip(first / "model.safetensors")
    assert store.replace(NAME, export) == first
    manifest.verify(store.where(NAME))


def test_a_home_that_may_not_be_entered_is_a_warning_not_an_error(tmp_path, monkeypatch, caplog):
    class Closed(type(Path())):
        def stat(self, **_):
            raise PermissionError(13, "Permission denied")

    monkeypatch.delenv("PCD_HUB_HOME")
    monkeypatch.setattr(store, "home", lambda: Closed(tmp_path / "closed" / "pcd_hub"))
    assert (store.where(NAME), store.names(), pcd_hub.where(NAME)) == (None, [], None)
    assert caplog.text.count("so no local weight is found; set PCD_HUB_HOME") == 1


def test_a_mistyped_tag_is_named():
    with pytest.raises(WeightError, match="mydata; did you mean 'resnet18.pcd'"):
        store.check_name("resnet18.pdc")
    with pytest.raises(WeightError, match="mydata$"):
        store.check_name("resnet18.a1_in1k")
    with pytest.raises(WeightError, match="mydata$"):
        store.check_name("resnet18\x1b.pcd")


def test_old_versions_go_after_the_grace_period(tmp_path):
    export = exported(tmp_path / "export")
    folders = [store.add(NAME, export) for _ in range(6)]
    assert all(folder.exists() for folder in folders), "within the grace period all stay"
    for folder in folders[:5]:
        os.utime(folder, (time.time() - 3600,) * 2)
    last = store.add(NAME, export)
    left = sorted((store.home() / ".versions" / NAME).iterdir())
    assert last in left
    assert len(left) == 4


def test_every_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, named = set(), {}
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def watched_replace(source, target):
        named[Path(target).name] = os.lstat(source).st_ino in flushed
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    folder = store.add(NAME, exported(tmp_path / "export"))
    assert all(named[path.name] for path in folder.iterdir())


def versions() -> list[Path]:
    return sorted((store.home() / ".versions" / NAME).iterdir())


def test_a_save_that_finds_no_room_leaves_nothing_and_says_what_stands(tmp_path, monkeypatch):
    export = exported(tmp_path / "export")
    copy = shutil.copyfile

    def full(source, target):
        if Path(source).name == "model.safetensors":
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(
        WeightError, match="No space left on device; no weight has that name.*PCD_HUB_HOME"
    ):
        store.add(NAME, export)
    assert versions() == []
    monkeypatch.undo()
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "store"))
    folders = [store.add(NAME, export) for _ in range(4)]
    monkeypatch.setattr("shutil.copyfile", full)
    for _ in range(3):
        with pytest.raises(
            WeightError, match=r"cannot save .*test_resnet.pcd: No space left.*is unchanged"
        ):
            store.add(NAME, export)
    assert versions() == sorted(folders)
    assert store.where(NAME) == folders[-1]


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    export = exported(tmp_path / "export")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.add(NAME, export)
    assert versions() == []


@pytest.mark.parametrize("step", ["symlink", "replace"])
def test_a_name_that_cannot_be_set_leaves_the_weight_that_had_it(tmp_path, monkeypatch, step):
    first = store.add(NAME, filled(1.0, tmp_path / "one"))
    second = filled(2.0, tmp_path / "two")
    done = getattr(os, step)

    def full(source, target):
        if Path(target).parent == store.home():
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return done(source, target)

    monkeypatch.setattr(os, step, full)
    with pytest.raises(WeightError, match="Disk quota exceeded; .* is unchanged"):
        store.add(NAME, second)
    assert versions() == [first]
    assert store.where(NAME) == first
    assert sorted(path.name for path in store.home().iterdir()) == [".versions", NAME]


def test_another_users_weight_in_an_open_store_is_replaced(tmp_path, monkeypatch):
    def no_right(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    store.add(NAME, filled(1.0, tmp_path / "one"))
    monkeypatch.setattr(os, "utime", no_right)  # as of a folder that is another user's
    second = store.add(NAME, filled(2.0, tmp_path / "two"))
    assert store.where(NAME) == second


def test_another_users_weight_in_a_sticky_store_is_refused_at_once(tmp_path, monkeypatch):
    export = exported(tmp_path / "export")
    first = store.add(NAME, export)
    store.home().chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    store.check_can_add("test_vit.pcd")
    for refused in (lambda: store.check_can_add(NAME), lambda: store.add(NAME, export)):
        with pytest.raises(WeightError, match=r"test_resnet.pcd belongs to another user.*1777"):
            refused()
    assert versions() == [first]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    store.check_can_add(NAME)


def no_right_to_link(source, target):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_without_links_a_name_is_a_text_file_that_leads_to_the_weight(tmp_path, monkeypatch):
    linked = store.add(NAME, filled(1.0, tmp_path / "one"))
    assert (store.home() / NAME).is_symlink()
    monkeypatch.setattr(os, "symlink", no_right_to_link)
    store.check_can_add(NAME)
    second = store.add(NAME, filled(2.0, tmp_path / "two"))
    assert (store.home() / NAME).read_text() == f".versions/{NAME}/{second.name}"
    assert pcd_hub.where(NAME) == second.resolve()
    assert read_by_name(NAME)
    [listed] = pcd_hub.list_weights()
    assert (listed.name, listed.license, listed.folder) == (NAME, "apache-2.0", second)
    third = store.add(NAME, filled(3.0, tmp_path / "three"))
    assert store.where(NAME) == third
    monkeypatch.undo()
    monkeypatch.setenv("PCD_HUB_HOME", str(linked.parents[2]))
    fourth = store.add(NAME, filled(4.0, tmp_path / "four"))
    assert (store.home() / NAME).is_symlink()
    assert store.where(NAME) == fourth


@pytest.mark.parametrize(
    "text", ["", "/etc", "../x", ".versions/other.pcd/1", ".versions/test_resnet.pcd/../..", "\xff"]
)
def test_a_text_file_that_leads_elsewhere_is_no_weight(text):
    store.home().mkdir()
    (store.home() / NAME).write_text(text, encoding="latin-1")
    assert store.where(NAME) is None
    assert [weight.license for weight in pcd_hub.list_weights()] == ["unreadable"]


def test_a_link_that_leads_to_itself_is_one_line():
    store.home().mkdir()
    (store.home() / NAME).symlink_to(NAME)
    with pytest.raises(WeightError, match=r"test_resnet.pcd leads to itself; remove it"):
        store.where(NAME)


def test_half_copies_push_out_no_whole_version_and_go_after_the_grace_period(tmp_path):
    export = exported(tmp_path / "export")
    whole = [store.add(NAME, export) for _ in range(4)]
    half = [folder.with_name(f"2099{number}") for number, folder in enumerate(whole)]
    for folder in half:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    young = folder.with_name("20999")
    shutil.copytree(half[0], young)
    for age, folder in enumerate((*half, *reversed(whole))):
        for path in (folder / "model.safetensors", folder):
            os.utime(path, (time.time() - 3600 - age,) * 2)
    os.utime(young, (1, 1))  # but its file is still written to
    last = store.add(NAME, export)
    assert versions() == sorted([*whole[1:], young, last])


def test_a_kill_in_the_midst_of_the_manifest_leaves_no_whole_version(tmp_path):
    export = exported(tmp_path / "export")
    process = multiprocessing.get_context("spawn").Process(
        target=_die_in_the_manifest, args=(export,)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    [half] = versions()
    assert (half / "model.safetensors").is_file()
    assert not (half / "pcd_manifest.json").exists()


def _die_in_the_manifest(export: Path) -> None:
    copy = shutil.copyfile

    def die(source, target):
        if Path(source).name == "pcd_manifest.json":
            Path(target).write_bytes(Path(source).read_bytes()[:100])
            os._exit(9)
        copy(source, target)

    shutil.copyfile = die
    store.add(NAME, export)


def test_a_plain_folder_is_a_bundle(tmp_path, monkeypatch):
    exported(tmp_path / "bundle" / NAME)
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "bundle"))
    assert store.where(NAME) == tmp_path / "bundle" / NAME
    assert read_by_name(NAME)
    with pytest.raises(WeightError, match="plain folder"):
        store.add(NAME, exported(tmp_path / "other"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_flipped_bit_is_seen(tmp_path, name):
    folder = store.add(NAME, exported(tmp_path / "export"))
    flip(folder / name)
    with pytest.raises(WeightError, match=rf"{name} has sha256 .* get it again"):
        read_by_name(NAME)


def test_a_short_and_a_missing_file_are_seen(tmp_path):
    folder = store.add(NAME, exported(tmp_path / "export"))
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(WeightError, match="has 1000 bytes"):
        read_by_name(NAME)
    (folder / "config.json").unlink()
    with pytest.raises(WeightError, match=r"config.json is missing"):
        manifest.verify(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 99, "files": []}', '{"schema": 1, "files": 3}']
)
def test_a_damaged_manifest_is_refused(tmp_path, text):
    folder = store.add(NAME, exported(tmp_path / "export"))
    (folder / "pcd_manifest.json").write_text(text)
    with pytest.raises(WeightError, match="pcd_manifest.json"):
        read_by_name(NAME)


def test_a_manifest_may_not_point_outside(tmp_path):
    folder = exported(tmp_path / "export")
    manifest = json.loads((folder / "pcd_manifest.json").read_text())
    manifest["files"].append({"path": "../secret", "size": 1, "sha256": "0" * 64})
    (folder / "pcd_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightError, match="'../secret' is not a file of a weight"):
        store.add(NAME, folder)


@pytest.mark.parametrize(
    "name", ["resnet18", "../x.pcd", "a/b.pcd", "resnet18.pcd-2", "Resnet.pcd", ""]
)
def test_odd_names_are_refused(name):
    with pytest.raises(WeightError, match="not a weight's name"):
        store.where(name)


def test_a_kill_between_write_and_rename_leaves_the_old_weight(tmp_path):
    first = store.add(NAME, filled(1.0, tmp_path / "one"))
    second = filled(2.0, tmp_path / "two")
    process = multiprocessing.get_context("spawn").Process(
        target=_die_before_rename, args=(second,)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list((store.home() / ".versions" / NAME).iterdir())) == 2, "it died after the copy"
    assert store.where(NAME) == first
    assert read_by_name(NAME)
    store.add(NAME, second)
    assert store.where(NAME) != first


def _die_before_rename(export: Path) -> None:
    store._point = lambda path, folder: os._exit(9)
    store.add(NAME, export)


@pytest.mark.stress
def test_two_writers_and_a_reader_never_meet_half_a_weight(tmp_path, monkeypatch):
    monkeypatch.setattr(store_campaign, "NAMES", (NAME,))
    counts = store_campaign.campaign(3, 4.0, tmp_path)
    assert set(counts) == {"save", "create", "plain", "read", "fetch", "where", "list_all"}


# Export.


def test_export_is_all_or_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pcd_hub.weights.export.write_manifest", fail)
    with pytest.raises(OSError, match="disk full"):
        exported(tmp_path / "run" / "export")
    assert list((tmp_path / "run").iterdir()) == []


def test_export_takes_channels_last_weights(tmp_path):
    model = timm.create_model("test_resnet", num_classes=0).to(memory_format=torch.channels_last)
    folder = exported(tmp_path / "export", model=model)
    again = create_pretrained(f"local-dir:{folder}")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_config_carries_our_facts_and_nobody_elses(tmp_path):
    config = json.loads((exported(tmp_path / "e", "resnet18") / "config.json").read_text())
    assert config["architecture"] == "resnet18"
    assert config["num_classes"] == 0
    assert config["model_args"] == {}, "transformers cannot write back what has none"
    assert config["pretrained_cfg"]["tag"] == "pcd"
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    assert "a1_in1k" not in json.dumps(config)
    assert config["pcd"]["record"] == "pcd_manifest.json", "the record is there, and only there"


def test_a_weight_without_model_args_loads_as_before(tmp_path):
    folder = exported(tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]
    rewritten(folder, {"config.json": json.dumps(config).encode()})
    store.add(NAME, folder)
    assert read_by_name(NAME)


def test_config_claims_the_licence_of_the_weights_and_no_other(tmp_path):
    for number, (stated, claimed) in enumerate(
        [("cc-by-nc-4.0", "cc-by-nc-4.0"), ("not stated", None)]
    ):
        licenses = {**record().licenses, "weights": stated}
        folder = exported(tmp_path / str(number), licenses=licenses)
        config = json.loads((folder / "config.json").read_text())
        assert config["pretrained_cfg"].get("license") == claimed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exported(tmp_path, value):
    with pytest.raises(WeightError, match="NaN or infinity"):
        filled(value, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_head_or_a_prefix_in_the_weights_is_refused(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    with pytest.raises(WeightError, match="do not fit"):
        export_weight(state, record(), tmp_path / "export")
    prefixed = {f"module.{key}": value for key, value in state.items()}
    with pytest.raises(WeightError, match="do not fit"):
        export_weight(prefixed, record(), tmp_path / "export")


def test_an_existing_export_is_not_touched(tmp_path):
    folder = exported(tmp_path / "export")
    before = manifest.sha256(folder / "model.safetensors")
    with pytest.raises(WeightError, match="exists already"):
        exported(folder)
    assert manifest.sha256(folder / "model.safetensors") == before


def test_a_record_goes_through_json_and_is_strict():
    one = record()
    assert WeightRecord.from_dict(one.to_dict()) == one
    newer = {**one.to_dict(), "extra": {"a": [1]}}
    assert WeightRecord.from_dict(newer).to_dict() == newer, "what is unknown is kept"
    with pytest.raises(WeightError, match="no 'steps'"):
        WeightRecord.from_dict({k: v for k, v in one.to_dict().items() if k != "steps"})


def test_what_would_load_as_other_weights_is_refused_before_training(monkeypatch):
    """fbnetc_100 has another epsilon in timm if it is built to be pre-trained."""
    monkeypatch.setattr("pcd_hub.weights.export.build_arguments", lambda *_, **__: {})
    before = torch.get_rng_state()
    model = timm.create_model("fbnetc_100", num_classes=0)
    torch.set_rng_state(before)
    with pytest.raises(StudentError, match=r"fbnetc_100 cannot be exported: .* does not load as"):
        check_exportable(model, "fbnetc_100", image_size=64)
    assert torch.equal(torch.get_rng_state(), before), "a trial draws no random numbers"
    monkeypatch.undo()
    model = timm.create_model("fbnetc_100", num_classes=0, bn_eps=1e-3)
    check_exportable(model, "fbnetc_100", image_size=64)
