import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2

from pcd_hub.data.decoding import as_rgb, upright_jpeg_size
from pcd_hub.data.loader import DecodeForViews
from pcd_hub.data.scenes import render_scene
from pcd_hub.data.views import (
    ViewParameters,
    ViewPolicy,
    byol_views,
    draw_view,
    render_view,
    render_view_with_pillow,
)
from pcd_hub.errors import DataError

IMAGE = Image.fromarray(render_scene(0, 1, size=120).image)


def test_a_view_is_a_function_of_seed_epoch_and_index():
    views = byol_views(48, seed=3)
    one = views(IMAGE, epoch=1, index=7)
    assert one.shape == (2, 3, 48, 48)
    torch.manual_seed(1)
    assert torch.equal(views(IMAGE, epoch=1, index=7), one)
    for other in (
        views(IMAGE, epoch=2, index=7),
        views(IMAGE, epoch=1, index=8),
        byol_views(48, seed=4)(IMAGE, epoch=1, index=7),
    ):
        assert not torch.equal(other, one)
    assert not torch.equal(one[0], one[1])


PLAIN = {
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": 0.0,
    "flip_probability": 0.0,
}


def test_without_augmentation_a_view_is_the_resized_image():
    policy = ViewPolicy(crop_area=(1.0, 1.0), **PLAIN)
    parameters = draw_view(policy, np.random.default_rng(0), width=120, height=120)
    assert parameters.box == (0, 0, 120, 120)
    view = render_view(IMAGE, parameters, size=120)
    assert torch.equal(view, torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1))


def draws(policy, count=4000, width=500, height=375):
    rng = np.random.default_rng(0)
    return [draw_view(policy, rng, width=width, height=height) for _ in range(count)]


def torchvision_boxes(count):
    """Sample areas and aspect ratios from torchvision's RandomResizedCrop."""
    image = torch.empty(3, 375, 500)
    boxes = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    return (
        np.asarray([h * w / (500 * 375) for _, _, h, w in boxes]),
        np.asarray([w / h for _, _, h, w in boxes]),
    )


def test_drawn_parameters_have_the_distribution_of_the_policy():
    first = byol_views(224, seed=0).first
    drawn = draws(first)
    areas = np.asarray(
        [
            (right - left) * (bottom - top) / (500 * 375)
            for left, top, right, bottom in (d.box for d in drawn)
        ]
    )
    aspects = np.asarray(
        [(right - left) / (bottom - top) for left, top, right, bottom in (d.box for d in drawn)]
    )
    reference_areas, reference_aspects = torchvision_boxes(len(drawn))
    for ours, theirs in ((areas, reference_areas), (aspects, reference_aspects)):
        error = 4 * np.sqrt(2 / len(drawn))
        assert abs(ours.mean() - theirs.mean()) < error * theirs.std()
        assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
        assert ours.min() == pytest.approx(theirs.min(), abs=0.02)
        assert ours.max() == pytest.approx(theirs.max(), abs=0.05)

    def share(what):
        return np.mean([bool(what(d)) for d in drawn])

    assert share(lambda d: d.flip) == pytest.approx(0.5, abs=0.03)
    assert share(lambda d: d.jitter) == pytest.approx(0.8, abs=0.03)
    assert share(lambda d: d.gray) == pytest.approx(0.2, abs=0.03)
    assert share(lambda d: d.blur_sigma > 0) == 1
    assert share(lambda d: d.solarize) == 0
    factors = dict(zip(("brightness", "hue"), ([], []), strict=True))
    for d in drawn:
        for name, factor in d.jitter:
            factors.setdefault(name, []).append(factor)
    assert np.min(factors["brightness"]) == pytest.approx(0.6, abs=0.01)
    assert np.max(factors["hue"]) == pytest.approx(0.1, abs=0.01)
    assert {d.jitter[0][0] for d in drawn if d.jitter} == {
        "brightness",
        "contrast",
        "saturation",
        "hue",
    }


