import pytest
from PIL import Image

from pcd_hub.data.labelled.classification import open_classification
from pcd_hub.errors import DataError


def save_image(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["cat/1.png", "cat/deep/2.png", "dog/1.png"]):
        save_image(tmp_path / "train" / name, (number, 0, 0))
    return tmp_path


def test_images_at_any_depth_have_the_class_of_their_folder(folder):
    found = open_classification(str(folder), "train")
    assert found.classes == ("cat", "dog")
    assert found.labels == [0, 0, 1]
    assert [found[row].getpixel((0, 0))[0] for row in range(3)] == [0, 1, 2]
    assert found.name == f"{folder.name}/train"


def test_invalid_folders_are_named(folder):
    with pytest.raises(DataError, match=r"there is no .*/val; .* has train"):
        open_classification(str(folder), "val")
    save_image(folder / "train" / "stray.png", "red")
    with pytest.raises(DataError, match=r"train/stray.png is not in a class folder"):
        open_classification(str(folder), "train")
    save_image(folder / "one" / "cat" / "1.png", "red")
    with pytest.raises(DataError, match="has 1 class folders: expected at least 2"):
        open_classification(str(folder), "one")


def test_a_dataset_with_a_label_column_is_opened(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        img=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    rows = {"img": [Image.new("RGB", (8, 8), c) for c in ("red", "blue")], "label": [1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "saved")
    found = open_classification(f"hf-disk:{tmp_path / 'saved'}", "train", image_column="img")
    assert (found.classes, found.labels) == (("cat", "dog"), [1, 0])
    assert found[1].getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(DataError, match="no column 'image', only img, label"):
        open_classification(f"hf-disk:{tmp_path / 'saved'}", "train")


def test_another_label_column_of_the_same_images_is_another_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(),
        fine=datasets.ClassLabel(names=["cat", "lion", "dog"]),
        coarse=datasets.ClassLabel(names=["feline", "canine"]),
    )
    pictures = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "lime")]
    rows = {"image": pictures, "fine": [0, 1, 2], "coarse": [0, 0, 1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "saved")
    place = f"hf-disk:{tmp_path / 'saved'}"
    fine, again, coarse = (
        open_classification(place, "train", label_column=column).fingerprint()
        for column in ("fine", "fine", "coarse")
    )
    assert fine == again
    assert fine != coarse


def test_a_folder_valid_is_the_split_val(folder):
    (folder / "train").rename(folder / "valid")
    assert len(open_classification(str(folder), "val")) > 0
