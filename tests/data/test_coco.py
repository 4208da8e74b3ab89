import copy
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_codes

from pcd_hub.data.labelled.coco import read_split
from pcd_hub.data.labelled.coco_checks import MOST_SIDE
from pcd_hub.data.labelled.coco_checks import run_lengths as run_lengths_of
from pcd_hub.data.loader import BatchPlan
from pcd_hub.errors import ConfigError, DataError
from pcd_hub.train.configs.detection import CocoDataConfig
from pcd_hub.train.detection.batches import (
    Labels,
    coco_results,
    decoded_mask,
    encoded_mask,
    mirrored,
    read_example,
    read_image,
    read_images,
    training_batches,
)
from pcd_hub.train.detection.splits import read_splits, with_masks
from tests.train.detection.drawn_coco import CATEGORIES, HEIGHT, WIDTH, draw_coco, read, write


@pytest.fixture
def root(tmp_path):
    return draw_coco(tmp_path / "drawn")


def split(root, name="train", **how):
    file = root / "annotations" / f"instances_{name}.json"
    return read_split(file, root / "images" / name, **how)


def test_every_picture_is_tested_and_those_with_objects_are_trained_on(root):
    content = read(root)
    lonely = copy.deepcopy(content["annotations"][-1]) | {"image_id": 105, "id": 77}
    write(root, "train", content | {"annotations": [*content["annotations"], lonely]})
    found = split(root)
    assert found.categories == CATEGORIES
    assert len(found.truth()["images"]) == 6
    # The last picture holds nothing but a crowd.
    assert [image.image_id for image in found.with_objects()] == [100, 101, 102, 103, 104]


def test_the_truth_is_the_file(root):
    content, truth = read(root), split(root).truth()
    key = lambda entry: (entry["image_id"], entry["id"])  # noqa: E731
    assert sorted(truth["annotations"], key=key) == sorted(content["annotations"], key=key)
    assert truth["categories"] == content["categories"]


def test_what_an_annotation_leaves_out_has_cocos_meaning(root):
    content = read(root)
    for entry in content["annotations"]:
        for name in ("area", "iscrowd", "segmentation"):
            del entry[name]
    write(root, "train", content)
    (first, *_), *_ = (image.objects for image in split(root).images)
    assert (first.area, first.is_crowd, first.segmentation) == (400, False, None)


def test_three_ways_to_name_the_files(root):
    ours = read_splits(CocoDataConfig(root=root))
    explicit = read_splits(
        CocoDataConfig(
            train_images=root / "images" / "train",
            train_annotations=root / "annotations" / "instances_train.json",
            val_images=root / "images" / "val",
            val_annotations=root / "annotations" / "instances_val.json",
        )
    )
    assert explicit == ours
    for name in ("train", "val"):  # COCO's own
        (root / "images" / name).rename(root / f"{name}2017")
        (root / "annotations" / f"instances_{name}.json").rename(
            root / "annotations" / f"instances_{name}2017.json"
        )
    own, _ = read_splits(CocoDataConfig(root=root, train="train2017", val="val2017"))
    assert own.images[0].path == root / "train2017" / "0.png"
    assert own.truth() == ours[0].truth()


def test_a_missing_split_is_named_with_those_that_are_there(root):
    with pytest.raises(DataError, match=r"instances_test.json \(its folder holds instances_train"):
        read_splits(CocoDataConfig(root=root, val="test"))
    with pytest.raises(DataError, match="there is no folder .*nowhere; name the images' folder"):
        read_splits(CocoDataConfig(root=root, train_images=root / "nowhere"))
    with pytest.raises(ConfigError, match="no data: name its folder with --data.root"):
        read_splits(CocoDataConfig())


