"""What people's folders hold: each file is decoded right, or skipped, counted and named."""

import io
import multiprocessing
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image

from measuring import process_peak_bytes
from pcd_hub.data.loader import BatchPlan, DrawnFromFile, training_batches
from pcd_hub.data.sources import BrokenImageError, ImageFiles, as_rgb, decode
from pcd_hub.data.views import byol_views

WIDTH, HEIGHT = 48, 32
VIEWS = byol_views(16, seed=0)

pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
]


def picture() -> Image.Image:
    """Four colours: red, green, blue, yellow from left to right and top to bottom."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top, left = HEIGHT // 2, WIDTH // 2
    pixels[:top, :left] = 255, 0, 0
    pixels[:top, left:] = 0, 255, 0
    pixels[top:, :left] = 0, 0, 255
    pixels[top:, left:] = 255, 255, 0
    return Image.fromarray(pixels)


def ramp(dtype, top) -> Image.Image:
    """Dark at the left, light at the right."""
    return Image.fromarray(np.tile(np.linspace(0, top, WIDTH), (HEIGHT, 1)).astype(dtype))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, kind: str) -> bytes:
    """Stored so that, turned as its EXIF says, it is the picture."""
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = picture() if back is None else picture().transpose(back)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(image, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))


def see_through() -> Image.Image:
    """The picture, whose blue quarter cannot be seen."""
    image = picture().convert("RGBA")
    image.paste((0, 0, 255, 0), (0, HEIGHT // 2, WIDTH // 2, HEIGHT))
    return image


def palette_with_a_hole() -> bytes:
    image = picture().quantize(4)
    blue = image.getpixel((0, HEIGHT - 1))
    return saved(image, "PNG", transparency=blue)


PICTURES = {
    "rgb.png": saved(picture(), "PNG"),
    "rgb.jpg": saved(picture(), "JPEG", quality=95),
    "progressive.jpg": saved(picture(), "JPEG", quality=95, progressive=True),
    "cmyk.jpg": saved(picture().convert("CMYK"), "JPEG", quality=95),
    "rgb.bmp": saved(picture(), "BMP"),
    "rgb.ppm": saved(picture(), "PPM"),
    "rgb.tif": saved(picture(), "TIFF"),
    "lzw.tif": saved(picture(), "TIFF", compression="tiff_lzw"),
    "cmyk.tif": saved(picture().convert("CMYK"), "TIFF"),
    "lossless.webp": saved(picture(), "WEBP", lossless=True),
    "palette.png": saved(picture().quantize(4), "PNG"),
    "palette.gif": saved(picture().quantize(4), "GIF"),
    "animated.gif": saved(
        picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]
    ),
    "two_pages.tif": saved(picture(), "TIFF", save_all=True, append_images=[ramp(np.uint8, 255)]),
    "a_png_named.jpg": saved(picture(), "PNG"),
    "a_jpeg_named.png": saved(picture(), "JPEG", quality=95),
    "more_behind.jpg": saved(picture(), "JPEG", quality=95) + b"<html>" * 100,
    "broken_exif.jpg": saved(picture(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    **{
        f"turned_{number}.{kind.lower()}": turned(number, kind)
        for kind in ("JPEG", "PNG", "WEBP")
        for number in range(1, 9)
    },
}
"""All show the picture."""

WITH_A_WHITE_QUARTER = {
    "alpha.png": saved(see_through(), "PNG"),
    "alpha.tif": saved(see_through(), "TIFF"),
    "alpha.webp": saved(see_through(), "WEBP", lossless=True),
    "palette_alpha.png": palette_with_a_hole(),
}

RAMPS = {
    "gray.png": saved(ramp(np.uint8, 255), "PNG"),
    "gray16.png": saved(ramp(np.uint16, 65535), "PNG"),
    "gray16.tif": saved(ramp(np.uint16, 65535), "TIFF"),
    "gray16.pgm": b"P5\n48 32\n65535\n"
    + np.asarray(ramp(np.uint16, 65535)).astype(">u2").tobytes(),
    "gray32.tif": saved(ramp(np.int32, 65535), "TIFF"),
    "float.tif": saved(ramp(np.float32, 1.0), "TIFF"),
    "gray_alpha.png": saved(ramp(np.uint8, 255).convert("LA"), "PNG"),
}


def png_of(width: int, height: int) -> bytes:
    """A header that promises much, and little behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def png_with_a_text_of(size: int) -> bytes:
    whole = saved(picture(), "PNG")
    text = b"zTXtcomment\0\0" + zlib.compress(bytes(size), 9)
    packed = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return whole[:33] + packed + whole[33:]


