"""Every row of the table in decoding.py."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from pcd_hub.data.decoding import BrokenImageError, as_mask, as_rgb, decode, indices_to_try

RAMP = np.tile(np.linspace(0, 200, 64, dtype=np.float32), (64, 1))


def encoded(image: Image.Image, kind="TIFF", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def to_array(content: bytes) -> np.ndarray:
    return decode(
        {"bytes": content, "path": None}, "x", lambda i: np.asarray(as_rgb(i)).astype(int)
    )


def gray(values) -> Image.Image:
    return Image.fromarray(np.asarray(values))


def tagged(image: Image.Image, **tags) -> bytes:
    """Encode a TIFF with further tags, named ``tag_NUMBER``."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[int(name.removeprefix("tag_"))] = value
    return encoded(image, tiffinfo=info)


def patched(tiff: bytes, tag: int, value: int | None) -> bytes:
    """Replace the value of a SHORT tag; None removes the tag."""
    content = bytearray(tiff)
    start = struct.unpack_from("<I", content, 4)[0]
    for number in range(struct.unpack_from("<H", content, start)[0]):
        at = start + 2 + 12 * number
        if struct.unpack_from("<H", content, at)[0] == tag:
            struct.pack_into("<H", content, *((at, 65000) if value is None else (at + 8, value)))
            return bytes(content)
    raise KeyError(tag)


