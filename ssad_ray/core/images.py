"""Image files to arrays and back; size limits; the one place that says (width, height).

What a picture means is fixed here for the whole package: (H, W, 3) uint8 RGB in the upright frame.

- Grey becomes three equal channels; one-bit pictures become 0 and 255; palettes are looked up.
- More than 8 bits per channel: the most significant 8 of the bits that the file declares. Never stretched to the
  picture's own range, which would give each picture another brightness.
- An alpha channel is dropped where it is opaque everywhere. Elsewhere the picture is refused: what stands behind
  transparent pixels would be our invention.
- The EXIF orientation is applied, to masks too (of a PNG: where the tag stands before the pixels).
- CMYK, floating-point and 32-bit pictures, animations and multi-page files are refused; so is every cut file.
  Of a JPEG with further embedded pictures (MPO) the first is taken, as every viewer does.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from ssad_ray.errors import DataError

Pixel = TypeVar("Pixel", np.uint8, np.float32)

# Classes instead of Image.open: its own size limit is a process-wide setting below what line-scan cameras deliver.
_FORMATS: dict[bytes, tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]]] = {
    b"\x89PNG\r\n\x1a\n": ("PNG", PngImagePlugin.PngImageFile),
    b"\xff\xd8\xff": ("JPEG", JpegImagePlugin.JpegImageFile),
    b"BM": ("BMP", BmpImagePlugin.BmpImageFile),
    b"II*\x00": ("TIFF", TiffImagePlugin.TiffImageFile),
    b"MM\x00*": ("TIFF", TiffImagePlugin.TiffImageFile),
    b"RIFF": ("WEBP", WebPImagePlugin.WebPImageFile),
}
_ACCEPTED_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "I;16", "I;16B", "I;16L", "I;16N"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED_BY_PILLOW = ("TIFF",)
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_PNG_END = b"IEND\xaeB`\x82"
_PNG_BIT_DEPTH_AT = 24
_MAX_OPENCV_PX = 1 << 15  # a side; OpenCV refuses more than 2**30 pixels
_MAX_RESIZED_CHANNELS = 4  # that cv2.resize shrinks at once


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a file's header says.

    Attributes:
        height: Pixels, in the upright frame.
        width: Pixels, in the upright frame.
        channels: As stored: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha or CMYK.
        bit_depth: Bits per channel as stored.
        format: PNG, JPEG, BMP, TIFF or WEBP.
        orientation: EXIF orientation, 1 (upright) to 8.
    """

    height: int
    width: int
    channels: int
    bit_depth: int
    format: str
    orientation: int


def probe(data: bytes) -> ImageInfo:
    """Read the header of an image file; no pixel is decoded, whatever size the header claims.

    Raises:
        DataError: Not an image file of an accepted format, or a broken header.
    """
    with _refusing_whatever_fails():
        return _open(data)[1]


def decode(data: bytes, max_px: int) -> NDArray[np.uint8]:
    """Return an image file's pixels, (H, W, 3) uint8 RGB, upright.

    Raises:
        DataError: Not an accepted image, cut off, more than `max_px` pixels, or of a kind that has no 8-bit RGB
            meaning (see the top of this module).
    """
    with _refusing_whatever_fails():
        image, info = _open(data)
        if info.height * info.width > max_px:
            raise DataError(
                f"{info.height}x{info.width} (HxW) pixels; at most {max_px} are accepted, raise data.max_image_px"
            )
        if getattr(image, "n_frames", 1) > 1:
            raise DataError("an animation or a multi-page file; save the picture that is meant as a file of its own")
        if image.mode not in _ACCEPTED_MODES:
            raise DataError(f"a picture of mode {image.mode}; convert it to 8- or 16-bit grey or RGB")
        if info.format == "PNG" and _PNG_END not in data:
            raise DataError("the PNG file is cut off before its end; copy it again")
        if (pixels := _plain_png(data, image, info)) is not None:
            return pixels
        image.load()
        is_upright = info.orientation == 1 or info.format in _TURNED_BY_PILLOW
        return _to_rgb(image if is_upright else image.transpose(_UPRIGHT[info.orientation]), info.bit_depth)