NAN, HUGE = float("nan"), 10**400
SQUARE = [1, 1, 9, 1, 9, 9]
NO_PLACE = r"is not \[left, top, width, height\] in pixels"
NO_POLYGON = "a polygon is not a list of at least 3 points"
BAD = [
    ("image_id", 999, "annotation 2 is of image 999, which 'images' does not list"),
    ("image_id", 101.5, "in annotation 2, 'image_id' of .* is no whole number"),
    ("image_id", True, "in annotation 2, 'image_id' of .* is no whole number"),
    ("image_id", HUGE, "in annotation 2, 'image_id' of .* is no whole number"),
    ("category_id", 4, "annotation 2 has category 4, which 'categories' does not list .*3, 17"),
    ("category_id", "3", "in annotation 2, 'category_id' of .* is no whole number"),
    ("id", None, "annotation None: its id None is no whole number"),
    ("id", 2**63, f"annotation {2**63}: its id {2**63} is no whole number of 64 bits"),
    ("id", "a\nb", r"annotation 'a\\nb': its id 'a\\nb' is no whole number"),
    ("bbox", [5, 5, 0, 5], r"annotation 2: bbox \[5, 5, 0, 5\] has no size"),
    ("bbox", [60, 5, 9, 5], r"annotation 2: bbox \[60, 5, 9, 5\] lies outside the 64 x 48"),
    ("bbox", [5, -3, 9, 5], r"annotation 2: bbox \[5, -3, 9, 5\] lies outside"),
    ("bbox", [64, 5, 1, 5], r"annotation 2: bbox \[64, 5, 1, 5\] lies outside"),
    ("bbox", [5, 5, 1e308, 5], r"annotation 2: bbox .* lies outside"),
    ("bbox", [5, 5, 9], rf"annotation 2: bbox \[5, 5, 9\] {NO_PLACE}"),
    ("bbox", [5, 5, NAN, 5], f"annotation 2: bbox .* {NO_PLACE}"),
    ("bbox", [5, 5, -float("inf"), 5], f"annotation 2: bbox .* {NO_PLACE}"),
    ("bbox", [5, 5, HUGE, 5], f"annotation 2: bbox .* {NO_PLACE}"),
    ("bbox", [True, 5, 5, 5], f"annotation 2: bbox .* {NO_PLACE}"),
    ("bbox", [[5, 5, 5, 5]], f"annotation 2: bbox .* {NO_PLACE}"),
    ("bbox", "5 5 5 5", f"annotation 2: bbox '5 5 5 5' {NO_PLACE}"),
    ("bbox", None, f"annotation 2: bbox None {NO_PLACE}"),
    (
        "bbox",
        [40.0, 10, 1e-6, 30],
        "bbox .* has 1e-06 x 30 pixels in the image, and needs 0.015625",
    ),
    ("bbox", [63.9999999, 10, 0.5, 30], "bbox .* has 1e-07 x 30 pixels in the image"),
    ("bbox", [10, -0.5, 30, 0.5], "bbox .* has 30 x 0 pixels in the image"),
    ("bbox", [10, -0.5, 30, 0.25], "bbox .* has 30 x 0 pixels in the image"),
    ("area", "big", "annotation 2: its area 'big' is no number from 0 to 536870911"),
    ("area", -1, "annotation 2: its area -1 is no number"),
    ("area", 1e30, r"annotation 2: its area 1e\+30 is no number"),
    ("area", HUGE, r"annotation 2: its area 100.*\.\.\..*00 is no number"),
    ("area", True, "annotation 2: its area True is no number"),
    ("iscrowd", 2, "annotation 2: its iscrowd 2 is neither 0 nor 1"),
    ("iscrowd", [], r"annotation 2: its iscrowd \[\] is neither 0 nor 1"),
    ("difficult", NAN, "annotation 2: its difficult nan is neither 0 nor 1"),
    ("ignore", "yes", "annotation 2: its ignore 'yes' is neither 0 nor 1"),
    ("segmentation", {"size": [48, 64], "counts": [3000]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [3073, -1]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [0.5] * 6144}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [3071, True]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [HUGE]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": []}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": ""}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": "\0~\u20ac"}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": None}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64]}, "annotation 2: its segmentation .* is neither polygons"),
    ("segmentation", {"size": [64, 48], "counts": [3072]}, "run-length mask of size .64, 48."),
    ("segmentation", {"size": [10**9, 10**9], "counts": [10**18]}, "run-length mask of size .1000"),
    ("segmentation", {"size": [True, NAN], "counts": [1]}, "run-length mask of size .True, nan."),
    ("segmentation", "none", "annotation 2: its segmentation 'none' is neither polygons nor"),
    ("segmentation", [[1, 1, 5, 5]], NO_POLYGON),
    ("segmentation", [[]], NO_POLYGON),
    ("segmentation", [SQUARE, [*SQUARE, 1]], NO_POLYGON),
    ("segmentation", SQUARE, f"{NO_POLYGON} .*: 1 "),
    ("segmentation", [[SQUARE]], NO_POLYGON),
    ("segmentation", [{"counts": [3072], "size": [48, 64]}], NO_POLYGON),
    (
        "segmentation",
        [[[1, 1], [9, 1], [9, 9], [1, 9], [1, 5], [1, 3]]],
        r"x = \[1, 1\], which is no",
    ),
    ("segmentation", [[*SQUARE, 1e30, 9]], r"x = 1e\+30, which is no number from -64 to 128"),
    ("segmentation", [[*SQUARE, 9, -1e30]], r"y = -1e\+30, which is no number from -48 to 96"),
    ("segmentation", [[*SQUARE, 128.1, 9]], r"x = 128.1, which is no number from -64 to 128"),
    ("segmentation", [[*SQUARE, NAN, 9]], "x = nan, which is no number"),
    ("segmentation", [[*SQUARE, 9, HUGE]], "y = 1000.* which is no number"),
    ("segmentation", [[*SQUARE, False, 9]], "x = False, which is no number"),
    (
        "segmentation",
        [[-64, 0, 128, 0] * 3000],
        r"an outline of 1\.15e\+06 pixels, more than 1000000",
    ),
]


