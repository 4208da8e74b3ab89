"""linear_seg.py, knn.py and look.py on small pictures drawn here."""

import knn
import linear_seg
import look
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from pcd_hub.data.labelled.classification import open_classified
from pcd_hub.data.labelled.segmentation import open_segmentation
from pcd_hub.data.labelled.sets import SegmentationSet
from pcd_hub.errors import ConfigError, DataError, StudentError
from pcd_hub.evaluate.feature_maps import centre_crops
from pcd_hub.evaluate.models import open_model
from pcd_hub.evaluate.results import Evaluation
from tests.weights.making import exported


def drawn(rng, size=(40, 32)):
    """A bright ellipse on dark noise, and which pixels are in it."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    y, x = rng.uniform(8, 24), rng.uniform(10, 30)
    inside = ((rows - y) / 9) ** 2 + ((columns - x) / 9) ** 2 < 1
    image = rng.integers(0, 60, (*inside.shape, 3)) + 170 * inside[..., None]
    return Image.fromarray(image.astype(np.uint8)), inside.astype(np.uint8)


@pytest.fixture
def segmentation(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for number in range(count):
            image, mask = drawn(rng, size=(40, 32) if number % 2 else (32, 44))
            for kind, picture in (("images", image), ("masks", Image.fromarray(mask))):
                path = tmp_path / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    (tmp_path / "classes.json").write_text('{"classes": ["ground", "disc"], "ignore_index": 255}')
    return tmp_path


@pytest.fixture
def classes(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 6)):
        for name, level in (("dark", 40), ("light", 190)):
            for number in range(count):
                path = tmp_path / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(level, level + 40, (30, 36, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path


def test_the_probe_of_every_model_is_written(segmentation, tmp_path, capsys, passes):
    export = exported(tmp_path / "export")
    out = tmp_path / "out"
    linear_seg.main(
        [
            f"--data.source={segmentation}",
            "--data.image-size=64",
            "--probe.steps=60",
            "--probe.batch-size=4",
            "--models",
            "random:test_resnet",
            f"local-dir:{export}",
            "--run.seeds",
            "0",
            "1",
            f"--run.output-dir={out}",
        ]
    )
    assert sum("training the probe" in what for what in passes) == 4, "two models, two seeds"
    found = Evaluation.load(out)
    assert found.seeds == (0, 1)
    assert found.images == 5
    assert list(found.scores) == ["random:test_resnet", f"local-dir:{export}"]
    for row in found.scores.values():
        assert 60 < min(row["mean IoU"]) < max(row["pixel accuracy"]) <= 100
    assert len(set(found.scores["random:test_resnet"]["mean IoU"])) == 2, "drawn anew"
    by_class = found.details["models"][f"local-dir:{export}"]["class_iou"][0]
    assert np.mean([by_class["ground"], by_class["disc"]]) == pytest.approx(
        found.scores[f"local-dir:{export}"]["mean IoU"][0] / 100
    )
    assert set(found.weights_sha256) == {f"local-dir:{export}"}
    assert "random:test_resnet" in found.command
    assert "| random:test" in capsys.readouterr().out
    with Image.open(out / "pictures" / "overlays.png") as picture:
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert len(colours) > 50


def test_a_mask_is_decoded_once_and_never_without_its_image(segmentation, monkeypatch):
    decoded, mask = [], SegmentationSet.mask
    monkeypatch.setattr(SegmentationSet, "mask", lambda s, row: decoded.append(row) or mask(s, row))
    opened = open_segmentation(str(segmentation), "val")
    found = linear_seg.squashed(opened, 16, masks_too=True, num_workers=0)
    assert found.images[[0, 1]].shape == found.images[[1, 0]].shape == (2, 3, 16, 16)
    assert found.masks[0].shape == found.masks[2].shape == (16, 16)
    assert decoded == [0, 1, 2]
    Image.new("L", (9, 9)).save(segmentation / "masks" / "val" / "3.png")
    for read in (lambda: found.images[[3]], lambda: found.masks[3]):
        with pytest.raises(DataError, match="its mask .*3.png 9 x 9; they must agree"):
            read()


def test_workers_read_the_same_images_and_masks(segmentation, classes, monkeypatch):
    rows = [[4, 0, 4], [1], [3, 2, 0]]
    opened = open_segmentation(str(segmentation), "val")
    for masks_too in (True, False):
        here, by_workers = (
            linear_seg.squashed(opened, 16, masks_too=masks_too, num_workers=count)
            for count in (0, 2)
        )
        decoding = [list(each.images.batches(rows)) for each in (here, by_workers)]
        assert all(map(torch.equal, *decoding))
        monkeypatch.setattr(SegmentationSet, "pair", None)  # all are there
        assert all(torch.equal(here.masks[row], by_workers.masks[row]) for row in range(5))
        assert by_workers.masks[1].shape == ((16, 16) if masks_too else (32, 40))
        monkeypatch.undo()
    images = open_classified(str(classes), "val")
    crops = [
        torch.cat(list(centre_crops(images, [5, 0, 7], size=16, num_workers=count)))
        for count in (0, 2)
    ]
    assert torch.equal(*crops)


def test_the_centre_crop_is_seven_eighths_of_the_shorter_side():
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    (crop,) = centre_crops([Image.fromarray(image)], [0], size=56, num_workers=0)
    middle = torch.from_numpy(image[4:60, 12:68]).permute(2, 0, 1)
    assert torch.equal(crop[0], middle.float() / 255)


def test_what_is_missing_is_found_before_anything_is_computed(segmentation, tmp_path):
    out = tmp_path / "out"
    asked = [f"--run.output-dir={out}", "--models", "random:test_resnet"]
    with pytest.raises(ConfigError, match="name the images: --data.source DIR"):
        linear_seg.main(asked)
    with pytest.raises(DataError, match="there is no .*images/test; .* has train, val"):
        linear_seg.main([f"--data.source={segmentation}", "--data.test-split=test", *asked])
    with pytest.raises(ConfigError, match="--data.test-split train is what is trained on"):
        linear_seg.main([f"--data.source={segmentation}", "--data.test-split=train", *asked])
    with pytest.raises(ConfigError, match="--probe.label-stride 0: expected an integer"):
        linear_seg.main([f"--data.source={segmentation}", "--probe.label-stride=0", *asked])
    with pytest.raises(ConfigError, match="name at least one, and none twice"):
        linear_seg.main([f"--data.source={segmentation}", *asked, "random:test_resnet"])
    assert not out.exists()


def test_a_finished_model_is_kept_when_the_next_one_fails(segmentation, tmp_path):
    arguments = [f"--data.source={segmentation}", "--data.image-size=64", "--probe.steps=2"]
    arguments += ["--run.seeds", "0", f"--run.output-dir={tmp_path / 'out'}"]
    with pytest.raises(Exception, match="resnet81"):
        linear_seg.main([*arguments, "--models", "random:test_resnet", "random:resnet81"])
    assert list(Evaluation.load(tmp_path / "out").scores) == ["random:test_resnet"]


def test_neighbours_and_a_linear_classifier(classes, tmp_path, tiny_teacher, capsys, passes):
    out = tmp_path / "out"
    knn.main(
        [
            f"--data.source={classes}",
            "--data.image-size=64",
            "--models",
            "random:test_resnet",
            f"teacher:local-dir:{tiny_teacher}",
            "--run.seeds",
            "0",
            "1",
            f"--teacher.source=local-dir:{tiny_teacher}",
            "--report.num-images=7",
            f"--run.output-dir={out}",
        ]
    )
    name = classes.name
    of_one = [f"{name}/train", f"{name}/val", "neighbours"]  # the fit's end is not known before
    assert passes[:3] == [f"random:test_resnet: {what}" for what in of_one]
    assert [what for what in passes if what.startswith("teacher: ")] == ["teacher: 7 images"]
    assert passes[-1].endswith("nearest pixels")
    labelled = Evaluation.load(out / "image_classification")
    assert labelled.images == 12
    assert min(labelled.scores["random:test_resnet"]["k-NN top-1"]) > 90
    assert min(labelled.scores["random:test_resnet"]["linear top-1"]) > 90
    free = Evaluation.load(out / "label_free_report")
    assert free.images == 7
    assert list(free.units) == [
        "teacher's nearest pixel in top-5",
        "CKA with teacher",
        "effective rank",
    ]
    assert all(0 <= v <= 100 for row in free.scores.values() for v in row["CKA with teacher"])
    assert capsys.readouterr().out.count("| random:test") == 2


def test_a_model_that_was_scored_is_kept_when_the_next_is_unknown(classes, tmp_path):
    arguments = [f"--data.source={classes}", "--data.image-size=64", "--run.seeds=0"]
    arguments += [f"--run.output-dir={tmp_path / 'out'}"]
    with pytest.raises(StudentError, match="resnet81"):
        knn.main([*arguments, "--models", "random:test_resnet", "random:resnet81"])
    kept = Evaluation.load(tmp_path / "out" / "image_classification")
    assert list(kept.scores) == ["random:test_resnet"]


def test_the_report_needs_no_labels(classes, tmp_path, tiny_teacher):
    arguments = ["--models", "random:test_resnet", "--run.seeds", "0", "--data.image-size=64"]
    arguments += [
        f"--teacher.source=local-dir:{tiny_teacher}",
        f"--run.output-dir={tmp_path / 'out'}",
    ]
    with pytest.raises(ConfigError, match="name the images"):
        knn.main(arguments)
    knn.main([*arguments, f"--report.source={classes / 'train'}"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {".gitignore", "label_free_report"}


def test_a_headless_teacher_finds_all_its_own_pixels(classes, tmp_path, tiny_teacher):
    """The one model that must score 100: the teacher's own backbone, if nothing is behind it."""
    export = exported(tmp_path / "export")
    knn.main(
        [
            f"--report.source={classes / 'train'}",
            "--data.image-size=64",
            "--models",
            f"local-dir:{export}",
            "--run.seeds",
            "0",
            f"--teacher.source=local-dir:{export}",
            f"--run.output-dir={tmp_path / 'out'}",
        ]
    )
    found = Evaluation.load(tmp_path / "out" / "label_free_report").scores[f"local-dir:{export}"]
    assert found["teacher's nearest pixel in top-5"] == (100.0,)
    assert found["CKA with teacher"] == (pytest.approx(100),)


