import numpy as np
import pytest
import torch
from pycocotools import mask as mask_codes

from pcd_hub.data.labelled.coco import to_run_length_code
from pcd_hub.data.labelled.coco_validation import MAX_SIDE, decode_run_lengths
from pcd_hub.errors import DataError
from tests.train.detection.drawn_coco import draw_coco, read, read_drawn, write


@pytest.fixture
def root(tmp_path):
    return draw_coco(tmp_path / "drawn")


NAN, HUGE = float("nan"), 10**400

SQUARE = [1, 1, 9, 1, 9, 9]

NOT_A_BOX = r"expected \[left, top, width, height\] in pixels"

NOT_A_POLYGON = "expected at least 3 points"

BAD = [
    ("image_id", 999, "annotation 2 refers to image 999, which is not in 'images'"),
    ("image_id", 101.5, "'image_id' in annotation 2: expected an integer"),
    ("image_id", True, "'image_id' in annotation 2: expected an integer"),
    ("image_id", HUGE, "'image_id' in annotation 2: expected an integer"),
    ("category_id", 4, "annotation 2 has category 4: expected one of the 2 in 'categories' .3, 17"),
    ("category_id", "3", "'category_id' in annotation 2: expected an integer"),
    ("id", None, "annotation None: id None: expected a 64-bit integer"),
    ("id", 2**63, f"annotation {2**63}: id {2**63}: expected a 64-bit integer"),
    ("id", "a\nb", r"annotation 'a\\nb': id 'a\\nb': expected a 64-bit integer"),
    ("bbox", [5, 5, 0, 5], r"annotation 2: bbox \[5, 5, 0, 5\]: expected width and height > 0"),
    (
        "bbox",
        [60, 5, 9, 5],
        r"annotation 2: bbox \[60, 5, 9, 5\]: expected a box inside the 64 x 48",
    ),
    ("bbox", [5, -3, 9, 5], r"annotation 2: bbox \[5, -3, 9, 5\]: expected a box inside"),
    ("bbox", [64, 5, 1, 5], r"annotation 2: bbox \[64, 5, 1, 5\]: expected a box inside"),
    ("bbox", [5, 5, 1e308, 5], r"annotation 2: bbox .*: expected a box inside"),
    ("bbox", [5, 5, 9], rf"annotation 2: bbox \[5, 5, 9\]: {NOT_A_BOX}"),
    ("bbox", [5, 5, NAN, 5], f"annotation 2: bbox .*: {NOT_A_BOX}"),
    ("bbox", [5, 5, -float("inf"), 5], f"annotation 2: bbox .*: {NOT_A_BOX}"),
    ("bbox", [5, 5, HUGE, 5], f"annotation 2: bbox .*: {NOT_A_BOX}"),
    ("bbox", [True, 5, 5, 5], f"annotation 2: bbox .*: {NOT_A_BOX}"),
    ("bbox", [[5, 5, 5, 5]], f"annotation 2: bbox .*: {NOT_A_BOX}"),
    ("bbox", "5 5 5 5", f"annotation 2: bbox '5 5 5 5': {NOT_A_BOX}"),
    ("bbox", None, f"annotation 2: bbox None: {NOT_A_BOX}"),
    (
        "bbox",
        [40.0, 10, 1e-6, 30],
        "bbox .* covers 1e-06 x 30 pixels of the image: expected at least 0.015625",
    ),
    ("bbox", [63.9999999, 10, 0.5, 30], "bbox .* covers 1e-07 x 30 pixels of the image"),
    ("bbox", [10, -0.5, 30, 0.5], "bbox .* covers 30 x 0 pixels of the image"),
    ("bbox", [10, -0.5, 30, 0.25], "bbox .* covers 30 x 0 pixels of the image"),
    ("area", "big", "annotation 2: area 'big': expected a number from 0 to 536870911"),
    ("area", -1, "annotation 2: area -1: expected a number"),
    ("area", 1e30, r"annotation 2: area 1e\+30: expected a number"),
    ("area", HUGE, r"annotation 2: area 100.*\.\.\..*00: expected a number"),
    ("area", True, "annotation 2: area True: expected a number"),
    ("iscrowd", 2, "annotation 2: iscrowd 2: expected 0 or 1"),
    ("iscrowd", [], r"annotation 2: iscrowd \[\]: expected 0 or 1"),
    ("difficult", NAN, "annotation 2: difficult nan: expected 0 or 1"),
    ("ignore", "yes", "annotation 2: ignore 'yes': expected 0 or 1"),
    ("segmentation", {"size": [48, 64], "counts": [3000]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [3073, -1]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [0.5] * 6144}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [3071, True]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": [HUGE]}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": []}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": ""}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": "\0~\u20ac"}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64], "counts": None}, "do not fill the 64 x 48"),
    ("segmentation", {"size": [48, 64]}, "annotation 2: segmentation .*: expected polygons"),
    ("segmentation", {"size": [64, 48], "counts": [3072]}, "run-length mask of size .64, 48."),
    ("segmentation", {"size": [10**9, 10**9], "counts": [10**18]}, "run-length mask of size .1000"),
    ("segmentation", {"size": [True, NAN], "counts": [1]}, "run-length mask of size .True, nan."),
    ("segmentation", "none", "annotation 2: segmentation 'none': expected polygons or"),
    ("segmentation", [[1, 1, 5, 5]], NOT_A_POLYGON),
    ("segmentation", [[]], NOT_A_POLYGON),
    ("segmentation", [SQUARE, [*SQUARE, 1]], NOT_A_POLYGON),
    ("segmentation", SQUARE, f"polygon 1: {NOT_A_POLYGON}"),
    ("segmentation", [[SQUARE]], NOT_A_POLYGON),
    ("segmentation", [{"counts": [3072], "size": [48, 64]}], NOT_A_POLYGON),
    (
        "segmentation",
        [[[1, 1], [9, 1], [9, 9], [1, 9], [1, 5], [1, 3]]],
        r"x = \[1, 1\]: expected a number",
    ),
    ("segmentation", [[*SQUARE, 1e30, 9]], r"x = 1e\+30: expected a number from -64 to 128"),
    ("segmentation", [[*SQUARE, 9, -1e30]], r"y = -1e\+30: expected a number from -48 to 96"),
    ("segmentation", [[*SQUARE, 128.1, 9]], r"x = 128.1: expected a number from -64 to 128"),
    ("segmentation", [[*SQUARE, NAN, 9]], "x = nan: expected a number"),
    ("segmentation", [[*SQUARE, 9, HUGE]], "y = 1000.*: expected a number"),
    ("segmentation", [[*SQUARE, False, 9]], "x = False: expected a number"),
    (
        "segmentation",
        [[-64, 0, 128, 0] * 3000],
        r"an outline of 1\.15e\+06 pixels: expected at most 1000000",
    ),
]