@pytest.mark.parametrize(
    ("name", "value", "message"), BAD, ids=[f"{name}{n}" for n, (name, *_) in enumerate(BAD)]
)
def test_a_bad_annotation_is_named_with_its_file(root, name, value, message):
    content = read(root)
    content["annotations"][2][name] = value
    write(root, "train", content)
    with pytest.raises(DataError, match=message) as caught:
        split(root)
    said = str(caught.value)
    assert str(root / "annotations" / "instances_train.json") in said
    assert "\n" not in said
    assert len(said) < 400 + len(str(root))
    if name not in ("image_id", "category_id"):
        kept = split(root, bad_annotations="drop").truth()["annotations"]
        assert len(kept) == len(content["annotations"]) - 1


def test_what_is_just_within_the_bounds_is_taken(root):
    content = read(root)
    polygon = [-64, -48, 128, -48, 128, 96, -64, 96]
    content["annotations"][2] |= {"id": 3.0, "area": 2**29 - 1, "iscrowd": False, "ignore": 1}
    content["annotations"][2] |= {"bbox": [64 - 1 / 64, 0, 1.0, 1 / 64], "segmentation": [polygon]}
    write(root, "train", content)
    found = split(root).images[0]
    assert len(found.objects) == 3
    assert decoded_mask([[float(v) for v in polygon]], found).all()


def test_the_smallest_box_stays_a_box_in_float32_however_large_the_picture():
    side, least = float(MOST_SIDE), 1 / 64
    for left in (0.0, 1 / 3, side / 3, side / 2 + 1e-4, side - least):
        right = left + least
        mirrored_box = torch.tensor([side]) - torch.tensor([right, left])
        for low, high in (torch.tensor([left, right]), mirrored_box):
            for ratio in (800 / side, 1333 / 1000, 1 / 3):
                assert low * torch.tensor(ratio) < high * torch.tensor(ratio)


def test_bad_annotations_can_be_left_out_and_it_is_said(root, caplog):
    content = read(root)
    content["annotations"][2]["bbox"] = [5, 5, 9, 0]
    write(root, "train", content)
    with caplog.at_level(logging.WARNING, "pcd_hub"):
        found = split(root, bad_annotations="drop")
    assert len(found.truth()["annotations"]) == len(content["annotations"]) - 1
    assert "1 bad annotations left out, first annotation 2: bbox [5, 5, 9, 0]" in caplog.text