def jpeg_of(width: int, height: int) -> bytes:
    """The picture with another size in its frame header."""
    whole = bytearray(saved(picture(), "JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def cut(content: bytes, share: float) -> bytes:
    return content[: int(share * len(content))]


def noise(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels), kind)


REFUSED = {
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "words.png": b"no picture at all",
    "zip.png": b"PK\x03\x04" + bytes(100),
    "only_the_magic.jpg": b"\xff\xd8\xff\xe0",
    **{
        f"cut_at_{share}.{kind.lower()}": cut(noise(kind), share / 100)
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
        for share in (5, 25, 60, 95)
    },
    "other_bytes.png": noise("PNG")[:6000] + bytes(200) + noise("PNG")[6200:],
    "bomb_2500_megapixels.png": png_of(50_000, 50_000),
    "bomb_100_megapixels.png": png_of(10_000, 10_000),
    "bomb_of_one_row.png": png_of(2_000_000_000, 1),
    "bomb_of_text.png": png_with_a_text_of(100_000_000),
    "bomb.gif": b"GIF89a\xff\xff\xff\xff\xf0\0\0" + bytes(20),
    "bomb.jpg": jpeg_of(65_000, 65_000),
    "zero_wide.png": png_of(0, 10),
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
}


def decoded(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    whole = decode(tmp_path / name, name, as_rgb)
    opened, drawn = decode(tmp_path / name, name, DrawnFromFile(VIEWS, 0, 0))
    assert opened.mode == whole.mode == "RGB"
    assert VIEWS.render(opened, drawn).shape == (2, 3, 16, 16)
    return np.asarray(whole).astype(int)


@pytest.mark.parametrize("name", PICTURES)
def test_colours_and_places_are_right(tmp_path, name):
    found = decoded(tmp_path, name, PICTURES[name])
    assert np.abs(found - np.asarray(picture())).mean() < 12  # a wrong quarter is 40 or more


@pytest.mark.parametrize("name", WITH_A_WHITE_QUARTER)
def test_what_cannot_be_seen_is_white(tmp_path, name):
    expected = np.array(picture())
    expected[HEIGHT // 2 :, : WIDTH // 2] = 255
    assert (decoded(tmp_path, name, WITH_A_WHITE_QUARTER[name]) == expected).all()


@pytest.mark.parametrize("name", RAMPS)
def test_every_depth_becomes_eight_bits(tmp_path, name):
    found = decoded(tmp_path, name, RAMPS[name])
    assert np.abs(found[..., 0] - np.linspace(0, 255, WIDTH)).max() <= 1
    assert (found[..., 0] == found[..., 2]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_thin_images_are_seen(tmp_path, size, kind):
    image = picture().resize(size)
    assert decoded(tmp_path, "thin", saved(image, kind)).shape == (*reversed(size), 3)


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_by_name_and_reason(tmp_path, name):
    (tmp_path / name).write_bytes(REFUSED[name])
    for to_image in (as_rgb, DrawnFromFile(VIEWS, 0, 0)):
        with pytest.raises(BrokenImageError, match=rf"{name}: \w+: .") as caught:
            decode(tmp_path / name, str(tmp_path / name), to_image)
        assert caught.value.name == str(tmp_path / name)


def test_postscript_starts_no_interpreter(tmp_path, monkeypatch):
    interpreter, canary = tmp_path / "gs", tmp_path / "canary"
    interpreter.write_text(f"#!/bin/sh\ntouch {canary}\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not looked for yet
    (tmp_path / "drawn.jpg").write_bytes(saved(picture(), "EPS"))
    with pytest.raises(BrokenImageError, match="cannot identify image file"):
        decode(tmp_path / "drawn.jpg", "drawn.jpg", as_rgb)
    assert not canary.exists()


def test_a_jpeg_may_be_large_for_it_is_decoded_smaller(tmp_path):
    """108 megapixels, as telephones take them; other formats of that size are refused."""
    large = Image.new("L", (12_000, 9_000), 77)
    (tmp_path / "large.jpg").write_bytes(saved(large, "JPEG"))
    (tmp_path / "large.png").write_bytes(png_of(*large.size))
    image, _ = decode(tmp_path / "large.jpg", "large", DrawnFromFile(VIEWS, 0, 0))
    assert image.size[0] <= 6_000
    with pytest.raises(BrokenImageError, match="12000 x 9000 pixels are more than 89478485"):
        decode(tmp_path / "large.png", "large", DrawnFromFile(VIEWS, 0, 0))


def test_a_folder_of_it_all_is_read_to_its_end(tmp_path):
    """By the loader: what is broken is counted and named, its neighbour stands in."""
    good = PICTURES | WITH_A_WHITE_QUARTER | RAMPS
    for name, content in (good | REFUSED).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "._rgb.jpg").write_bytes(b"\0\5\x16\7")  # what macOS leaves beside its files
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "again").symlink_to(tmp_path)
    source = ImageFiles.from_folder(tmp_path)
    known = [name for name in good | REFUSED if not name.endswith(".jpeg")]
    known += [name for name in good | REFUSED if name.endswith(".jpeg")]
    assert sorted(source.paths()) == sorted(known)
    plan = BatchPlan(global_batch_size=1, total_steps=len(source))
    batches = list(training_batches(source, VIEWS, plan, num_workers=0))
    assert len(batches) == len(source)
    named = dict(pair for batch in batches for pair in batch.broken)
    assert {Path(name).name for name in named} == set(REFUSED)
    assert all(reason for reason in named.values())
    used = {int(index) for batch in batches for index in batch.indices}
    assert used == {at for at, name in enumerate(source.paths()) if name not in REFUSED}


def test_bombs_take_little_memory(tmp_path):
    for name, content in REFUSED.items():
        (tmp_path / name).write_bytes(content)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown = pool.apply(_grown, (tmp_path,))
    assert grown < 64 * 2**20


def _grown(folder: Path) -> int:
    """Bytes that the peak memory of this fresh process rose by."""
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        decode({"bytes": saved(picture(), kind)}, "", as_rgb)
    before = process_peak_bytes()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for path in folder.iterdir():
        for to_image in (as_rgb, DrawnFromFile(VIEWS, 0, 0)):
            with pytest.raises(BrokenImageError):
                decode(path, path.name, to_image)
    return process_peak_bytes() - before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_named_like_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match="it is no plain file"):
        decode(tmp_path / "a.png", "a.png", as_rgb)