@pytest.mark.parametrize(
    ("name", "value", "message"), BAD, ids=[f"{name}{n}" for n, (name, *_) in enumerate(BAD)]
)
def test_an_invalid_annotation_is_named_with_its_file(root, name, value, message):
    content = read(root)
    content["annotations"][2][name] = value
    write(root, "train", content)
    with pytest.raises(DataError, match=message) as caught:
        read_drawn(root)
    text = str(caught.value)
    assert str(root / "annotations" / "instances_train.json") in text
    assert "\n" not in text
    assert len(text) < 400 + len(str(root))
    if name not in ("image_id", "category_id"):
        annotations = read_drawn(root, bad_annotations="drop").to_coco()["annotations"]
        assert len(annotations) == len(content["annotations"]) - 1


def test_values_at_the_bounds_are_accepted(root):
    content = read(root)
    polygon = [-64, -48, 128, -48, 128, 96, -64, 96]
    content["annotations"][2] |= {"id": 3.0, "area": 2**29 - 1, "iscrowd": False, "ignore": 1}
    content["annotations"][2] |= {"bbox": [64 - 1 / 64, 0, 1.0, 1 / 64], "segmentation": [polygon]}
    write(root, "train", content)
    found = read_drawn(root).images[0]
    assert len(found.objects) == 3
    code = to_run_length_code([[float(v) for v in polygon]], found.height, found.width)
    assert mask_codes.area(code) == found.height * found.width


def test_the_smallest_box_stays_positive_in_float32_in_the_largest_image():
    side, smallest = float(MAX_SIDE), 1 / 64
    for left in (0.0, 1 / 3, side / 3, side / 2 + 1e-4, side - smallest):
        right = left + smallest
        mirrored_box = torch.tensor([side]) - torch.tensor([right, left])
        for low, high in (torch.tensor([left, right]), mirrored_box):
            for ratio in (800 / side, 1333 / 1000, 1 / 3):
                assert low * torch.tensor(ratio) < high * torch.tensor(ratio)


def test_run_lengths_written_by_pycocotools_are_decoded():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        mask = (rng.random((37, 41)) < share).astype(np.uint8)
        code = mask_codes.encode(np.asfortranarray(mask))
        flat = mask.flatten(order="F")
        borders = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        lengths = np.diff([0, *borders, flat.size]).tolist()
        assert decode_run_lengths(code["counts"].decode()) == lengths
    long = np.zeros((300, 400), np.uint8)
    long[:, 390:] = 1
    assert decode_run_lengths(mask_codes.encode(np.asfortranarray(long))["counts"].decode()) == [
        117_000,
        3000,
    ]


@pytest.mark.parametrize("text", ["~", "\n", "zzz", "`````````"])
def test_an_invalid_run_length_code_is_none_or_does_not_fill_the_mask(text):
    lengths = decode_run_lengths(text)
    assert lengths is None or min(lengths) < 0 or sum(lengths) < 100


def test_a_run_length_of_more_than_six_characters_is_invalid():
    assert decode_run_lengths("PPSPP0") == [3072]
    assert decode_run_lengths("PPSPPP0") is None