def test_a_fraction_across_the_border_is_cut_off_in_training_alone(root):
    content = read(root)
    content["annotations"][0]["bbox"] = [-0.5, 30, 10, 18.4]
    write(root, "train", content)
    found = split(root)
    example = read_example(found.images[0], Labels(found.categories), masks=False)
    assert example.target["boxes"][0].tolist() == [0, 30, 9.5, HEIGHT]
    assert found.truth()["annotations"][0]["bbox"] == [-0.5, 30, 10, 18.4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as json"),
        ("[]", "has no list of 'images'"),
        ('{"images": [], "annotations": []}', "has no list of 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
        (
            '{"images": [{"id": 1, "height": 3}], "annotations": [], "categories": []}',
            "in 'images', 'width' of .* is no whole number from 1 to 65535",
        ),
        (
            (
                '{"annotations": [], "categories": [], "images": '
                '[{"id": 1, "width": 65535, "height": 9999}]}'
            ),
            "image 1 has 65535 x 9999 pixels, more than 536870911",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 1.0}]}',
            "two entries for category 1",
        ),
        (
            (
                '{"annotations": [], "categories": [], "images": '
                '[{"id": 1, "width": 5, "height": 5, "file_name": "a\\nb"}]}'
            ),
            r"image 1: there is no 'a\\nb'; fetch it",
        ),
        ("[" * 100_000, "cannot be read as json .RecursionError"),
        ('{"images": [{"id": 1' + "0" * 5000 + "}]}", "cannot be read as json .ValueError"),
    ],
)
def test_a_json_that_is_no_coco_json(root, content, message):
    (root / "annotations" / "instances_train.json").write_text(content)
    with pytest.raises(DataError, match=f"instances_train.json.*{message}"):
        split(root)


def test_a_missing_picture_is_named(root):
    (root / "images" / "train" / "3.png").unlink()
    with pytest.raises(DataError, match=r"image 103: there is no .*3.png; fetch it"):
        split(root)


def test_two_entries_for_one_id(root):
    content = read(root)
    write(root, "train", content | {"images": content["images"] + content["images"][:1]})
    with pytest.raises(DataError, match="two entries for image 100"):
        split(root)


def test_both_splits_need_the_same_categories(root):
    content = read(root, "val")
    content["categories"][1]["name"] = "rod"
    write(root, "val", content)
    with pytest.raises(DataError, match=r"differ in category 17 \('(bar|rod)'\)"):
        read_splits(CocoDataConfig(root=root))


def test_a_split_without_objects_is_refused(root):
    write(root, "val", read(root, "val") | {"annotations": []})
    with pytest.raises(DataError, match="instances_val.json has no object"):
        read_splits(CocoDataConfig(root=root))


def test_masks_are_all_or_nothing(root, tmp_path):
    both = read_splits(CocoDataConfig(root=root))
    boxes = read_splits(CocoDataConfig(root=draw_coco(tmp_path / "boxes", masks=False)))
    assert with_masks("auto", *both)
    assert not with_masks("no", *both)
    assert not with_masks("auto", *boxes)
    with pytest.raises(DataError, match=r"annotation 0 has no mask \(11 of 29 objects have none\)"):
        with_masks("auto", boxes[0], both[0], both[1])
    with pytest.raises(DataError, match="--detector.masks no"):
        with_masks("yes", *boxes)


def test_masks_that_are_not_wanted_are_not_read(root):
    content = read(root)
    content["annotations"][2]["segmentation"] = "none"
    write(root, "train", content)
    assert split(root, read_masks=False).images[0].objects[0].segmentation is None


def test_labels_close_the_gaps_and_open_them_again():
    labels = Labels({90: "z", 3: "a", 17: "m"})
    assert [labels.label(key) for key in (3, 17, 90)] == [1, 2, 3]
    assert [labels.category_id(label) for label in (1, 2, 3)] == [3, 17, 90]


