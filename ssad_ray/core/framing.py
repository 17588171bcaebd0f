"""From an image of any size to the fixed frames a method works on, and from their maps back to the image.

`resize` shows a method the whole image at one size: right for aligned parts, whose every position has a meaning.
`tile` shows overlapping tiles at one scale: right for textures, free poses and images too large to see at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import InputConfig
from ssad_ray.core.images import resize

ALIGNED_CORRELATION = 0.75
"""Mean correlation of thumbnails with their median above which parts count as aligned."""

_STRIDE = 16  # every network halves its frame four times
_THUMBNAIL_PX = 48


@dataclass(frozen=True, slots=True)
class FramePlan:
    """How images of one product become frames.

    Attributes:
        mode: `resize` or `tile`.
        height: Frame height in pixels, a multiple of 16.
        width: Frame width in pixels, a multiple of 16.
        scale: tile: image scale before tiling.
        overlap: tile: share of a tile's side that it shares with its neighbour.
    """

    mode: Literal["resize", "tile"]
    height: int
    width: int
    scale: float = 1.0
    overlap: float = 0.0


def make_plan(images: Sequence[NDArray[np.uint8]], config: InputConfig) -> FramePlan:
    """Choose a plan from a few good images (each (H, W, 3) uint8): self-configuration, recorded as data."""
    if config.mode == "resize" or (config.mode == "auto" and is_aligned(images)):
        aspect = float(np.median([image.shape[0] / image.shape[1] for image in images]))
        height = to_stride(config.size_px * aspect**0.5)
        return FramePlan("resize", height, to_stride(config.size_px / aspect**0.5))
    side = to_stride(config.size_px)
    return FramePlan("tile", side, side, config.scale, config.overlap)


def is_aligned(images: Sequence[NDArray[np.uint8]]) -> bool:
    """Whether images show one part at one place: equal sizes and thumbnails that correlate with their median."""
    if len({image.shape for image in images}) != 1:
        return False
    thumbnails = np.stack([_thumbnail(image) for image in images])
    reference = np.median(thumbnails, axis=0)
    spread = reference.std() * thumbnails.std(axis=(1, 2))
    centred = thumbnails - thumbnails.mean(axis=(1, 2), keepdims=True)
    covariance = (centred * (reference - reference.mean())).mean(axis=(1, 2))
    return bool(np.mean(covariance / np.maximum(spread, 1e-6)) > ALIGNED_CORRELATION)


def to_frames(image: NDArray[np.uint8], plan: FramePlan) -> NDArray[np.uint8]:
    """Return the frames (B, h, w, 3) uint8 that cover an image (H, W, 3)."""
    if plan.mode == "resize":
        return resize(image, plan.height, plan.width)[np.newaxis]
    scaled = _pad(_scaled(image, plan.scale), plan)
    tops, lefts = _corners(scaled.shape, plan)
    return np.stack([scaled[y : y + plan.height, x : x + plan.width] for y in tops for x in lefts])


def to_map(maps_BHW: NDArray[np.float32], plan: FramePlan, height: int, width: int) -> NDArray[np.float32]:
    """Join the maps of an image's frames into one (height, width) float32 map; overlaps are blended, without seams."""
    if plan.mode == "resize":
        return resize(maps_BHW[0], height, width)
    scaled_height, scaled_width = _scaled_shape((height, width), plan.scale)
    padded_shape = max(scaled_height, plan.height), max(scaled_width, plan.width)
    tops, lefts = _corners(padded_shape, plan)
    window = _window(plan)
    total = np.zeros(padded_shape, np.float32)
    weight = np.zeros(padded_shape, np.float32)
    for anomaly_map, (y, x) in zip(maps_BHW, ((y, x) for y in tops for x in lefts), strict=True):
        total[y : y + plan.height, x : x + plan.width] += anomaly_map * window
        weight[y : y + plan.height, x : x + plan.width] += window
    total /= weight
    return resize(total[:scaled_height, :scaled_width], height, width)


def random_frame(
    planes: Sequence[NDArray[Any]],
    plan: FramePlan,
    rng: np.random.Generator,
    showing: NDArray[np.bool_] | None = None,
) -> list[NDArray[Any]]:
    """Cut the same training frame out of planes of one size (an image, its target, its weights).

    A target or weight plane is resized like the image; uint8 and float32 planes are accepted. Tiles lie at the image's
    edges about as often as those of `to_frames` do, or edges would be foreign to whoever learns from them.

    Args:
        planes: (H, W) or (H, W, C), all of one size.
        plan: How images become frames.
        rng: Where tiles lie.
        showing: (H, W); a tile shows one of these pixels, each as likely as the other. Anything where there is none.
    """
    if plan.mode == "resize":
        return [resize(plane, plan.height, plan.width) for plane in planes]
    scaled = [_pad(_scaled(plane, plan.scale), plan) for plane in planes]
    y = _random_start(scaled[0].shape[0], plan.height, rng)
    x = _random_start(scaled[0].shape[1], plan.width, rng)
    if showing is not None and showing.any():
        pixels = np.argwhere(showing)
        pixel = pixels[int(rng.integers(len(pixels)))] * plan.scale
        y = _start_that_shows(pixel[0], scaled[0].shape[0], plan.height, rng)
        x = _start_that_shows(pixel[1], scaled[0].shape[1], plan.width, rng)
    return [plane[y : y + plan.height, x : x + plan.width] for plane in scaled]


def to_stride(length: float) -> int:
    """Return the side of a frame, in pixels, that is nearest to a length and that every network can halve."""
    return max(2 * _STRIDE, round(length / _STRIDE) * _STRIDE)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    thumbnail = cv2.resize(image, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    grey: NDArray[np.float32] = thumbnail.mean(axis=2, dtype=np.float32)
    return grey


def _scaled_shape(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _scaled(plane: NDArray[Any], scale: float) -> NDArray[Any]:
    return plane if scale == 1.0 else resize(plane, *_scaled_shape(plane.shape, scale))


def _pad(plane: NDArray[Any], plan: FramePlan) -> NDArray[Any]:
    bottom, right = max(0, plan.height - plane.shape[0]), max(0, plan.width - plane.shape[1])
    if not bottom and not right:
        return plane
    return cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REFLECT)


def _corners(shape: tuple[int, ...], plan: FramePlan) -> tuple[list[int], list[int]]:
    return _starts(shape[0], plan.height, plan.overlap), _starts(shape[1], plan.width, plan.overlap)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Evenly spread tile starts: the first at 0, the last flush with the end, at least `overlap` shared."""
    count = 1 + int(np.ceil((length - tile) / max(1.0, tile * (1.0 - overlap))))
    return [round(start) for start in np.linspace(0, length - tile, count)]


def _random_start(length: int, tile: int, rng: np.random.Generator) -> int:
    """Draw the start of a tile that may reach half its side over either end, and push it back inside."""
    return int(np.clip(rng.integers(-(tile // 2), length - tile // 2), 0, length - tile))


def _start_that_shows(position: float, length: int, tile: int, rng: np.random.Generator) -> int:
    """Draw the start of a tile that has a position anywhere inside it."""
    return int(np.clip(int(position) - rng.integers(tile), 0, length - tile))


def _window(plan: FramePlan) -> NDArray[np.float32]:
    """Blending weights that fall towards a tile's edge, where a network sees least context; never zero."""
    rows = np.minimum(np.arange(plan.height), np.arange(plan.height)[::-1]) + 1.0
    columns = np.minimum(np.arange(plan.width), np.arange(plan.width)[::-1]) + 1.0
    return np.minimum.outer(rows, columns).astype(np.float32)
