import json

import numpy as np
import torch
from PIL import Image

from pcd_hub.data.scenes import render_scene
from pcd_hub.evaluate.scene_probe import TEST_SEED, scene_mosaics
from pcd_hub.report.pictures import principal_colours, save_pca, save_training_curve


def test_regions_of_one_feature_have_one_colour_and_others_another():
    maps = torch.zeros(2, 8, 4, 4)
    maps[:, 0] = 1.0
    maps[:, 1, :, 2:] = 3.0
    maps[1, 2, 2:] = 2.0
    colours = principal_colours(maps)
    assert colours.shape == (2, 3, 4, 4)
    assert colours.min() == 0
    assert colours.max() == 1
    assert torch.equal(colours[0, :, 0, 0], colours[0, :, 3, 1])
    assert (colours[0, :, 0, 0] - colours[0, :, 0, 3]).abs().max() > 0.5
    assert (colours[1, :, 0, 0] - colours[1, :, 3, 0]).abs().max() > 0.5


def test_the_scale_of_a_feature_does_not_matter_and_a_rerun_has_the_same_colours():
    maps = torch.randn(2, 16, 3, 3)
    torch.testing.assert_close(principal_colours(maps), principal_colours(7 * maps))


def test_two_channels_are_enough():
    colours = principal_colours(torch.randn(1, 2, 3, 3))
    assert colours.shape == (1, 3, 3, 3)
    assert not colours[:, 2].any()


def test_the_sheet_has_images_above_the_pixels_of_each_model(tmp_path):
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = {"teacher": torch.randn(2, 8, 4, 4), "student": torch.randn(2, 5, 2, 2)}
    save_pca(tmp_path / "pca.png", images, pixels)
    sheet = np.asarray(Image.open(tmp_path / "pca.png"))
    assert sheet.shape == (3 * 32, 2 * 32, 3)
    assert (sheet[:32, 32:] == images[1].permute(1, 2, 0).numpy()).all()
    cell = sheet[64:80, :16].reshape(-1, 3)
    assert (cell == cell[0]).all(), "a pixel of the student is one square"


def test_mosaics_keep_the_scenes_scale_and_order():
    mosaic = scene_mosaics(2, tiles=2)
    assert mosaic.shape == (2, 3, 192, 192)
    for number, (row, column) in {1: (0, 96), 2: (96, 0)}.items():
        scene = torch.from_numpy(render_scene(TEST_SEED, 4 + number, size=96).image)
        assert torch.equal(
            mosaic[1, :, row : row + 96, column : column + 96], scene.permute(2, 0, 1)
        )
    assert scene_mosaics(3, tiles=1, size=64).shape == (3, 3, 64, 64)


def test_the_curve_is_drawn_from_the_metrics(tmp_path):
    lines = [{"step": step, "loss": 5 - step / 10, "lr": 0.1} for step in range(20)]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_training_curve(tmp_path / "a.png", metrics)
    save_training_curve(tmp_path / "b.png", metrics)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    blue = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    line = (blue[..., 2] - blue[..., 0]) > 80
    columns = np.flatnonzero(line.any(0))
    heights = [int(np.flatnonzero(line[:, x]).mean()) for x in (columns[20], columns[-20])]
    assert heights[0] < heights[1], "the loss falls from left to right"