def png(pixels: np.ndarray, *, bits: int, colour: int) -> bytes:
    """Encode a PNG of 16-bit samples, or of one row of packed samples."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = pixels.astype(">u2" if bits == 16 else np.uint8)
    width = pixels.shape[1] * (1 if bits == 16 else 8 // bits)
    header = struct.pack(">IIBBBBB", width, len(pixels), bits, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each) for each in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    )


# Modes.

HALF = {"RGBA": (255, 0, 0, 128), "LA": (0, 128)}
PALETTE = Image.new("P", (2, 2), 1)
PALETTE.putpalette([0, 0, 0, 10, 20, 30])


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("LA", (2, 2), HALF["LA"]), (127, 127, 127)),
        (Image.new("LA", (2, 2), HALF["LA"]).convert("La"), (127, 127, 127)),
        (PALETTE, (10, 20, 30)),
        (PALETTE.convert("PA"), (10, 20, 30)),
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBA", (2, 2), HALF["RGBA"]), (255, 127, 127)),
        (Image.new("RGBA", (2, 2), HALF["RGBA"]).convert("RGBa"), (255, 127, 127)),
        (Image.new("RGBX", (2, 2), (1, 2, 3, 4)), (1, 2, 3)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (2, 2), (76, 85, 255)), (254, 0, 0)),
        (Image.new("HSV", (2, 2), (0, 255, 255)), (255, 0, 0)),
        # L 54.3 %, a 80.8, b 69.9 is sRGB red under D50; a and b are stored plus 128.
        (Image.new("LAB", (2, 2), (138, 209, 198)), (255, 0, 0)),
        *((Image.new(f"I;16{order}", (2, 2), 32896), (128,) * 3) for order in ("", "B", "L", "N")),
        (Image.new("I", (2, 2), 65535), (255, 255, 255)),
        (Image.new("F", (2, 2), 0.5), (128, 128, 128)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_is_converted_to_rgb(image, colour):
    found = as_rgb(image)
    assert (found.mode, found.size) == ("RGB", (2, 2))
    assert np.abs(np.subtract(found.getpixel((0, 0)), colour)).max() <= 5  # LAB; otherwise 0


# Depth.


@pytest.mark.parametrize("top", [255, 4095, 65535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM"])
def test_sixteen_bits_are_scaled_by_bit_depth_not_by_value(kind, top):
    values = np.array([[0, top // 2, top, 0]], np.uint16)
    expected = np.rint(values / 257)
    pgm = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()  # which Pillow 10.1 does not write
    content = pgm if kind == "PGM" else encoded(gray(values), kind)
    assert (to_array(content)[..., 0] == expected).all()


def test_the_white_of_a_twelve_bit_tiff_is_4095():
    three_bytes = np.array([0xFFF000, 0x800FFF], ">u4").view(np.uint8).reshape(2, 4)[:, 1:]
    tiff = encoded(Image.fromarray(three_bytes.reshape(1, 6).copy()))
    tiff = patched(patched(tiff, 256, 4), 258, 12)  # four values instead of six bytes
    assert to_array(tiff)[0, :, 0].tolist() == [255, 0, 128, 255]


def test_a_tiff_with_white_as_zero_is_inverted():
    tiff = encoded(gray(np.array([[0, 65535, 257]], np.uint16)))
    assert to_array(patched(tiff, 262, 0))[0, :, 0].tolist() == [255, 0, 254]


def test_sixteen_bit_colour_keeps_its_upper_byte():
    values = np.arange(0, 65536, 7)[:9360].reshape(-1, 3)[None].astype(np.uint16)
    assert np.abs(to_array(png(values, bits=16, colour=2)) - values / 257).max() <= 1


# Floats and signed integers.


@pytest.mark.parametrize(
    ("stray", "scale"),
    [
        (None, 1), (np.nan, 1), (np.inf, 1), (-np.inf, 1), (1e38, 1), (-3.4e38, 1), (1e20, 1),
        (-9999, 1), (-1, 1), (70_000, 1), (None, 1 / 200), (1.02, 1 / 200), (255, 1 / 200),
        (None, 257),
    ],
)  # fmt: skip
def test_a_single_outlier_does_not_change_the_scale_of_a_float_image(stray, scale):
    values = RAMP * np.float32(scale)
    if stray is not None:
        values[0, 0] = stray
    white = 200 if scale == 1 / 200 else 255
    expected = np.rint(RAMP * 255 / white)
    found = to_array(encoded(gray(values)))[..., 0]
    assert np.abs(found - expected).ravel()[1:].max() <= 1


@pytest.mark.parametrize("nodata", [-9999, -32768, np.nan, -3.4e38, 1e38])
def test_any_number_of_pixels_without_data_are_black(nodata):
    values = RAMP.copy()
    values[:40] = nodata
    found = to_array(encoded(gray(values)))[..., 0]
    assert (found[:40] == 0).all()
    assert np.abs(found[40:] - RAMP[40:]).max() <= 1


def test_the_no_data_value_of_a_tiff_is_black():
    values = RAMP.copy()
    values[:40] = 9999
    found = to_array(tagged(gray(values), tag_42113="9999"))[..., 0]
    assert (found[:40] == 0).all()
    assert np.abs(found[40:] - RAMP[40:]).max() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP * 50 - 1000, r"range from -1000 to 9000: expected 0..1, 0..255 or 0..65535"),
        (RAMP / 100 - 1, r"range from -1 to 1"),
        (RAMP / 20, r"range from 0 to 10"),
        (RAMP * 20, r"range from 0 to 4000"),
        (RAMP * 1000, r"range from 0 to 200000"),
        (RAMP * np.nan, r"no pixel has a finite value"),
        ((RAMP * 20).astype(np.int32), r"range from 0 to 4000"),
    ],
)
def test_an_unknown_range_is_rejected(values, message):
    with pytest.raises(BrokenImageError, match=rf"^x: ValueError: .*{message}"):
        to_array(encoded(gray(values)))


@pytest.mark.parametrize("values", [RAMP * 0, RAMP * 1.4 - 10])
def test_dark_images_and_overshoot_are_scaled_from_255(values):
    found = to_array(encoded(gray(values)))[..., 0]
    assert (found == np.rint(values).clip(0, 255)).all()


# Bands.

COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8))
CLEAR = Image.merge("RGBA", [*COLOUR.split(), Image.new("L", (8, 6), 0)])


@pytest.mark.parametrize(
    ("tiff", "message"),
    [
        (
            patched(encoded(CLEAR), 338, 0),
            r"4 bands \(8-bit unsigned\): expected 3 for colour and at most one",
        ),
        (patched(encoded(CLEAR), 338, None), r"declared as alpha \(ExtraSamples missing\)"),
        (patched(patched(encoded(CLEAR), 338, 0), 262, 1), r"4 bands .*-b 1 -b 2 -b 3"),
        (patched(encoded(CLEAR.convert("LA")), 338, 0), r"2 bands .*gdal_translate -b 1 IN OUT"),
        (tagged(COLOUR.convert("CMYK"), tag_332=2), r"4 inks: expected CMYK"),
        (patched(tagged(gray(RAMP.astype(np.uint8)), tag_339=1), 339, 2), r"1 band \(8-bit signed"),
        (patched(encoded(gray(RAMP)), 258, 64), r"1 band \(64-bit float\) .*-ot Float32 IN OUT"),
    ],
)
def test_bands_that_would_be_dropped_or_used_as_alpha_are_rejected(tiff, message):
    with pytest.raises(BrokenImageError, match=rf"^x: ValueError: a TIFF of .*{message}"):
        to_array(tiff)


def test_declared_alpha_is_composited_on_white_and_cmyk_is_converted():
    assert (to_array(encoded(CLEAR)) == 255).all()
    assert (to_array(patched(encoded(CLEAR), 338, 999)) == 255).all()
    assert np.abs(to_array(encoded(COLOUR.convert("CMYK"))) - np.asarray(COLOUR)).max() <= 1
    opaque = encoded(COLOUR.convert("RGBA"))
    for kind in (1, 2):  # premultiplied and straight
        assert (to_array(patched(opaque, 338, kind)) == np.asarray(COLOUR)).all()


# Masks.


def stored(content: bytes) -> list[list[int]]:
    return decode({"bytes": content, "path": None}, "x", lambda i: np.asarray(as_mask(i)).tolist())


def test_a_mask_keeps_its_stored_values():
    assert stored(png(np.array([[0b00011011]]), bits=2, colour=0)) == [[0, 1, 2, 3]]
    assert stored(png(np.array([[0x3A]]), bits=4, colour=0)) == [[3, 10]]
    tiff = encoded(gray(np.array([[0, 1, 255]], np.uint8)))
    assert stored(tiff) == stored(patched(tiff, 262, 0)) == [[0, 1, 255]]
    assert stored(b"P5\n3 1\n255\n\0\1\2") == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(Image.new("L", (8, 8)), "JPEG"), "the mask is a JPEG, which changes its values"),
        (b"P5\n3 1\n20\n\0\1\2", "a PGM mask with maximum 20: expected 255"),
    ],
)
def test_a_mask_format_that_changes_values_is_rejected(content, message):
    with pytest.raises(BrokenImageError, match=message):
        stored(content)


@pytest.mark.parametrize("count", [1, 8, 40, 4000])
def test_a_block_of_broken_images_is_left_at_once(count):
    """One folder of an interrupted copy may be all broken, here 1 % of the images."""
    block = set(range(count // 2, count // 2 + count // 100))
    for first in block:
        tried = list(indices_to_try(first, count))
        assert tried[0] == first
        assert tried[1] not in block
    assert set(indices_to_try(0, count)) <= set(range(count))
    assert len(set(indices_to_try(0, count))) == min(count, 32)