def decode_mask(data: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Return a mask file as (H, W) bool: true where any colour channel is above 127 of 255.

    Raises:
        DataError: Not an accepted image, or of another size than the image it belongs to.
    """
    info = probe(data)
    if (info.height, info.width) != (height, width):
        raise DataError(f"the mask is {info.height}x{info.width} (HxW), its image {height}x{width}; sizes must agree")
    mask: NDArray[np.bool_] = decode(data, height * width).max(axis=2) > 127
    return mask


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.bool_]) -> bytes:
    """Return a PNG of an (H, W) or (H, W, 3) RGB array; bool becomes 0 and 255, uint16 (grey only) stays 16-bit."""
    pixels = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def resize(image: NDArray[Pixel], height: int, width: int) -> NDArray[Pixel]:
    """Return an (H, W) or (H, W, C) array at another size: area mean where it shrinks, linear where it grows."""
    if image.ndim == 3 and image.shape[2] > _MAX_RESIZED_CHANNELS:
        first, rest = np.split(image, [_MAX_RESIZED_CHANNELS], axis=2)
        return np.concatenate([resize(first, height, width), resize(rest, height, width)], axis=2)
    small = (min(height, image.shape[0]), min(width, image.shape[1]))
    for size, interpolation in ((small, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape[:2] != size:
            resized = cv2.resize(image, size[::-1], interpolation=interpolation)
            image = resized.reshape(*size, *image.shape[2:])
    return image


def blurred(maps_BHW: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return maps (B, H, W), each blurred by a Gaussian."""
    return np.stack([cv2.GaussianBlur(each, (0, 0), sigma_px) for each in maps_BHW])


def _open(data: bytes) -> tuple[ImageFile.ImageFile, ImageInfo]:
    """Open a file lazily and read its header."""
    kind = next((kind for signature, kind in _FORMATS.items() if data.startswith(signature)), None)
    if kind is None:
        found = f"starts with {data[:8].hex(' ')}" if data else "is empty"
        raise DataError(f"not an image: the file {found}; accepted are PNG, JPEG, BMP, TIFF and WebP")
    name, plugin = kind
    image = plugin(io.BytesIO(data))
    # The base class's reading, because the PNG class decodes all pixels to look for a tag behind them.
    orientation = Image.Image.getexif(image).get(_EXIF_ORIENTATION)
    orientation = orientation if orientation in _UPRIGHT else 1
    height, width = image.size[::-1]
    if orientation >= 5 and name not in _TURNED_BY_PILLOW:
        height, width = width, height
    return image, ImageInfo(height, width, len(image.getbands()), _bit_depth(data, image), name, orientation)


def _bit_depth(data: bytes, image: ImageFile.ImageFile) -> int:
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[_PNG_BIT_DEPTH_AT]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,))[0])
    return 1 if image.mode == "1" else 8


def _plain_png(data: bytes, image: ImageFile.ImageFile, info: ImageInfo) -> NDArray[np.uint8] | None:
    """Return the pixels of a PNG that needs no conversion, by OpenCV: a third faster. None: Pillow has its say."""
    is_plain = info.format == "PNG" and info.bit_depth == 8 and image.mode in ("L", "RGB") and info.orientation == 1
    if not is_plain or image.has_transparency_data or max(info.height, info.width) > _MAX_OPENCV_PX:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if pixels is None else pixels.astype(np.uint8, copy=False)


def _to_rgb(image: Image.Image, bit_depth: int) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        if "transparency" in image.info:
            _refuse_transparent(bool((deep == image.info["transparency"]).any()))
        grey = (deep >> max(bit_depth - 8, 0)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        _refuse_transparent(bool(rgba[:, :, 3].min() < 255))
        return np.ascontiguousarray(rgba[:, :, :3])
    return np.array(image.convert("RGB"))


def _refuse_transparent(is_transparent: bool) -> None:
    if is_transparent:
        raise DataError("the picture has transparent pixels; flatten it onto the background that is meant")


@contextmanager
def _refusing_whatever_fails() -> Iterator[None]:
    """Turn every failure of the decoder into a refusal: hostile bytes reach some thirty kinds of exception in it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the image cannot be decoded ({type(error).__name__}: {error}); replace the file") from error
