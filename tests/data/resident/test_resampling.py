"""Batched resizing and blur against Pillow's and OpenCV's of one image."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pcd_hub.data.resident.resampling import (
    apply_weights,
    blur_radius,
    blur_weights,
    count_taps,
    crop_weights,
    gather_windows,
    window_of,
)

BOXES = [
    (0.0, 0.0, 128.0, 128.0),
    (3.5, 10.25, 40.0, 90.5),  # enlarged and reduced
    (90.0, 1.0, 128.0, 30.0),
    (20.0, 20.0, 84.0, 84.0),
]


def resized(array, boxes, size, *, flip=(False, False), window=None):
    """Crop and resize copies of one image by their boxes."""
    height, width = size
    planes = torch.from_numpy(array).movedim(-1, 0).float().expand(len(boxes), -1, -1, -1)
    weights = []
    for side, length, pixels in ((0, width, array.shape[1]), (1, height, array.shape[0])):
        low, high = (torch.tensor([box[side + 2 * end] for box in boxes]) for end in (0, 1))
        count = torch.full((len(boxes),), pixels)
        weights.append(
            crop_weights(
                low,
                high,
                torch.zeros(len(boxes), dtype=torch.int64),
                count,
                torch.full((len(boxes),), flip[side]),
                length=length,
                window=window or pixels,
                taps=max(count_taps(box[side], box[side + 2], length) for box in boxes),
            )
        )
    return apply_weights(
        planes[..., : weights[1].shape[2], :], weights[1], weights[0], in_8_bits=True
    )


@pytest.mark.parametrize("size", [(48, 48), (32, 80), (200, 160)])
def test_resizing_is_pillows_with_antialiasing(photo, size):
    height, width = size
    ours = resized(photo, BOXES, size).round().clamp(0, 255)
    for box, one in zip(BOXES, ours, strict=True):
        image = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC, box=box)
        difference = one.movedim(0, -1) - torch.from_numpy(np.array(image)).float()
        assert difference.abs().max() <= 2
        assert (difference != 0).float().mean() < 0.02


def test_flips_mirror_the_result(photo):
    plain = resized(photo, BOXES, (32, 24))
    torch.testing.assert_close(resized(photo, BOXES, (32, 24), flip=(True, False)), plain.flip(3))
    torch.testing.assert_close(resized(photo, BOXES, (32, 24), flip=(False, True)), plain.flip(2))


@pytest.mark.parametrize("box", BOXES)
def test_a_window_has_every_pixel_with_weight(box):
    for side in (0, 1):
        low, high = box[side], box[side + 2]
        first, end = window_of(low, high, 128, 32)
        edges = [torch.tensor([float(one)]) for one in (low, high)]
        weights = crop_weights(
            *edges,
            torch.tensor([0]),
            torch.tensor([128]),
            torch.tensor([False]),
            length=32,
            window=128,
            taps=count_taps(low, high, 32),
        )[0]
        used = weights.abs().sum(0).nonzero()[:, 0]
        assert first <= used.min()
        assert used.max() < end
        assert (first, end) != (0, 128) or (low, high) == (0.0, 128.0)


def test_windows_are_gathered_from_images_of_different_sizes():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (h, w, 2), dtype=np.uint8) for h, w in ((5, 7), (9, 4), (6, 6))]
    pixels = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays] + [[0] * 14]))
    starts = torch.tensor([0, 70, 142])
    sizes = torch.tensor([[7, 5], [4, 9], [6, 6]])
    corners = torch.tensor([[2, 1], [1, 6], [0, 3]])
    windows = gather_windows(
        pixels.to(torch.uint8), starts, sizes, corners, window=(3, 3), num_bands=2
    )
    for array, (left, top), window in zip(arrays, corners.tolist(), windows, strict=True):
        assert np.array_equal(window.numpy(), array[top : top + 3, left : left + 3])


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.8571, 1.99])
def test_blur_is_opencvs(photo, sigma):
    small = photo[:40, :56]
    expected = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    sigmas = torch.tensor([sigma, 2.0])
    weights = [blur_weights(sigmas, length=n, max_sigma=2.0) for n in small.shape[:2]]
    planes = torch.from_numpy(small).movedim(-1, 0).float().expand(2, -1, -1, -1)
    ours = apply_weights(planes, *weights)[0].movedim(0, -1)
    assert (ours - torch.from_numpy(expected).float()).abs().max() <= 1


def test_blur_reaches_three_standard_deviations():
    assert [blur_radius(sigma) for sigma in (0.05, 0.5, 2.0)] == [0, 2, 6]
