import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_codes
from torch.utils.data._utils.pin_memory import pin_memory

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.errors import DataError
from pcd_hub.train.detection.batches import (
    Labels,
    coco_results,
    decode_mask,
    detection_batches,
    encode_mask,
    mirrored,
    read_example,
    read_image,
    read_images,
)
from tests.train.detection.drawn_coco import HEIGHT, WIDTH, draw_coco, read, read_drawn, write


@pytest.fixture
def root(tmp_path):
    return draw_coco(tmp_path / "drawn")


def test_a_box_across_the_border_is_clipped_for_training_only(root):
    content = read(root)
    content["annotations"][0]["bbox"] = [-0.5, 30, 10, 18.4]
    write(root, "train", content)
    found = read_drawn(root)
    example = read_example(found.images[0], Labels(found.categories), masks=False)
    assert example.target["boxes"][0].tolist() == [0, 30, 9.5, HEIGHT]
    assert found.to_coco()["annotations"][0]["bbox"] == [-0.5, 30, 10, 18.4]


def test_labels_and_category_ids_map_to_each_other():
    labels = Labels({90: "z", 3: "a", 17: "m"})
    assert [labels.label(key) for key in (3, 17, 90)] == [1, 2, 3]
    assert [labels.category_id(label) for label in (1, 2, 3)] == [3, 17, 90]


def test_an_example_has_all_objects_except_crowds(root):
    found = read_drawn(root)
    example = read_example(found.images[0], Labels(found.categories), masks=True)
    assert example.target["labels"].tolist() == [1, 2]
    assert example.target["masks"].shape == (2, HEIGHT, WIDTH)
    for box, mask in zip(
        example.target["boxes"].int().tolist(), example.target["masks"], strict=True
    ):
        assert boxed(mask) == box
    yellow = example.image[:, example.target["masks"][0].bool()]
    assert (yellow == torch.tensor([[250], [220], [40]])).all()


def test_mirroring_moves_boxes_and_masks_and_is_its_own_inverse(root):
    found = read_drawn(root)
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


def test_polygons_and_both_run_length_codes_give_the_same_mask(root):
    image = read_drawn(root).images[0]
    polygons = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0], [40.0, 5.0, 50.0, 5.0, 50.0, 9.0]]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:25, 10:30] = 1
    mask = decode_mask(polygons, image)
    assert (mask[:, :40].numpy() == expected[:, :40]).all()
    assert mask[:, 40:].any()
    compressed = encode_mask(mask.bool())
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": run_lengths(mask.numpy())}
    assert torch.equal(decode_mask(compressed, image), mask)
    assert torch.equal(decode_mask(uncompressed, image), mask)
    assert mask_codes.area(compressed) == mask.sum()


def run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    return np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]).tolist()


def test_an_image_that_is_broken_or_has_another_size_is_named(root):
    found = read_drawn(root)
    path = root / "images" / "train" / "1.png"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1.png cannot be read"):
        read_example(found.images[1], Labels(found.categories), masks=False)
    Image.new("RGB", (HEIGHT, WIDTH)).save(path)
    with pytest.raises(DataError, match=r"1.png has 48 x 64 pixels, its labels say 64 x 48"):
        read_example(found.images[1], Labels(found.categories), masks=False)


def test_images_are_decoded_by_the_rules_of_decoding(root):
    found = read_drawn(root)
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
def test_a_broken_image_ends_training_with_a_one_line_error(root, num_workers):
    found = read_drawn(root)
    for image in found.images:
        image.path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^[^\n]*png cannot be read[^\n]*$"):
        next(batches(found, num_workers=num_workers))


def batches(found, *, num_workers=0, by_orientation=False, **plan):
    plan = BatchPlan(**{"global_batch_size": 2, "total_steps": 6, "seed": 5} | plan)
    return detection_batches(
        found.with_objects(),
        Labels(found.categories),
        plan,
        masks=False,
        by_orientation=by_orientation,
        num_workers=num_workers,
    )


def test_wide_and_tall_images_are_grouped_by_the_size_in_the_json(root):
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
        for batch in batches(read_drawn(root), by_orientation=True)
    ]
    assert all(len(each) == 1 for each in shapes)
    assert len(set.union(*shapes)) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_to_score_are_read_in_order(root, num_workers):
    images = read_drawn(root).images
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
    found = read_drawn(root)
    example = read_example(found.images[0], Labels(found.categories), masks=True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)
    pinned = pin_memory(example)
    assert torch.equal(pinned.image, example.image + 1)
    assert set(pinned.target) == {"boxes", "labels", "masks"}
    for name, value in pinned.target.items():
        assert torch.equal(value, example.target[name] + 1)


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_depend_on_seed_and_step_but_not_on_the_number_of_processes(root, grouped):
    found = read_drawn(root)
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
    found = read_drawn(root)
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
    assert torch.equal(decode_mask(code, found.images[1]), (masks[0, 0] == 0.5).byte())
    empty = {name: value[:0] for name, value in output.items()}
    assert coco_results(found.images[1], empty, Labels(found.categories)) == []
