import importlib.util
import json

import pytest
import torch
import yaml

import integration_gains
from integration_models import DETECTORS, SEGMENTERS, WEIGHT_ONLY
from integration_yolo import YOLOS, YoloTask
from pcd_hub.weights import shipped
from tests.evaluate.drawn_sets import draw_segmentation
from tests.train.detection.drawn_coco import draw_coco, read_drawn

SHIPPED = shipped.FOLDER
PACKAGES = {"SMP": "segmentation_models_pytorch", "transformers": "transformers"}
PACKAGES |= {"ultralytics": "ultralytics"}
MODELS = {**SEGMENTERS, **DETECTORS, **YOLOS}
BACKBONES = ("backbone", "encoder", "model.model.0.m.")
pytestmark = pytest.mark.filterwarnings("default")  # of the packages


@pytest.fixture(autouse=True)
def shipped_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", SHIPPED)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))


@pytest.fixture
def data(tmp_path):
    draw_segmentation(tmp_path / "discs")
    draw_coco(tmp_path / "shapes")
    return ["--segmentation", str(tmp_path / "discs"), "--detection", str(tmp_path / "shapes")]


def builder(name):
    package = PACKAGES.get(name.split()[0], "torchvision")
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is missing: pip install '.[integrations,frameworks]'")
    return MODELS[name]


def built(name, weight):
    torch.manual_seed(0)
    return {key: value.float() for key, value in builder(name)(weight, 3).state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_both_starts_differ_in_the_backbone_alone(name):
    random, loaded = built(name, None), built(name, "resnet18.pcd")
    assert random.keys() == loaded.keys()
    kernels = [key for key, value in random.items() if value.ndim == 4]
    unlike = {key for key in kernels if not torch.equal(random[key], loaded[key])}
    assert len(unlike) == 20  # of a ResNet-18
    others = [key for key in random if not any(word in key for word in BACKBONES)]
    assert others
    assert all(torch.equal(random[key], loaded[key]) for key in others)


def call(data, results, *arguments):
    fixed = ["--test-split", "val", "--steps", "2", "--image-size", "32", "--seeds", "0"]
    return integration_gains.main([*data, "--results", str(results), *fixed, *arguments])


def test_runs_are_measured_once_and_the_table_has_them(data, tmp_path, capsys, monkeypatch):
    results = tmp_path / "new" / "gains.jsonl"
    models = ["--models", *WEIGHT_ONLY, *WEIGHT_ONLY.values(), "torchvision Faster R-CNN"]
    assert call(data, results, *models) == 0
    first = capsys.readouterr().out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 5  # frozen norms have no random weights of their own
    assert all({"run", "scores", "versions", "code"} <= row.keys() for row in rows)
    assert all(0 <= score <= 100 for row in rows for score in row["scores"].values())
    monkeypatch.setattr(integration_gains, "measure", None)
    assert call(data, results, *models) == 0
    again = capsys.readouterr().out
    assert again.strip() in first
    training = "discs, 2 steps of 8 images of 32 px, scored on val"
    assert f"| PyTorch FCN, frozen batch norms | {training} | resnet18.pcd | mean IoU |" in again
    assert "(one seed, not judged) | 1 |" in again


def test_ultralytics_trains_from_the_weight_by_its_own_trainer(data, tmp_path, capsys):
    name = "ultralytics YOLO11"
    builder(name)
    results = tmp_path / "gains.jsonl"
    assert call(data, results, "--models", name, "--steps", "3") == 2
    assert "--steps 3: ultralytics trains whole epochs; expected a multiple of 2, an epoch" in (
        capsys.readouterr().err
    )
    assert call(data, results, "--models", name) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["run"]["start"] for row in rows] == ["random", "resnet18.pcd"]
    assert all(set(row["scores"]) == {"box AP", "box AP50"} for row in rows)


def test_ultralytics_labels_are_the_boxes_of_the_annotations(data, tmp_path):
    task = YoloTask(tmp_path / "shapes", test_split="val", image_size=32)
    file = task.write(tmp_path / "yolo")
    described = yaml.safe_load(file.read_text())
    assert described["names"] == {0: "square", 1: "bar"}
    lines = (tmp_path / "yolo" / "labels" / "train" / "100.txt").read_text().splitlines()
    boxes = [list(map(float, line.split())) for line in lines]
    image = read_drawn(tmp_path / "shapes").images[0]
    expected = [each.box for each in image.objects if not each.is_crowd]
    for (label, x, y, width, height), box in zip(boxes, expected, strict=True):
        found = ((x - width / 2) * 64, (y - height / 2) * 48, width * 64, height * 48)
        assert found == pytest.approx(box)
        assert label == (box[2] == 12)  # bars are 12 wide
    assert len(list((tmp_path / "yolo" / "images" / "val").iterdir())) == 4


def run(start, seed, **changed):
    values = {"model": "PyTorch FCN", "data": "d", "test_split": "test", "image_size": 96}
    values |= {"steps": 150, "batch_size": 8, "lr": 1e-3, "start": start, "seed": seed}
    return integration_gains.Run(**values | changed)


def test_differences_are_of_equal_seeds_and_equal_conditions():
    found = {run("random", seed): {"mean IoU": 40.0 + seed} for seed in (0, 1, 2)}
    found |= {run("resnet18.pcd", seed): {"mean IoU": 60.0 + 2 * seed} for seed in (0, 1)}
    found[run("resnet18.pcd", 0, steps=50)] = {"mean IoU": 1.0}
    found[run("resnet18.pcd", 0, model="PyTorch FCN, frozen batch norms")] = {"mean IoU": 55.0}
    rows = integration_gains.gains_table(found).splitlines()[2:]
    assert [row.split(" | ")[4:] for row in rows] == [
        ["40.5 ± 0.7", "61.0 ± 1.4", "+20.5 ± 0.7", "2 |"],
        ["40.0", "55.0", "+15.0 (one seed, not judged)", "1 |"],
    ]


def test_models_without_their_data_are_refused_before_anything_is_built(data, tmp_path, capsys):
    results = tmp_path / "gains.jsonl"
    assert call(data[:2], results, "--models", "torchvision RetinaNet") == 2
    assert "--models torchvision RetinaNet: expected one of SMP Unet," in capsys.readouterr().err
    assert call([], results) == 2
    assert "neither --segmentation nor --detection" in capsys.readouterr().err
    assert not results.exists()
