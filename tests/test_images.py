import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssad_ray.core import images
from ssad_ray.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

HEIGHT, WIDTH = 37, 53
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
FORMATS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP"]
LOSSLESS = {"WEBP": {"lossless": True}}


def encoded(image, format_name, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_accepted_format_is_probed_and_decoded(format_name):
    data = encoded(RGB, format_name, **LOSSLESS.get(format_name, {}))
    assert images.probe(data) == images.ImageInfo(HEIGHT, WIDTH, 3, 8, format_name, 1)
    image = images.decode(data, HEIGHT * WIDTH)
    assert image.shape == RGB.shape
    assert image.dtype == np.uint8
    if format_name != "JPEG":
        np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("format_name", FORMATS)
def test_grey_becomes_three_equal_channels(format_name):
    image = images.decode(encoded(RGB[:, :, 0], format_name, **LOSSLESS.get(format_name, {})), 10_000)
    np.testing.assert_array_equal(image, image[:, :, :1].repeat(3, axis=2))
    assert abs(image[:, :, 0].astype(int) - RGB[:, :, 0]).mean() < 8


def test_sixteen_bit_grey_keeps_its_high_byte_and_one_bit_becomes_black_and_white():
    deep = np.array([[0, 255, 256, 511, 65535]], np.uint16)
    for format_name in ("PNG", "TIFF"):
        data = encoded(deep, format_name)
        assert images.probe(data).bit_depth == 16
        assert images.decode(data, 10)[0, :, 1].tolist() == [0, 0, 1, 1, 255]
    bilevel = encoded(Image.fromarray(RGB[:, :, 0] > 127), "PNG")
    assert images.probe(bilevel).bit_depth == 1
    assert set(np.unique(images.decode(bilevel, 10_000))) == {0, 255}


def test_what_a_png_says_of_its_colours_changes_no_pixel():
    data = encoded(RGB, "PNG")
    for name, values in ((b"gAMA", struct.pack(">I", 220_000)), (b"sRGB", b"\0"), (b"cICP", b"\x09\x10\0\1")):
        chunk = struct.pack(">I", len(values)) + name + values + struct.pack(">I", zlib.crc32(name + values))
        np.testing.assert_array_equal(images.decode(data[:33] + chunk + data[33:], 10_000), RGB)


def test_a_palette_is_looked_up():
    image = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(images.decode(encoded(image, "PNG"), 10_000), np.array(image.convert("RGB")))


def test_opaque_alpha_is_dropped_and_transparent_pixels_are_refused():
    rgba = np.dstack([RGB, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    np.testing.assert_array_equal(images.decode(encoded(rgba, "PNG"), 10_000), RGB)
    rgba[3, 4, 3] = 254
    deep = io.BytesIO()
    Image.fromarray(np.array([[0, 1000]], np.uint16)).save(deep, "PNG", transparency=1000)
    for data in (encoded(rgba, "PNG"), deep.getvalue()):
        with pytest.raises(DataError, match="transparent pixels; flatten"):
            images.decode(data, 10_000)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_the_exif_orientation_is_applied_to_pixels_and_sizes(orientation, format_name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, format_name, exif=exif)
    expected = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB),
    }[orientation]
    np.testing.assert_array_equal(images.decode(data, 10_000), expected)
    info = images.probe(data)
    assert (info.height, info.width, info.orientation) == (*expected.shape[:2], orientation)


def test_an_orientation_that_does_not_exist_counts_as_upright():
    exif = Image.Exif()
    exif[0x0112] = 77
    data = encoded(RGB, "PNG", exif=exif)
    assert (images.probe(data).height, images.probe(data).width) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(images.decode(data, 10_000), RGB)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"GIF89a" + bytes(20), "not an image: the file starts with 47 49 46"),
        (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "mode CMYK"),
        (encoded(np.zeros((4, 5), np.float32), "TIFF"), "mode F"),
        (encoded(np.zeros((4, 5), np.int32), "TIFF"), "mode I;"),
        (encoded(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]), "multi-page"),
        (encoded(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)]), "animation"),
        (encoded(RGB, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)]), "animation"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_reason(data, reason):
    with pytest.raises(DataError, match=reason):
        images.decode(data, 10_000)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_cut_anywhere_is_refused(format_name):
    data = encoded(RGB, format_name, **({"progressive": True} if format_name == "JPEG" else {}))
    # The last three bytes of a BMP are padding of the last row; without them no pixel is missing.
    for length in range(len(data) - (3 if format_name == "BMP" else 0)):
        with pytest.raises(DataError):
            images.decode(data[:length], 10_000)


