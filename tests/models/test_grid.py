import pytest
import timm
import torch
from torch import nn

from pcd_hub.errors import StudentError
from pcd_hub.method.distiller import freeze_unused_parameters
from pcd_hub.models.grid import FinestMap, pixel_grid
from tests.versions import has_efficientvim

CASES = [
    ("resnet18", 64, (512, 2, 2)),
    ("mobilenetv3_small_050", 64, (288, 2, 2)),
    ("mobilenetv2_035", 64, (1280, 2, 2)),
    ("efficientnet_lite0", 64, (1280, 2, 2)),
    ("ghostnet_050", 64, (480, 2, 2)),
    ("convnext_atto", 64, (320, 2, 2)),
    ("vit_tiny_patch16_224", 224, (192, 14, 14)),
    ("test_vit", 160, (64, 10, 10)),
    ("swin_tiny_patch4_window7_224", 224, (768, 7, 7)),
    ("coat_lite_tiny", 224, (320, 7, 7)),
    ("coat_tiny", 224, (152, 7, 7)),
    pytest.param("efficientvim_m1", 256, (320, 4, 4), marks=has_efficientvim),
]


@pytest.mark.parametrize(("arch", "size", "shape"), CASES)
def test_any_backbone_is_a_grid_of_pixels(arch, size, shape):
    model = timm.create_model(arch, num_classes=0)
    grid = pixel_grid(model, image_size=size).eval()
    with torch.no_grad():
        assert grid(torch.rand(2, 3, size, size)).shape == (2, *shape)
    assert grid.num_channels == shape[0]


@has_efficientvim
def test_a_map_without_its_rows_keeps_places():
    """EfficientViM: a change in one corner of the image must show most near that corner."""
    torch.manual_seed(0)
    model = timm.create_model("efficientvim_m1", num_classes=0).eval()
    grid = pixel_grid(model, image_size=640)
    changed = (image := torch.zeros(1, 3, 640, 640)).clone()
    changed[..., :64, -64:] = 1.0
    with torch.no_grad():
        difference = (grid(changed) - grid(image)).norm(dim=1)[0]
    row, column = divmod(int(difference.argmax()), 10)
    assert row <= 1
    assert column >= 8


@pytest.mark.parametrize("arch", ["test_vit", "volo_d1_224"])
def test_prefix_tokens_are_dropped_and_places_kept(arch):
    """A change in one corner of the image must show most in that corner of the grid."""
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=0, img_size=160).eval()
    grid = pixel_grid(model, image_size=160)
    image = torch.zeros(1, 3, 160, 160)
    changed = image.clone()
    changed[..., :16, -16:] = 1.0
    with torch.no_grad():
        difference = (grid(changed) - grid(image)).norm(dim=1)[0]
    assert divmod(int(difference.argmax()), 10) == (0, 9)


def test_a_stated_number_of_prefix_tokens_is_believed():
    """Ten tokens are one pixel and nine stated others, though ten less a class token is 3 x 3."""
    model = timm.create_model("test_vit", num_classes=0, reg_tokens=8, img_size=16)
    with torch.no_grad():
        assert pixel_grid(model, image_size=16)(torch.rand(1, 3, 16, 16)).shape == (1, 64, 1, 1)


def test_oblong_images_keep_their_rows():
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        assert pixel_grid(model)(torch.rand(1, 3, 96, 192)).shape == (1, 64, 6, 12)


@pytest.mark.parametrize(
    ("arch", "options", "shape"),
    [
        ("resnet18", {}, (512, 3, 5)),
        ("convnext_atto", {}, (320, 3, 5)),
        ("test_vit", {"img_size": (96, 160)}, (64, 6, 10)),
        ("vit_tiny_patch16_224", {"img_size": (96, 160)}, (192, 6, 10)),
        ("swin_tiny_patch4_window7_224", {"img_size": (96, 160)}, (768, 3, 5)),
        pytest.param("efficientvim_m1", {}, (320, 2, 3), marks=has_efficientvim),
    ],
)
def test_any_layout_of_oblong_features_is_detected(arch, options, shape):
    size = (128, 192) if arch == "efficientvim_m1" else (96, 160)
    model = timm.create_model(arch, num_classes=0, **options)
    grid = pixel_grid(model, image_size=size).eval()
    with torch.no_grad():
        images = torch.rand(1, 3, *size)
        assert grid(images).shape[1:] == shape
        wide = grid(images.flip(3)) if arch == "resnet18" else None
    assert wide is None or wide.shape[1:] == shape