def test_the_crop_of_an_oblong_view_has_the_aspect_of_the_view():
    """Objects are distorted by 3/4 to 4/3, as in a square view."""
    rng, policy = np.random.default_rng(0), ViewPolicy(crop_area=(0.08, 0.3))
    for aspect in (160 / 96, 96 / 160):
        drawn = [
            draw_view(policy, rng, width=500, height=500, aspect=aspect).crop_size
            for _ in range(2000)
        ]
        distortion = np.asarray([width / height for width, height in drawn]) / aspect
        assert distortion.min() == pytest.approx(3 / 4, abs=0.02)
        assert distortion.max() == pytest.approx(4 / 3, abs=0.02)
        assert np.log(distortion).mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("size", [(4, 400), (400, 4)])
def test_the_centre_crop_for_an_oblong_view_has_nearly_its_aspect(size):
    """The crop after ten misses covers the short side, and is at most 4/3 too long or too wide."""
    width, height = size
    drawn = draw_view(
        ViewPolicy(crop_area=(1.0, 1.0)),
        np.random.default_rng(0),
        width=width,
        height=height,
        aspect=2.0,
    )
    crop_width, crop_height = drawn.crop_size
    assert (crop_width if width < height else crop_height) == 4
    wanted = 2 * 3 / 4 if width < height else 2 * 4 / 3
    assert crop_width / crop_height == pytest.approx(wanted)


def test_oblong_views():
    views = byol_views((48, 80), seed=3)
    one = views(IMAGE, epoch=1, index=7)
    assert one.shape == (2, 3, 48, 80)
    square, same = byol_views(48, seed=3), byol_views((48, 48), seed=3)
    assert torch.equal(square(IMAGE, epoch=1, index=7), same(IMAGE, epoch=1, index=7))


def test_only_the_second_view_is_solarized_and_rarely_blurred():
    second = draws(byol_views(224, seed=0).second)
    assert np.mean([d.blur_sigma > 0 for d in second]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([d.solarize for d in second]) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (7, 7)])
def test_tiny_and_oblong_images_have_views(size):
    views = byol_views(32, seed=0)
    for index in range(20):
        assert views(Image.new("RGB", size, "red"), epoch=0, index=index).shape == (2, 3, 32, 32)


def test_flip_gray_solarize_and_blur_have_their_effect():
    drawn = draw_view(
        ViewPolicy(crop_area=(1.0, 1.0), **PLAIN), np.random.default_rng(1), width=120, height=120
    )
    straight = render_view(IMAGE, drawn, size=120)
    flipped = render_view(IMAGE, dataclasses.replace(drawn, flip=True), size=120)
    assert torch.equal(flipped, straight.flip(2))
    gray = render_view(IMAGE, dataclasses.replace(drawn, gray=True), size=120)
    assert torch.equal(gray[0], gray[1])
    inverted = render_view(IMAGE, dataclasses.replace(drawn, solarize=True), size=120)
    assert torch.equal(inverted, torch.where(straight < 128, straight, 255 - straight))
    blurred = render_view(IMAGE, dataclasses.replace(drawn, blur_sigma=4.0), size=120)
    assert blurred.float().var() < straight.float().var()


RENDERERS = [render_view, render_view_with_pillow]
WHOLE = ViewParameters(
    box=(0.0, 0.0, 96.0, 96.0), flip=False, jitter=(), gray=False, blur_sigma=0.0, solarize=False
)


