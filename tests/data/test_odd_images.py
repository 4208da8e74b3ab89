"""Unusual image files: each is decoded correctly, or skipped, counted and named."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image

from pcd_hub.data.batch_plan import BatchPlan
from pcd_hub.data.decoding import BrokenImageError, as_rgb, decode
from pcd_hub.data.loader import DecodeForViews, training_batches
from pcd_hub.data.sources.files import ImageFiles
from pcd_hub.data.views import byol_views
from tests.peak_memory import needs_linux, peak_growth

WIDTH, HEIGHT = 48, 32
VIEWS = byol_views(16, seed=0)

pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
]


def quadrants() -> Image.Image:
    """Draw four colours: red, green, blue, yellow from left to right and top to bottom."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top, left = HEIGHT // 2, WIDTH // 2
    pixels[:top, :left] = 255, 0, 0
    pixels[:top, left:] = 0, 255, 0
    pixels[top:, :left] = 0, 0, 255
    pixels[top:, left:] = 255, 255, 0
    return Image.fromarray(pixels)


def ramp(dtype, top) -> Image.Image:
    """Draw a ramp from dark at the left to light at the right."""
    return Image.fromarray(np.tile(np.linspace(0, top, WIDTH), (HEIGHT, 1)).astype(dtype))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(orientation: int, kind: str) -> bytes:
    """Encode the image so that it is upright after the EXIF rotation."""
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = quadrants() if inverse is None else quadrants().transpose(inverse)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(image, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))