@pytest.mark.parametrize("size", [(100, 130), (130, 100), (65, 190)])
def test_a_side_that_the_stride_does_not_divide_is_rounded(size):
    grid = pixel_grid(timm.create_model("resnet18", num_classes=0), image_size=size).eval()
    with torch.no_grad():
        shape = grid(torch.rand(1, 3, *size)).shape
    assert shape == (1, 512, -(-size[0] // 32), -(-size[1] // 32))


def test_tokens_that_fill_no_grid_of_the_images_aspect_are_refused():
    class Tokens(nn.Linear):
        def forward_features(self, images):
            return torch.zeros(len(images), 61, 3)

    with pytest.raises(StudentError, match="no spatial feature map"):
        pixel_grid(Tokens(3, 3), image_size=(96, 160))


def test_the_models_mode_is_restored():
    model = timm.create_model("test_resnet", num_classes=0).train()
    pixel_grid(model)
    assert model.training


def test_an_image_size_that_the_model_cannot_take_is_named():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(
        StudentError, match=r"vit_tiny_patch16_224 cannot take 96 x 96 pixels .*224"
    ):
        pixel_grid(model, image_size=96)


def test_what_has_no_grid_is_refused():
    with pytest.raises(StudentError, match="not a timm model"):
        pixel_grid(nn.Linear(3, 3))

    class Flat(nn.Linear):
        def forward_features(self, images):
            return images.flatten(1)[:, :3]

    with pytest.raises(StudentError, match="no spatial feature map"):
        pixel_grid(Flat(3, 3), image_size=8)


@has_efficientvim
def test_what_the_architecture_itself_freezes_is_left_alone():
    grid = pixel_grid(timm.create_model("efficientvim_m1", num_classes=0), image_size=128)
    grid.model.patch_embed.requires_grad_(False)
    unreached = freeze_unused_parameters(grid, torch.zeros(2, 3, 128, 128))
    assert not [name for name in unreached if "patch_embed" in name]


def test_layers_behind_the_last_map_are_frozen_and_named():
    grid = pixel_grid(timm.create_model("mobilenetv3_small_050", num_classes=0), image_size=64)
    before = grid.model.blocks[0][0].bn1.running_mean.clone()
    unreached = freeze_unused_parameters(grid, torch.zeros(2, 3, 64, 64))
    assert set(unreached) == {"model.conv_head.weight", "model.conv_head.bias"}
    assert not grid.model.conv_head.weight.requires_grad
    assert grid.model.conv_stem.weight.requires_grad
    assert torch.equal(grid.model.blocks[0][0].bn1.running_mean, before), (
        "the probe must leave no trace"
    )
    assert all(p.grad is None for p in grid.parameters())
    assert grid.training


@pytest.mark.parametrize(
    ("arch", "channels"),
    [
        ("resnet18", (512, 256)),
        ("mobilenetv4_conv_small", (960, 96)),
        ("efficientnet_lite0", (1280, 112)),  # the last map is that after conv_head
        ("convnext_atto", (320, 160)),
        ("swin_tiny_patch4_window7_224", (768, 384)),
    ],
)
def test_the_map_before_the_last_one_is_twice_as_fine(arch, channels):
    grid = pixel_grid(timm.create_model(arch, num_classes=0), image_size=224)
    finest = FinestMap(grid, 2, image_size=224)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        last, finer = grid.eval()(images, 2)
        assert torch.equal(last, grid(images))
        assert torch.equal(finer, finest(images))
    assert (last.shape[1], finer.shape[1]) == channels == finest.num_channels
    assert (last.shape[2:], finer.shape[2:]) == ((7, 7), (14, 14))


def test_one_map_is_the_last_one():
    grid = pixel_grid(timm.create_model("test_vit", num_classes=0)).eval()
    finest, images = FinestMap(grid, 1, image_size=160), torch.randn(2, 3, 160, 160)
    assert finest.num_channels == (64,)
    assert torch.equal(finest(images), grid(images))


@pytest.mark.parametrize(
    ("arch", "size", "num_maps", "message"),
    [
        ("test_vit", 160, 2, "have 10 x 10, 10 x 10 locations: expected each to be finer"),
        ("resnet18", 64, 9, "timm does not return the last 9 feature maps of resnet18"),
        ("resnet18", 32, 4, None),
    ],
)
def test_a_student_without_finer_maps_is_refused(arch, size, num_maps, message):
    grid = pixel_grid(timm.create_model(arch, num_classes=0), image_size=size)
    if message is None:
        assert FinestMap(grid, num_maps, image_size=size).num_channels == (512, 256, 128, 64)
        return
    with pytest.raises(StudentError, match=message) as caught:
        FinestMap(grid, num_maps, image_size=size)
    assert "--method.feature-maps 1" in str(caught.value)
    assert grid.training, "the mode is restored"


def test_another_number_of_channels_is_not_called_a_size():
    with pytest.raises(StudentError, match="resnet18 takes images of 4 channels, expected 3$"):
        pixel_grid(timm.create_model("resnet18", num_classes=0, in_chans=4), image_size=64)