@pytest.mark.parametrize(
    ("change", "most"),
    [
        ({"jitter": (("brightness", 1.4),)}, 1),
        ({"jitter": (("contrast", 0.6),)}, 1),
        ({"jitter": (("contrast", 1.4),)}, 1),
        ({"jitter": (("saturation", 0.8),)}, 1),
        ({"jitter": (("saturation", 1.2),)}, 1),
        ({"jitter": (("hue", 0.1),)}, 18),
        ({"jitter": (("hue", -0.1),)}, 18),
        ({"gray": True}, 1),
        ({"solarize": True}, 0),
        ({"flip": True}, 0),
    ],
    ids=str,
)
def test_opencv_and_pillow_give_the_same_colours(change, most):
    """Pillow truncates and OpenCV rounds; hue in 8 bits is coarse in both."""
    parameters = dataclasses.replace(WHOLE, **change)
    for scene in range(4):
        image = Image.fromarray(render_scene(5, scene, size=96).image)
        ours, theirs = (render(image, parameters, size=96).float() for render in RENDERERS)
        assert (ours - theirs).abs().max() <= most
        assert (ours - theirs).abs().mean() <= (2 if most > 1 else 0.6)
        if not change.get("flip"):
            plain = render_view(image, WHOLE, size=96).float()
            assert (ours - plain).abs().mean() > 1, "no effect"


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_adds_the_variance_of_its_gaussian_at_224(sigma):
    square = np.zeros((224, 224, 3), np.uint8)
    square[116:125, 96:105] = 255  # variance 20 / 3; large enough for 8 bits to resolve the edge
    parameters = dataclasses.replace(WHOLE, box=(0.0, 0.0, 224.0, 224.0), blur_sigma=sigma)
    view = render_view(Image.fromarray(square), parameters, size=224)[0].double()
    share = view / view.sum()
    places = torch.arange(224.0, dtype=torch.float64)
    for axis, centre in ((0, 120), (1, 100)):
        mass = share.sum(1 - axis)
        mean = (mass * places).sum()
        assert mean == pytest.approx(centre, abs=0.02)
        variance = (mass * (places - mean) ** 2).sum()
        assert variance == pytest.approx(sigma**2 + 20 / 3, rel=0.02)


def test_blur_of_an_oblong_view_follows_the_root_of_its_area():
    image = Image.fromarray(render_scene(5, 0, size=96).image)
    blurred = dataclasses.replace(WHOLE, blur_sigma=2.0)
    for render in RENDERERS:
        wide = render(image, blurred, size=(32, 128))
        plain = torch.from_numpy(np.array(image.resize((128, 32), Image.Resampling.BICUBIC)))
        again = dataclasses.replace(blurred, box=(0.0, 0.0, 128.0, 32.0))
        resized = Image.fromarray(plain.numpy())
        assert torch.equal(render(resized, again, size=(32, 128)), wide)
        square = dataclasses.replace(blurred, box=(0.0, 0.0, 64.0, 64.0))
        edge = np.zeros((64, 64, 3), np.uint8)
        edge[:, 32:] = 255
        row = render(Image.fromarray(edge), square, size=64)[0, 32].float()
        tall = np.zeros((128, 32, 3), np.uint8)
        tall[64:] = 255
        oblong = dataclasses.replace(blurred, box=(0.0, 0.0, 32.0, 128.0))
        column = render(Image.fromarray(tall), oblong, size=(128, 32))[0, 32:96, 16].float()
        torch.testing.assert_close(row, column, rtol=0, atol=1)


