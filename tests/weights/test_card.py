"""The card says what the record says, and nothing else."""

import dataclasses
import json
import re

import pytest
import timm
import yaml
from huggingface_hub import ModelCard

from pcd_hub.errors import WeightError
from pcd_hub.weights.cards.card import render_card
from pcd_hub.weights.manifest import read_manifest, record_sha256
from pcd_hub.weights.record import HUB_LICENSES, Measurement
from tests.weights.making import exported, measurement, record

FILES = [
    {"path": "model.safetensors", "size": 46_800_000, "sha256": "e" * 64},
    {"path": "pca.png", "size": 10, "sha256": "f" * 64},
]
MODEL = {"parameters": 11_176_512, "channels": 512, "macs": 1_814_000_000, "image_size": 224}


def card(repo="org/resnet18.pcd", **changed):
    return render_card(record("resnet18", model=MODEL, **changed), files=FILES, repo=repo)


def test_every_number_of_the_record_stands_on_the_card():
    text = card()
    for expected in [
        "11.18 M parameters",
        "46.8 MB",
        "1.81 GMACs at 224 px",
        "512 channels",
        "| random weights | 17.04 |",
        "| **distilled student** (this weight) | 50.23 |",
        "| teacher | **85.80** |",
        "n = 400",
        "one seed",
        "6400 images seen (two views each)",
        "Data: scenes:6400, 6400 images",
        "400 steps",
        "4.9 minutes",
        "Again: python recipes/distill.py quickstart.",
        "e" * 64,
    ]:
        assert expected in text, expected


def test_the_card_and_the_config_point_to_the_manifests_record(tmp_path):
    folder = exported(tmp_path / "export")
    text = (folder / "README.md").read_text()
    manifest = read_manifest(folder)
    sha256 = record_sha256(manifest["record"])
    config = json.loads((folder / "config.json").read_text())
    assert config["pcd"] == {"record": "pcd_manifest.json", "record_sha256": sha256}
    assert f"`pcd_manifest.json` (record sha256 `{sha256}`)" in text
    assert f"commit {'c' * 40}, pcd_hub 0.1.0" in text
    for entry in manifest["files"]:
        if entry["path"] != "README.md":
            assert f"| {entry['path']} | {entry['size']} | `{entry['sha256']}` |" in text


def test_what_was_not_measured_says_so():
    text = card(metrics={}, hardware={})
    assert "Not measured: segmentation on ADE20K; segmentation on VOC;" in text
    assert "Energy and CO2: not measured" in text
    assert "time not measured (since the last start)" in text
    assert "model-index" not in text
    on_voc = measurement(dataset="VOC 2012")
    text = card(metrics={"voc": dataclasses.asdict(on_voc)})
    assert "segmentation on ADE20K; segmentation on Cityscapes" in text
    stuff = measurement(dataset="COCO-Stuff")
    text = card(metrics={"stuff": dataclasses.asdict(stuff)})
    assert "detection on COCO" in text, "segmentation there is no detection"
    knn = measurement(task="weighted k-NN", dataset="ImageNet-1k")
    text = card(metrics={"knn": dataclasses.asdict(knn)})
    assert "linear classification on ImageNet" in text
    assert "k-NN on ImageNet" not in text


def test_several_seeds_have_a_spread_and_one_has_none():
    assert "±" not in card().split("## Use")[0]
    table = measurement(
        seeds=3, stds={"random weights": 0.1, "distilled student": 0.25, "teacher": 0.0}
    )
    text = card(metrics={"probe": dataclasses.asdict(table)})
    assert "| **distilled student** (this weight) | 50.23 ± 0.25 |" in text
    assert "mean ± standard deviation of 3 seeds" in text


def test_results_of_two_protocol_versions_are_two_tables():
    one = {"one": dataclasses.asdict(measurement())}
    text = card(metrics={**one, "two": dataclasses.asdict(measurement(metric="accuracy"))})
    assert text.count("**linear segmentation probe**, generated scenes") == 1
    newer = dataclasses.asdict(measurement(metric="accuracy", protocol_version=2))
    text = card(metrics={**one, "two": newer})
    assert text.count("**linear segmentation probe**, generated scenes") == 2
    assert text.count("Protocol version 2: BatchNorm and one linear layer. Again") == 1
    old = {key: value for key, value in one["one"].items() if key != "protocol_version"}
    assert Measurement.from_dict(old, what="old") == measurement()


