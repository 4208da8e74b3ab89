"""Images with one class each."""

import pytest
from PIL import Image

from pcd_hub.data.labelled.classification import open_classified
from pcd_hub.errors import DataError


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["cat/1.png", "cat/deep/2.png", "dog/1.png"]):
        picture(tmp_path / "train" / name, (number, 0, 0))
    return tmp_path


def test_class_folders_at_any_depth(folder):
    found = open_classified(str(folder), "train")
    assert found.classes == ("cat", "dog")
    assert found.labels == [0, 0, 1]
    assert [found[row].getpixel((0, 0))[0] for row in range(3)] == [0, 1, 2]
    assert found.name == f"{folder.name}/train"


def test_what_is_wrong_is_named(folder):
    with pytest.raises(DataError, match=r"there is no .*/val; .* has train"):
        open_classified(str(folder), "val")
    picture(folder / "train" / "stray.png", "red")
    with pytest.raises(DataError, match=r"train/stray.png lies in no class folder"):
        open_classified(str(folder), "train")
    picture(folder / "one" / "cat" / "1.png", "red")
    with pytest.raises(DataError, match="holds 1 class folders; there must be at least 2"):
        open_classified(str(folder), "one")


def test_a_dataset_with_a_label_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        img=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    rows = {"img": [Image.new("RGB", (8, 8), c) for c in ("red", "blue")], "label": [1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "saved")
    found = open_classified(f"hf-disk:{tmp_path / 'saved'}", "train", image_column="img")
    assert (found.classes, found.labels) == (("cat", "dog"), [1, 0])
    assert found[1].getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(DataError, match="no column 'image'; it has img, label"):
        open_classified(f"hf-disk:{tmp_path / 'saved'}", "train")