def torchvision_views(image_size, blur, solarize):
    """Build a view of BYOL from torchvision's transforms."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                image_size, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, p=solarize),
            v2.PILToTensor(),
        ]
    )


def statistics(view):
    """Compute brightness, contrast, colourfulness and sharpness of a view."""
    values = view.float()
    gray = values.mean(0)
    return [
        gray.mean().item(),
        gray.std().item(),
        values.std(0).mean().item(),
        gray.diff(dim=1).abs().mean().item(),
    ]


def test_views_have_the_distribution_of_torchvisions_transforms():
    """Means and standard deviations agree within four standard errors on the same scenes."""
    size, count = 48, 200
    views, references = (
        byol_views(size, seed=0),
        [torchvision_views(size, 1.0, 0.0), torchvision_views(size, 0.1, 0.2)],
    )
    # torchvision's sigma is in pixels of the view, ours in pixels at 224.
    for reference in references:
        reference.transforms[4].transforms[0].sigma = [0.1 * size / 224, 2.0 * size / 224]
    ours, theirs = [], []
    for index in range(count):
        image = Image.fromarray(render_scene(2, index, size=96).image)
        ours.append([statistics(view) for view in views(image, epoch=0, index=index)])
        theirs.append([statistics(reference(image)) for reference in references])
    ours, theirs = np.asarray(ours), np.asarray(theirs)  # scenes, views, statistics
    standard_error = np.sqrt((ours.var(0) + theirs.var(0)) / count)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * standard_error).all()
    # Relative error of a standard deviation: about 1 / sqrt(2 n); twice that for heavy tails.
    assert np.abs(np.log(ours.std(0) / theirs.std(0))).max() < 4 * 2 / np.sqrt(count)


def jpeg(size, **options):
    image = Image.fromarray(render_scene(3, 0, size=96).image).resize(
        size, Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("size", "least", "shrunk"),
    [((960, 720), 0.9, 4), ((400, 300), 0.08, 1), ((300, 200), 0.9, 1), ((1000, 602), 0.9, 2)],
)
def test_a_large_jpeg_is_decoded_no_larger_than_its_views_need(size, least, shrunk):
    views = byol_views(160, seed=0, crop_area=(least, 1.0))
    views = dataclasses.replace(
        views,
        first=dataclasses.replace(views.first, **PLAIN),
        second=dataclasses.replace(views.second, **PLAIN),
    )
    drawn_sizes = []
    for index in range(6):
        with Image.open(jpeg(size)) as opened:
            small, drawn = DecodeForViews(views, 0, index)(opened)
        with Image.open(jpeg(size)) as opened:
            whole = as_rgb(opened)
        drawn_sizes.append(round(size[0] / small.width))
        assert all(
            side * small.width / size[0] >= 159 or small.size == size
            for view in drawn.views
            for side in view.crop_size
        )
        error = views.render(small, drawn).float() - views.render(whole, drawn).float()
        assert error.abs().mean() < 1.5
        assert torch.equal(views.render(whole, drawn), views(whole, epoch=0, index=index)), (
            "the crops do not depend on the decoded size"
        )
    assert max(drawn_sizes) == shrunk


def test_a_jpeg_shrinks_only_until_both_sides_of_an_oblong_view_are_covered():
    views = byol_views((80, 320), seed=0, crop_area=(1.0, 1.0))
    with Image.open(jpeg((1280, 1280))) as opened:
        small, drawn = DecodeForViews(views, 0, 0)(opened)
    scale = small.width / 1280
    covered = min(
        min(width * scale / 320, height * scale / 80)
        for width, height in (view.crop_size for view in drawn.views)
    )
    assert 0.99 <= covered < 2


def test_views_of_a_rotated_jpeg_equal_those_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    views = byol_views(64, seed=0, crop_area=(0.9, 1.0))
    with Image.open(jpeg((800, 400), exif=exif)) as opened:
        assert upright_jpeg_size(opened) == (400, 800)
        small, drawn = DecodeForViews(views, 0, 0)(opened)
    assert small.size == (100, 200)
    with Image.open(jpeg((800, 400), exif=exif)) as opened:
        whole = as_rgb(opened)
    assert whole.size == (400, 800)
    error = views.render(small, drawn).float() - views(whole, epoch=0, index=0).float()
    assert error.abs().mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_views_are_drawn_on_the_upright_image_in_every_format(kind, orientation):
    """Pillow rotates some formats when it opens them, others not."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": exif}
    Image.fromarray(render_scene(3, 0, size=96).image).resize((640, 320)).save(
        file, kind, **options
    )
    with Image.open(file) as opened:
        image, drawn = DecodeForViews(byol_views(32, seed=0, crop_area=(0.9, 1.0)), 0, 0)(opened)
    with Image.open(file) as opened:
        upright = as_rgb(opened).size
    assert drawn.size == upright
    assert upright == ((320, 640) if orientation in {6, 8} and kind != "GIF" else (640, 320))
    assert (image.size == upright) == (kind != "JPEG"), "only JPEGs are decoded smaller"
    assert image.width * upright[1] == image.height * upright[0]


def test_without_opencv_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'OpenCV.* pip install "\.\[train\]"'):
        byol_views(32, seed=0)