@pytest.mark.parametrize(
    "changed",
    [
        {"subject": "nobody"},
        {"protocol_version": 0},
        {"means": {"distilled student": float("nan")}},
        {"seeds": 3},
        {"stds": {"teacher": 1.0}},
        {"images": -1},
        {"seeds": "1"},
        {"task": None},
        {"means": []},
        {"means": {"distilled student": 10**400}},
    ],
)
def test_a_table_that_is_not_whole_is_refused(changed):
    table = {**dataclasses.asdict(measurement()), **changed}
    with pytest.raises(WeightError, match=r"resnet18.pcd: metrics.probe"):
        card(metrics={"probe": table})


def test_a_record_from_elsewhere_makes_a_card_or_an_error():
    text = card(hardware={"seconds": None})
    assert "time not measured (since the last start)" in text
    with pytest.raises(WeightError, match="has no architecture ''"):
        render_card(record("resnet18", model=MODEL).trial(""), files=FILES)


def test_the_front_matter_is_what_the_hub_reads():
    matter = yaml.safe_load(card().split("---")[1])
    assert matter["license"] == "apache-2.0"
    assert matter["library_name"] == "timm"
    assert matter["pipeline_tag"] == "image-feature-extraction"
    assert isinstance(matter["tags"], list)
    assert "base_model" not in matter, "the Hub would call the student a fine-tuned teacher"
    assert matter["tags"][0] == "timm"
    matter = yaml.safe_load(
        render_card(record("resnet18_mhsa", model=MODEL), files=FILES).split("---")[1]
    )
    assert (matter["library_name"], matter["tags"][0]) == ("pcd_hub", "pcd_hub"), "not plain timm"
    assert "apache-2.0" in HUB_LICENSES


