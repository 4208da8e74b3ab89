"""``--config FILE``: a file gives the configuration it holds; a wrong one is one line."""

import json
import os
from importlib import resources
from pathlib import Path

import pytest
import yaml

from pcd_hub.errors import ConfigError
from pcd_hub.train import distill
from pcd_hub.train.configs.command_line import parse
from pcd_hub.train.configs.contrast import CONTRAST
from pcd_hub.train.configs.detection import DETECT
from pcd_hub.train.configs.distill import DISTILL, DistillConfig
from pcd_hub.train.configs.files import MAX_BYTES, as_yaml, read_fields, recorded, with_fields
from pcd_hub.train.configs.linear_classification import LINEAR_CLS
from pcd_hub.train.configs.probes import KNN, LINEAR_SEG, LOOK
from pcd_hub.train.configs.segmentation import FINETUNE_SEG

pytestmark = pytest.mark.usefixtures("no_pictures")

TABLES = (DISTILL, CONTRAST, DETECT, FINETUNE_SEG, LINEAR_CLS, LINEAR_SEG, KNN, LOOK)
NAMED = {
    f"{type(config).__name__} {name}": config for table in TABLES for name, config in table.items()
}


def with_file(config, file: str):
    return with_fields(config, read_fields(config, file))


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_configuration_survives_a_file(name, tmp_path):
    config = NAMED[name]
    for file in (
        written(tmp_path, as_yaml(config)),
        written(tmp_path, json.dumps(recorded(config)), "mine.json"),
    ):
        again = with_file(type(config)(), file)
        assert again == config
        assert recorded(again) == recorded(config)


def test_height_and_width_survive_a_file(tmp_path):
    arguments = ["--data.image-size", "96", "160", "--teacher.image-size", "128", "224"]
    _, config = parse(DISTILL, "quickstart", arguments)
    assert config.data.image_size == (96, 160)
    assert config.teacher.image_size == (128, 224)
    for file in (
        written(tmp_path, as_yaml(config)),
        written(tmp_path, json.dumps(recorded(config)), "mine.json"),
    ):
        assert with_file(DistillConfig(), file) == config


def test_a_run_given_its_own_record_has_the_same_loss(tiny, tmp_path):
    """Given its config.json: in test_effective_values.py."""
    first, second = tmp_path / "first", tmp_path / "second"
    distill.main([*tiny, "--run.no-store", f"--run.output-dir={first}"])
    distill.main([f"--config={first / 'record.json'}", f"--run.output-dir={second}"])
    one, other = (
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (first, second)
    )
    assert one == other
    assert (second / "config.json").read_text() == (first / "config.json").read_text()


def test_a_file_changes_a_named_configuration_and_options_change_both(tmp_path):
    file = written(tmp_path, "optim:\n  epochs: 3\n  lr-per-256: 1e-3\n  name:\n    adamw\nrun:\n")
    name, config = parse(DISTILL, "quickstart", ["pcd_r18", "--config", file, "--optim.epochs=4"])
    optim = config.optim
    assert (name, optim.epochs, optim.lr_per_256, optim.name) == ("pcd_r18", 4, 1e-3, "adamw")
    assert config.teacher == DISTILL["pcd_r18"].teacher


def test_a_file_alone_changes_the_defaults(tmp_path):
    file = written(tmp_path, "optim: {epochs: 3}")
    name, config = parse(DISTILL, "quickstart", ["--run.seed=1", f"--config={file}"])
    assert name == "mine"
    assert config.optim.epochs == 3
    assert config.run.seed == 1
    assert config.data == DistillConfig().data != DISTILL["quickstart"].data


def test_a_runs_own_file_has_the_name_of_its_folder(tmp_path):
    folder = tmp_path / "facades"
    folder.mkdir()
    file = written(folder, "{}", "config.json")
    assert parse(DISTILL, "quickstart", ["--config", file])[0] == "facades"


def test_a_printed_configuration_can_be_given_back(tmp_path, capsys):
    asked = ["coco_r18_c4_1x", "--detector.masks=no", "--optim.lr=0.01"]
    with pytest.raises(SystemExit) as ended:
        parse(DETECT, "small", [*asked, "--print-config"])
    assert not ended.value.code
    file = written(tmp_path, capsys.readouterr().out)
    assert parse(DETECT, "small", ["--config", file])[1] == parse(DETECT, "small", asked)[1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("detector: {masks: no}", ("masks", "no")),
        ("detector: {masks: 'yes'}", ("masks", "yes")),
        ("detector: {short_sides: [64, 96]}", ("short_sides", (64, 96))),
        ("detector: {channels: 1_024}", ("channels", 1024)),
    ],
)
def test_yaml_is_read_as_version_1_2(text, found, tmp_path):
    config = with_file(DETECT["small"], written(tmp_path, text))
    assert getattr(config.detector, found[0]) == found[1]


def test_whole_numbers_become_floats(tmp_path):
    config = with_file(DISTILL["pcd_r18"], written(tmp_path, "optim: {lr_per_256: 1}"))
    assert isinstance(config.optim.lr_per_256, float)


def test_the_configuration_of_a_shipped_weight_is_read_with_fields_that_are_gone(tmp_path):
    folder = resources.files("pcd_hub.weights") / "shipped" / "mobilenetv4_conv_small.pcd"
    config = with_file(DistillConfig(), str(folder / "pcd_manifest.json"))
    assert config.method.queue_length == 128
    file = written(tmp_path, "data: {renderer: pillow}")
    with pytest.raises(ConfigError, match=r"unknown field 'data.renderer'"):
        with_file(DistillConfig(), file)