def test_stages_that_are_not_there_are_one_line(segmentation, tmp_path):
    asked = [
        f"--data.source={segmentation}",
        f"--run.output-dir={tmp_path / 'out'}",
        "--run.seeds=0",
    ]
    with pytest.raises(StudentError, match="cannot give these stages of .* pixels"):
        linear_seg.main([*asked, "--models=random:test_resnet", "--probe.num-stages=9"])


def test_a_fixed_size_weight_of_ours_takes_the_size_it_is_given(tmp_path):
    model = timm.create_model("test_vit", num_classes=0, img_size=96)
    export = exported(tmp_path / "vit", "test_vit", model, image_size=96)
    opened = open_model(f"local-dir:{export}", image_size=64).model
    assert opened.eval()(torch.zeros(1, 3, 64, 64)).shape[0] == 1


def test_splits_with_other_classes_are_refused(classes, tmp_path):
    (classes / "val" / "light").rename(classes / "val" / "bright")
    with pytest.raises(DataError, match="differ in class 'bright', or in the order of classes"):
        knn.main([f"--data.source={classes}", f"--run.output-dir={tmp_path / 'out'}"])


def test_pictures_of_what_models_see(tmp_path, tiny_teacher, capsys):
    out = tmp_path / "out"
    look.main(
        [
            "--data.source=scenes:2",
            "--data.image-size=64",
            f"--teacher.source=local-dir:{tiny_teacher}",
            "--models",
            "random:test_resnet",
            "random:resnet18_mhsa",
            f"--run.output-dir={out}",
        ]
    )
    with Image.open(out / "pca.png") as picture:
        assert picture.size == (128, 64 * 4), "images, teacher, two models"
    with Image.open(out / "receptive_field.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 3
    assert capsys.readouterr().out.count("half of the receptive field within") == 2


def test_the_configurations_are_whole(tmp_path):
    for name in ("ade20k", "voc", "cityscapes"):
        with pytest.raises(DataError, match="there is no"):
            linear_seg.main([name, f"--run.output-dir={tmp_path / 'out'}"])
    assert list(linear_seg.LINEAR_SEG) == ["folder", "ade20k", "voc", "cityscapes"]