def test_an_example_shows_its_objects_and_no_crowd(root):
    found = split(root)
    example = read_example(found.images[0], Labels(found.categories), masks=True)
    assert example.target["labels"].tolist() == [1, 2]
    assert example.target["masks"].shape == (2, HEIGHT, WIDTH)
    for box, mask in zip(
        example.target["boxes"].int().tolist(), example.target["masks"], strict=True
    ):
        assert boxed(mask) == box
    yellow = example.image[:, example.target["masks"][0].bool()]
    assert (yellow == torch.tensor([[250], [220], [40]])).all()


def test_a_mirrored_example_still_fits_and_twice_is_the_same(root):
    found = split(root)
    example = read_example(found.images[0], Labels(found.categories), masks=True)
    other = mirrored(example)
    assert not torch.equal(other.image, example.image)
    for box, mask in zip(other.target["boxes"].int().tolist(), other.target["masks"], strict=True):
        assert boxed(mask) == box
    yellow = other.image[:, other.target["masks"][0].bool()]
    assert (yellow == torch.tensor([[250], [220], [40]])).all()
    again = mirrored(other)
    assert torch.equal(again.image, example.image)
    for name, value in example.target.items():
        assert torch.equal(again.target[name], value)


def boxed(mask: torch.Tensor) -> list[int]:
    rows, columns = mask.nonzero(as_tuple=True)
    return [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def test_polygons_and_both_run_length_codes_are_one_mask(root):
    image = split(root).images[0]
    polygons = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0], [40.0, 5.0, 50.0, 5.0, 50.0, 9.0]]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:25, 10:30] = 1
    mask = decoded_mask(polygons, image)
    assert (mask[:, :40].numpy() == expected[:, :40]).all()
    assert mask[:, 40:].any()
    compressed = encoded_mask(mask.bool())
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": run_lengths(mask.numpy())}
    assert torch.equal(decoded_mask(compressed, image), mask)
    assert torch.equal(decoded_mask(uncompressed, image), mask)
    assert mask_codes.area(compressed) == mask.sum()


def run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    return np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]).tolist()


def test_a_broken_picture_and_one_of_another_size_are_named(root):
    found = split(root)
    path = root / "images" / "train" / "1.png"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1.png cannot be read"):
        read_example(found.images[1], Labels(found.categories), masks=False)
    Image.new("RGB", (HEIGHT, WIDTH)).save(path)
    with pytest.raises(DataError, match=r"1.png has 48 x 64 pixels, its json says 64 x 48"):
        read_example(found.images[1], Labels(found.categories), masks=False)


def test_a_picture_is_decoded_as_for_every_recipe(root):
    found = split(root)
    deep = Image.fromarray(np.full((WIDTH, HEIGHT), 257 * 100, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    deep.save(root / "images" / "train" / "1.png", exif=exif)
    image = read_image(found.images[1])
    assert image.shape == (3, HEIGHT, WIDTH)
    assert (image == 100).all()
    Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0)).save(root / "images" / "train" / "1.png")
    assert (read_image(found.images[1]) == 255).all()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_picture_ends_training_in_one_line(root, num_workers):
    found = split(root)
    for image in found.images:
        image.path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^[^\n]*png cannot be read[^\n]*$"):
        next(batches(found, num_workers=num_workers))


def batches(found, *, num_workers=0, by_orientation=False, **plan):
    plan = BatchPlan(**{"global_batch_size": 2, "total_steps": 6, "seed": 5} | plan)
    return training_batches(
        found.with_objects(),
        Labels(found.categories),
        plan,
        masks=False,
        by_orientation=by_orientation,
        num_workers=num_workers,
    )