def test_a_manifest_and_a_resumed_run_are_read(tmp_path, caplog):
    config = recorded(DISTILL["pcd_r18"]) | {"changed_at_resume": [{"what": "--optim.epochs"}]}
    file = written(tmp_path, json.dumps({"record": {"config": config}}), "pcd_manifest.json")
    assert with_file(DistillConfig(), file) == DISTILL["pcd_r18"]
    assert "the run was resumed with other settings" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epoch: 3}", "unknown field 'optim.epoch'; did you mean 'optim.epochs'"),
        ("wibble: 3", "unknown field 'wibble'"),
        ("optim: {epochs: many}", "optim.epochs many: expected an integer from 1 to 1000000000"),
        ("optim: {epochs: 0}", "optim.epochs 0: expected an integer from 1 to 1000000000"),
        ("optim: {epochs: 1.5}", "optim.epochs 1.5: expected an integer from 1 to"),
        ("optim: {epochs: true}", "optim.epochs True: expected an integer from 1 to"),
        ("optim: {epochs: [3]}", "optim.epochs [3]: expected an integer from 1 to"),
        ("optim: {epochs: {}}", "optim.epochs {}: expected an integer from 1 to"),
        ("optim: {epochs: {a: 3}}", "unknown field 'optim.epochs.a'"),
        ("optim: {epochs: }", "optim.epochs None: expected an integer from 1 to"),
        ("optim: {lr_per_256: .inf}", "optim.lr_per_256 .inf: expected a finite number > 0"),
        (f"optim: {{lr_per_256: 1{'0' * 400}}}", "optim.lr_per_256 1000"),
        ("optim: {sync_batch_norm: no}", "optim.sync_batch_norm no: expected True or False"),
        ("optim: {name: sgd}", "optim.name sgd: expected one of lars, adamw"),
        ("optim: 3", "optim 3: expected a group of fields"),
        ("run: {trackers: wandb}", "run.trackers wandb: expected any number of values, each text"),
        ("run: {name: 2026-11-26}\nrun: {}", "a key is given twice in line 1"),
        ("optim: {epochs: 3, epochs: 4}", "a key is given twice in line 1"),
        ("optim: {epochs: 3}\noptim.epochs: 4", "optim.epochs is given twice, expected once"),
        ("3: 4", "expected the name of a field, found 3"),
        ("? [a]\n: 4", "found unhashable key in line 1"),
        ("- optim", "expected groups of fields, found ['optim']"),
        ("", "expected groups of fields, found None"),
        ("optim: {epochs: 3", "expected YAML, or JSON in a .json file"),
        ("optim: &a {epochs: 3}\nrun: *a", "aliases are not supported in line 2"),
        ("optim: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("optim: !!binary aGk=", "expected a group of fields"),
        ("<<: {optim: {epochs: 3}}", "unknown field '<<.optim.epochs'"),
        (f"optim: {{epochs: {'9' * 5000}}}", "expected YAML"),
        ("[" * 5000, "nested too deeply"),
        ("{a: " * 5000, "nested too deeply"),
        ("#" * (MAX_BYTES + 1), f"at most {MAX_BYTES} bytes"),
        ("\0", "expected YAML"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name(text, message, tmp_path):
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        parse(DISTILL, "quickstart", ["--config", file])
    assert message in str(refused.value)
    assert file in str(refused.value)
    assert "\n" not in str(refused.value)


def test_aliases_do_not_expand(tmp_path):
    """A billion laughs: 10 aliases on each of 9 levels."""
    text = "a0: &a0 [x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
    )
    with pytest.raises(ConfigError, match="aliases are not supported in line 2"):
        with_file(DistillConfig(), written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"optim": {"epochs": 3, "epochs": 4}}', "epochs"),
        ('{"optim": {"epochs": NaN}}', "expected YAML, or JSON in a .json file"),
        ("optim: {epochs: 3}", "expected YAML, or JSON in a .json file"),
        ("[" * 10**5, "nested deeper"),
        ("[]", "expected groups of fields, found"),
    ],
)
def test_json_is_read_strictly(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        with_file(DistillConfig(), written(tmp_path, text, "mine.json"))


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected YAML"):
        with_file(DistillConfig(), str(tmp_path / "mine.yaml"))


def test_what_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    places = ["missing.yaml", "pipe", ".", "a" * 300, "a\0b", "a\nb"]
    for place in [str(tmp_path / name) for name in places] + ["/dev/zero"]:
        with pytest.raises(ConfigError, match="^--config [^\n]*$"):
            with_file(DistillConfig(), place)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "--config: expected a YAML or JSON file"),
        (["--config=a", "--config", "b"], "--config is given 2 times, expected once"),
        (["mine.yaml"], "no configuration 'mine.yaml'; for a file use --config mine.yaml"),
        (["quickstrat"], "no configuration 'quickstrat'; did you mean 'quickstart'"),
    ],
)
def test_a_wrong_use_of_config_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse(DISTILL, "quickstart", arguments)


def test_fields_of_a_file_that_contradict_each_other_are_rejected(tmp_path):
    file = written(tmp_path, yaml.safe_dump({"data": {"min_crop_area": 0.9, "max_crop_area": 0.2}}))
    with pytest.raises(ConfigError, match="min-crop-area 0.9 is larger than"):
        parse(DISTILL, "quickstart", ["--config", file])
