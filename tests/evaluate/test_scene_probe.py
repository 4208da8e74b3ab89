import torch

from pcd_hub.data.scenes import render_scene
from pcd_hub.evaluate.scene_probe import TEST_SEED, scene_mosaics


def test_mosaics_keep_the_scenes_scale_and_order():
    mosaic = scene_mosaics(2, tiles=2)
    assert mosaic.shape == (2, 3, 192, 192)
    for number, (row, column) in {1: (0, 96), 2: (96, 0)}.items():
        scene = torch.from_numpy(render_scene(TEST_SEED, 4 + number, size=96).image)
        assert torch.equal(
            mosaic[1, :, row : row + 96, column : column + 96], scene.permute(2, 0, 1)
        )
    assert scene_mosaics(3, tiles=1, size=64).shape == (3, 3, 64, 64)