def test_wide_and_tall_pictures_are_grouped_by_the_size_in_the_json(root):
    content = read(root)
    for entry in content["images"][1:4]:
        entry |= {"width": HEIGHT, "height": WIDTH}
        path = root / "images" / "train" / entry["file_name"]
        Image.new("RGB", (HEIGHT, WIDTH)).save(path)
    for entry in content["annotations"]:
        entry |= {"bbox": [0, 0, 9, 9], "segmentation": []}
    write(root, "train", content)
    shapes = [
        {tuple(example.image.shape) for example in batch}
        for batch in batches(split(root), by_orientation=True)
    ]
    assert all(len(each) == 1 for each in shapes)
    assert len(set.union(*shapes)) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_to_score_are_read_in_their_order(root, num_workers):
    images = split(root).images
    read = list(read_images(images[1:5], num_workers=num_workers))
    expected = [read_image(image) for image in images[1:5]]
    assert len(read) == 4
    assert all(torch.equal(a, b) for a, b in zip(read, expected, strict=True))
    images[1].path.write_bytes(b"no picture")
    rest = read_images(images, num_workers=num_workers)
    next(rest)
    with pytest.raises(DataError, match=r"^[^\n]*1.png cannot be read[^\n]*$"):
        next(rest)
    assert list(read_images([], num_workers=num_workers)) == []


def test_every_tensor_of_an_example_is_pinned(root, monkeypatch):
    found = split(root)
    example = read_example(found.images[0], Labels(found.categories), masks=True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    pinned = example.pin_memory()
    assert torch.equal(pinned.image, example.image + 1)
    assert set(pinned.target) == {"boxes", "labels", "masks"}
    for name, value in pinned.target.items():
        assert torch.equal(value, example.target[name] + 1)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_batches_are_a_function_of_seed_and_step_however_shared(root, grouped):
    found = split(root)
    how = {"by_orientation": grouped}
    whole = [[example.image for example in batch] for batch in batches(found, **how)]
    assert len(whole) == 6
    late = [[example.image for example in batch] for batch in batches(found, start_step=4, **how)]
    shared = zip(
        *(batches(found, rank=rank, world_size=2, **how) for rank in range(2)), strict=True
    )
    together = [[example.image for part in parts for example in part] for parts in shared]
    assert all(
        torch.equal(a, b)
        for x, y in zip(whole[4:], late, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert all(
        torch.equal(a, b)
        for x, y in zip(whole, together, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    # Both sides of some picture were seen.
    pictures = {bytes(image.numpy().tobytes()) for batch in whole for image in batch}
    assert any(
        bytes(image.flip(2).numpy().tobytes()) in pictures for batch in whole for image in batch
    )


def test_a_detectors_output_becomes_coco_results(root):
    found = split(root)
    masks = torch.zeros(1, 1, HEIGHT, WIDTH)
    masks[0, 0, 5:16, 10:30] = 0.49
    masks[0, 0, 5:15, 10:30] = 0.5
    output = {
        "boxes": torch.tensor([[10.0, 5.0, 30.0, 15.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.5]),
        "masks": masks,
    }
    (result,) = coco_results(found.images[1], output, Labels(found.categories))
    code = result.pop("segmentation")
    assert result == {"image_id": 101, "category_id": 17, "bbox": [10, 5, 20, 10], "score": 0.5}
    assert torch.equal(decoded_mask(code, found.images[1]), (masks[0, 0] == 0.5).byte())
    empty = {name: value[:0] for name, value in output.items()}
    assert coco_results(found.images[1], empty, Labels(found.categories)) == []


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        mask = (rng.random((37, 41)) < share).astype(np.uint8)
        code = mask_codes.encode(np.asfortranarray(mask))
        flat = mask.flatten(order="F")
        borders = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        lengths = np.diff([0, *borders, flat.size]).tolist()
        assert run_lengths_of(code["counts"].decode()) == lengths
    long = np.zeros((300, 400), np.uint8)
    long[:, 390:] = 1
    assert run_lengths_of(mask_codes.encode(np.asfortranarray(long))["counts"].decode()) == [
        117_000,
        3000,
    ]


@pytest.mark.parametrize("text", ["~", "\n", "zzz", "`````````"])
def test_what_is_no_run_length_code_is_none_or_does_not_fill(text):
    lengths = run_lengths_of(text)
    assert lengths is None or min(lengths) < 0 or sum(lengths) < 100


def test_a_run_length_has_at_most_six_characters():
    assert run_lengths_of("PPSPP0") == [3072]
    assert run_lengths_of("PPSPPP0") is None