def test_too_many_pixels_are_refused_from_the_header_alone():
    header = struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert images.probe(bomb).height == 50_000
    with pytest.raises(DataError, match=r"50000x60000 .*at most 200000000 .*max_image_px"):
        images.decode(bomb, 200_000_000)


def test_the_limit_itself_is_accepted():
    assert images.decode(encoded(RGB, "PNG"), HEIGHT * WIDTH).shape == RGB.shape
    with pytest.raises(DataError, match="at most"):
        images.decode(encoded(RGB, "PNG"), HEIGHT * WIDTH - 1)


@settings(max_examples=300)
@given(
    format_name=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    keep=st.floats(0.1, 1),
    in_header=st.booleans(),
)
def test_hostile_bytes_raise_nothing_but_data_errors(format_name, edits, keep, in_header):
    data = bytearray(encoded(RGB[:9, :13], format_name))
    for where, value in edits:
        data[int(where * (min(120, len(data)) if in_header else len(data)))] = value
    for work in (images.probe, lambda data: images.decode(data, 10_000), lambda data: images.decode_mask(data, 9, 13)):
        with suppress(DataError):
            work(bytes(data[: int(len(data) * keep) + 1]))


def test_a_mask_is_true_above_127_in_any_channel():
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert images.decode_mask(encoded(grey, "PNG"), 1, 4).tolist() == [[False, False, True, True]]
    red = np.dstack([grey, 0 * grey, 0 * grey])
    assert images.decode_mask(encoded(red, "PNG"), 1, 4).tolist() == [[False, False, True, True]]


def test_a_mask_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(DataError, match=r"37x53 .*53x37"):
        images.decode_mask(encoded(RGB, "PNG"), WIDTH, HEIGHT)


@pytest.mark.parametrize("array", [RGB, RGB[:, :, 0], RGB[:, :, 0] > 99], ids=["rgb", "grey", "mask"])
def test_what_is_encoded_decodes_to_the_same(array):
    decoded = images.decode(images.encode_png(array), 10_000)
    expected = array * np.uint8(255) if array.dtype == bool else array
    np.testing.assert_array_equal(decoded, expected if array.ndim == 3 else expected[:, :, None].repeat(3, 2))


@pytest.mark.parametrize(("height", "width"), [(20, 91), (91, 20), (10, 11), (80, 90), (HEIGHT, WIDTH)])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (6,)])
def test_resize_gives_height_and_width_in_this_order_and_keeps_type_and_mean(height, width, channels):
    image = np.random.default_rng(1).random((HEIGHT, WIDTH, *channels)).astype(np.float32)
    resized = images.resize(image, height, width)
    assert resized.shape == (height, width, *channels)
    assert resized.dtype == np.float32
    assert abs(resized.mean() - image.mean()) < 0.02


def test_shrinking_takes_area_means():
    image = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_allclose(images.resize(image, 2, 2), image.reshape(2, 2, 2, 3).mean(axis=(1, 3)))


def test_a_map_that_shrinks_keeps_its_mean():
    anomaly_map = np.random.default_rng(0).random((64, 64), np.float32)
    assert images.resize(anomaly_map, 16, 100).mean() == pytest.approx(anomaly_map.mean(), rel=0.02)