def transparent_quarter() -> Image.Image:
    """Make the blue quarter of the image transparent."""
    image = quadrants().convert("RGBA")
    image.paste((0, 0, 255, 0), (0, HEIGHT // 2, WIDTH // 2, HEIGHT))
    return image


def palette_with_transparency() -> bytes:
    image = quadrants().quantize(4)
    blue = image.getpixel((0, HEIGHT - 1))
    return saved(image, "PNG", transparency=blue)


PICTURES = {
    "rgb.png": saved(quadrants(), "PNG"),
    "rgb.jpg": saved(quadrants(), "JPEG", quality=95),
    "progressive.jpg": saved(quadrants(), "JPEG", quality=95, progressive=True),
    "cmyk.jpg": saved(quadrants().convert("CMYK"), "JPEG", quality=95),
    "rgb.bmp": saved(quadrants(), "BMP"),
    "rgb.ppm": saved(quadrants(), "PPM"),
    "rgb.tif": saved(quadrants(), "TIFF"),
    "lzw.tif": saved(quadrants(), "TIFF", compression="tiff_lzw"),
    "cmyk.tif": saved(quadrants().convert("CMYK"), "TIFF"),
    "lossless.webp": saved(quadrants(), "WEBP", lossless=True),
    "palette.png": saved(quadrants().quantize(4), "PNG"),
    "palette.gif": saved(quadrants().quantize(4), "GIF"),
    "animated.gif": saved(
        quadrants(), "GIF", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]
    ),
    "two_pages.tif": saved(quadrants(), "TIFF", save_all=True, append_images=[ramp(np.uint8, 255)]),
    "a_png_named.jpg": saved(quadrants(), "PNG"),
    "a_jpeg_named.png": saved(quadrants(), "JPEG", quality=95),
    "trailing_bytes.jpg": saved(quadrants(), "JPEG", quality=95) + b"<html>" * 100,
    "broken_exif.jpg": saved(
        quadrants(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    ),
    **{
        f"rotated_{number}.{kind.lower()}": rotated(number, kind)
        for kind in ("JPEG", "PNG", "WEBP")
        for number in range(1, 9)
    },
}
"""Files that all decode to the same image."""

TRANSPARENT = {
    "alpha.png": saved(transparent_quarter(), "PNG"),
    "alpha.tif": saved(transparent_quarter(), "TIFF"),
    "alpha.webp": saved(transparent_quarter(), "WEBP", lossless=True),
    "palette_alpha.png": palette_with_transparency(),
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
    """Make a PNG whose header states a size that its data do not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def png_with_text(size: int) -> bytes:
    whole = saved(quadrants(), "PNG")
    text = b"zTXtcomment\0\0" + zlib.compress(bytes(size), 9)
    packed = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return whole[:33] + packed + whole[33:]


def jpeg_of(width: int, height: int) -> bytes:
    """Encode the image with another size in the frame header."""
    whole = bytearray(saved(quadrants(), "JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def truncated(content: bytes, share: float) -> bytes:
    return content[: int(share * len(content))]


def noise(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels), kind)


BROKEN = {
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "words.png": b"no picture at all",
    "zip.png": b"PK\x03\x04" + bytes(100),
    "only_the_magic.jpg": b"\xff\xd8\xff\xe0",
    **{
        f"truncated_at_{share}.{kind.lower()}": truncated(noise(kind), share / 100)
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
        for share in (5, 25, 60, 95)
    },
    "other_bytes.png": noise("PNG")[:6000] + bytes(200) + noise("PNG")[6200:],
    "bomb_2500_megapixels.png": png_of(50_000, 50_000),
    "bomb_100_megapixels.png": png_of(10_000, 10_000),
    "bomb_of_one_row.png": png_of(2_000_000_000, 1),
    "bomb_of_text.png": png_with_text(100_000_000),
    "bomb.gif": b"GIF89a\xff\xff\xff\xff\xf0\0\0" + bytes(20),
    "bomb.jpg": jpeg_of(65_000, 65_000),
    "zero_wide.png": png_of(0, 10),
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
}


def decoded(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    whole = decode(tmp_path / name, name, as_rgb)
    opened, drawn = decode(tmp_path / name, name, DecodeForViews(VIEWS, 0, 0))
    assert opened.mode == whole.mode == "RGB"
    assert VIEWS.render(opened, drawn).shape == (2, 3, 16, 16)
    return np.asarray(whole).astype(int)


@pytest.mark.parametrize("name", PICTURES)
def test_colours_and_orientation_are_correct(tmp_path, name):
    found = decoded(tmp_path, name, PICTURES[name])
    assert np.abs(found - np.asarray(quadrants())).mean() < 12  # a wrong quarter is 40 or more


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_are_white(tmp_path, name):
    expected = np.array(quadrants())
    expected[HEIGHT // 2 :, : WIDTH // 2] = 255
    assert (decoded(tmp_path, name, TRANSPARENT[name]) == expected).all()


@pytest.mark.parametrize("name", RAMPS)
def test_every_bit_depth_is_scaled_to_eight_bits(tmp_path, name):
    found = decoded(tmp_path, name, RAMPS[name])
    assert np.abs(found[..., 0] - np.linspace(0, 255, WIDTH)).max() <= 1
    assert (found[..., 0] == found[..., 2]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_thin_images_are_decoded(tmp_path, size, kind):
    image = quadrants().resize(size)
    assert decoded(tmp_path, "thin", saved(image, kind)).shape == (*reversed(size), 3)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_rejected_with_name_and_reason(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    for to_image in (as_rgb, DecodeForViews(VIEWS, 0, 0)):
        with pytest.raises(BrokenImageError, match=rf"{name}: \w+: .") as caught:
            decode(tmp_path / name, str(tmp_path / name), to_image)
        assert caught.value.name == str(tmp_path / name)


def test_postscript_starts_no_interpreter(tmp_path, monkeypatch):
    interpreter, canary = tmp_path / "gs", tmp_path / "canary"
    interpreter.write_text(f"#!/bin/sh\ntouch {canary}\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # search for it again
    (tmp_path / "drawn.jpg").write_bytes(saved(quadrants(), "EPS"))
    with pytest.raises(BrokenImageError, match="cannot identify image file"):
        decode(tmp_path / "drawn.jpg", "drawn.jpg", as_rgb)
    assert not canary.exists()


def test_a_large_jpeg_is_decoded_at_a_smaller_size(tmp_path):
    """Phones take images of 108 megapixels; other formats of that size are rejected."""
    large = Image.new("L", (12_000, 9_000), 77)
    (tmp_path / "large.jpg").write_bytes(saved(large, "JPEG"))
    (tmp_path / "large.png").write_bytes(png_of(*large.size))
    image, _ = decode(tmp_path / "large.jpg", "large", DecodeForViews(VIEWS, 0, 0))
    assert image.size[0] <= 6_000
    with pytest.raises(BrokenImageError, match="12000 x 9000 pixels: expected at most 89478485"):
        decode(tmp_path / "large.png", "large", DecodeForViews(VIEWS, 0, 0))


def test_a_folder_of_all_these_files_is_read_completely(tmp_path):
    """The loader counts and names broken files, and uses the next image instead."""
    good = PICTURES | TRANSPARENT | RAMPS
    for name, content in (good | BROKEN).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "._rgb.jpg").write_bytes(b"\0\5\x16\7")  # a resource fork of macOS
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "again").symlink_to(tmp_path)
    source = ImageFiles.from_folder(tmp_path)
    known = [name for name in good | BROKEN if not name.endswith(".jpeg")]
    known += [name for name in good | BROKEN if name.endswith(".jpeg")]
    assert sorted(source.paths()) == sorted(known)
    plan = BatchPlan(global_batch_size=1, total_steps=len(source))
    batches = list(training_batches(source, VIEWS, plan, num_workers=0))
    assert len(batches) == len(source)
    named = dict(pair for batch in batches for pair in batch.broken)
    assert {Path(name).name for name in named} == set(BROKEN)
    assert all(reason for reason in named.values())
    used = {int(index) for batch in batches for index in batch.indices}
    assert used == {at for at, name in enumerate(source.paths()) if name not in BROKEN}


@needs_linux
def test_decompression_bombs_take_little_memory(tmp_path):
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)

    def decode_all():
        for path in tmp_path.iterdir():
            for to_image in (as_rgb, DecodeForViews(VIEWS, 0, 0)):
                with pytest.raises(BrokenImageError):
                    decode(path, path.name, to_image)

    assert peak_growth(decode_all) < 64 * 2**20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_with_the_name_of_an_image_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match="not a regular file"):
        decode(tmp_path / "a.png", "a.png", as_rgb)