@pytest.mark.parametrize(
    ("source", "repo"),
    [
        ("timm:resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("hf-hub:org/vit@v1", "org/vit"),
        ("timm:no_such_model", None),
        ("hf-hub:org/vit)<script>", None),
        ("local-dir:runs/teacher", None),
        ("quickstart", None),
    ],
)
def test_a_teacher_that_is_on_the_hub_is_linked(source, repo):
    (line,) = re.findall("- Teacher: .*", card(teacher={"source": source}))
    assert (f"](https://huggingface.co/{repo})" in line) == bool(repo)
    assert ("huggingface.co" in line) == bool(repo)


def test_knn_and_linear_probe_do_not_collapse_into_one_result():
    knn = measurement(task="weighted k-NN", metric="accuracy", dataset="ImageNet-1k")
    linear = measurement(
        task="linear classification",
        metric="accuracy",
        dataset="ImageNet-1k",
        means={"distilled student": 61.5},
    )
    metrics = {"knn": dataclasses.asdict(knn), "linear": dataclasses.asdict(linear)}
    found = ModelCard(card(metrics=metrics)).data.eval_results
    assert {(result.task_name, result.metric_value) for result in found} == {
        ("weighted k-NN", 50.23),
        ("linear classification", 61.5),
    }
    again = yaml.safe_load(str(ModelCard(card(metrics=metrics)).data))
    assert len(again["model-index"][0]["results"]) == 2, "also after the client wrote it anew"


def test_a_data_set_of_the_hub_is_named_and_others_are_not():
    named = yaml.safe_load(card(data={"source": "hf:org/birds:train"}).split("---")[1])
    assert named["datasets"] == ["org/birds"]
    assert "datasets" not in yaml.safe_load(card(data={"source": "/data/x"}).split("---")[1])
    several = card(data={"source": ["hf:org/birds/small:train#photo", "/data/x", "hf:org/birds"]})
    assert yaml.safe_load(several.split("---")[1])["datasets"] == ["org/birds"]
    assert "- Data: hf:org/birds/small:train#photo, /data/x, hf:org/birds, " in several


def test_the_snippets_load_this_weight_and_an_own_architecture_says_what_it_needs(tmp_path):
    assert 'timm.create_model("hf-hub:org/resnet18.pcd", pretrained=True, num_classes=0)' in card()
    assert 'pcd_hub.create_model("org/resnet18.pcd", features_only=True)' in card()
    assert "import pcd_hub, timm" not in card()
    ours = render_card(record("resnet18_mhsa", model=MODEL), files=FILES, repo="o/r")
    assert "import pcd_hub, timm  # pcd_hub brings the architecture" in ours


def test_the_method_is_the_one_of_the_configuration():
    pcd = {"method": {"loss": "pixel_info_nce", "targets": "pixels"}}
    assert "repelled from a queue of pooled teacher embeddings" in card(config=pcd)
    other = card(config={"method": {"loss": "similarity_kl", "targets": "pooled"}})
    assert "queue" not in other.split("## Provenance")[0]
    assert "loss similarity_kl, targets pooled" in other
    for text in (card(config=pcd), other):
        assert "self-supervised" not in text, "nobody knows that of every teacher"
        assert "Trained on generated scenes only" in text
    assert "generated scenes only" not in card(data={"source": "IMAGES"})
    assert "generated scenes only" not in card(data={"source": ["scenes:9", "IMAGES"]})
    assert "generated scenes only: " in card(data={"source": ["scenes:9", "scenes:9:1"]})


def test_a_start_may_have_seen_more_than_generated_scenes():
    licenses = {**record().licenses, "start": "mit"}
    text = card(start=START, licenses=licenses, data={"source": "scenes:9"})
    assert "Trained on generated scenes only since its start: a demonstration" in text


def test_two_maps_and_centred_targets_are_on_the_card():
    method = {"loss": "pixel_info_nce", "targets": "pixels"}
    ours = {"feature_maps": 2, "centre_targets": True}
    changed = card(config={"method": method | ours})
    assert "Each location of this backbone's last 2 feature maps was attracted" in changed
    assert "pooled teacher embeddings, without their common mean." in changed
    plain = card(config={"method": method | {"feature_maps": 1}})
    assert "Each location of this backbone's feature map was attracted" in plain
    assert "common mean" not in plain


def test_untrained_layers_are_named_under_limits():
    text = card(untrained=("conv_head.weight",))
    assert "conv_head.weight" in text.split("## Limits")[1]
    assert "use `features_only` or `forward_features`" in text


def test_the_text_of_a_record_cannot_break_out_of_its_place():
    evil = "_loud_ a_b x |\n# Heading <script>alert(1)</script> ```\n[link](http://evil) `code`"
    facts = dict.fromkeys(("source", "architecture", "head", "commit", "pcd_hub", evil), evil)
    text = card(
        teacher=facts,
        code=facts,
        versions=facts,
        created=evil,
        recipe=evil,
        licenses={**record().licenses, "teacher": evil},
    )
    assert "<script>" not in text
    assert "\n# Heading" not in text
    assert "[link](" not in text
    assert "```\n[" not in text
    assert r"\_loud\_ a_b" in text, "no emphasis, and readable names"


def test_a_card_without_the_licence_chain_is_refused():
    with pytest.raises(WeightError, match="no licence of the teacher"):
        card(licenses={"code": "a", "weights": "b", "data": "c"})


def test_the_cost_on_the_card_was_counted(tmp_path):
    """test_resnet's convolutions, counted by hand for the stem: 3x3x3 -> 16 ... at 32 x 32."""
    facts = read_manifest(exported(tmp_path / "export", image_size=64))["record"]["model"]
    model = timm.create_model("test_resnet", num_classes=0)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        kernel = module.weight[0].numel()
        macs += kernel * output[0].numel()

    for module in model.modules():
        if type(module).__name__ == "Conv2d":
            module.register_forward_hook(count)
    import torch

    model.eval()(torch.zeros(1, 3, 64, 64))
    assert facts["macs"] == macs
    assert facts["channels"] == 96


START = {"source": "resnet18.a1_in1k", "name": "resnet18.a1_in1k", "sha256": "b" * 64}
START |= {"license": "mit"}


@pytest.mark.parametrize(
    ("hub_id", "base_model"),
    [("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"), ("", None), ("a b/c", None), ([1], None)],
)
def test_the_start_is_the_base_model_if_it_is_on_the_hub(hub_id, base_model):
    licenses = {**record().licenses, "start": "mit"}
    text = card(start={**START, "hub_id": hub_id}, licenses=licenses)
    matter = yaml.safe_load(text.split("---")[1])
    assert matter.get("base_model") == base_model
    assert matter.get("base_model_relation") == ("finetune" if base_model else None)
    link = f"[resnet18.a1_in1k](https://huggingface.co/{base_model})"
    name = link if base_model else "resnet18.a1_in1k"
    assert f"The training started from {name}." in text
    assert f"- Start: {name}, licence mit, sha256 {'b' * 64}" in text
    assert "| start | mit |" in text
    if base_model:
        assert ModelCard(text).data.to_dict()["base_model"] == base_model


def test_a_random_start_is_not_on_the_card():
    assert "start |" not in card().replace("| random weights |", "")
    assert "started from" not in card()
    assert "base_model" not in card()


def test_a_start_needs_its_licence():
    with pytest.raises(WeightError, match="no licence of the start; a card needs those of code, w"):
        card(start=START)
