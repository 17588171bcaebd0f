"""From an image of any size to the fixed frames a method works on, and from their maps back to the image.

`resize` shows a method the whole image at one size: right for aligned parts, whose every position has a meaning.
`tile` shows overlapping tiles at one scale: right for textures, free poses and images too large to see at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import InputConfig
from ssad_ray.core.images import resize

ALIGNED_CORRELATION = 0.75
"""Mean correlation of thumbnails with their median above which parts count as aligned."""

MOST_SHRUNK = 16
"""By how much a side may shrink at most, or frames no longer show an image whole unless that is asked for."""

_STRIDE = 16  # every network halves its frame four times
_THUMBNAIL_PX = 48


Place = tuple[slice, slice]
"""Rows and columns."""


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


def make_plan(images: Iterable[NDArray[np.uint8]], config: InputConfig) -> FramePlan:
    """Choose a plan from a few good images (each (H, W, 3) uint8): self-configuration, recorded as data.

    The images are read once, one after the other. Where a side would shrink more than `MOST_SHRUNK` times `auto` tiles,
    aligned or not: little would be left of a small defect.
    """
    shapes, thumbnails = _looked_at(images)
    aspect = float(np.median([height / width for height, width in shapes]))
    sides = to_stride(config.size_px * aspect**0.5), to_stride(config.size_px / aspect**0.5)
    shrinks = max(length / side for shape in shapes for length, side in zip(shape, sides, strict=True))
    is_seen_whole = shrinks <= MOST_SHRUNK and _show_one_place(shapes, thumbnails)
    if config.mode == "resize" or (config.mode == "auto" and is_seen_whole):
        return FramePlan("resize", *sides)
    side = to_stride(config.size_px)
    return FramePlan("tile", side, side, config.scale, config.overlap)


def is_aligned(images: Iterable[NDArray[np.uint8]]) -> bool:
    """Whether images show one part at one place: equal sizes and thumbnails that correlate with their median."""
    return _show_one_place(*_looked_at(images))


def _looked_at(images: Iterable[NDArray[np.uint8]]) -> tuple[list[tuple[int, int]], list[NDArray[np.float32]]]:
    """Return height and width, and a thumbnail, of each image, holding one image at a time."""
    shapes, thumbnails = [], []
    for image in images:
        shapes.append((image.shape[0], image.shape[1]))
        thumbnails.append(_thumbnail(image))
    return shapes, thumbnails


def _show_one_place(shapes: Sequence[tuple[int, int]], thumbnail_list: Sequence[NDArray[np.float32]]) -> bool:
    if len(set(shapes)) != 1:
        return False
    thumbnails = np.stack(thumbnail_list)
    reference = np.median(thumbnails, axis=0)
    spread = reference.std() * thumbnails.std(axis=(1, 2))
    centred = thumbnails - thumbnails.mean(axis=(1, 2), keepdims=True)
    covariance = (centred * (reference - reference.mean())).mean(axis=(1, 2))
    return bool(np.mean(covariance / np.maximum(spread, 1e-6)) > ALIGNED_CORRELATION)


class Frames:
    """The frames that cover an image: views of it, cut when they are asked for, so that tiles take no memory."""

    def __init__(self, image: NDArray[np.uint8], plan: FramePlan) -> None:
        """Take in an image (H, W, C)."""
        self._plan = plan
        self._shape = joined_shape(plan, *image.shape[:2])
        self._image, self._tops, self._lefts = resize(image, *self._shape), [0], [0]
        if plan.mode == "tile":
            self._image = _pad(self._image, plan)
            sizes = zip(self._image.shape, _sides(plan), strict=False)
            self._tops, self._lefts = (_starts(*each, plan.overlap) for each in sizes)

    def __len__(self) -> int:
        return len(self._tops) * len(self._lefts)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return a frame, (h, w, C) uint8."""
        return self._image[self._place(self._corner(index))]

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all frames, at most so many at a time: (B, h, w, C)."""
        for at in range(0, len(self), size):
            yield np.stack([self[index] for index in range(at, min(at + size, len(self)))])

    def join(self, maps: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Join the maps (each (h, w)) of all frames into one at their scale; overlaps are blended, without seams.

        The maps are read once, in the order of the frames; the shape is that which `joined_shape` returns.
        """
        if self._plan.mode == "resize":
            (whole,) = maps
            return whole
        total = np.zeros(self._image.shape[:2], np.float32)
        for anomaly_map, index in zip(maps, range(len(self)), strict=True):
            corner = self._corner(index)
            (y, x), (tops, lefts) = corner, self._near(corner)
            share = _share(self._plan, tuple(top - y for top in tops), tuple(left - x for left in lefts))
            total[self._place(corner)] += anomaly_map * share
        return total[: self._shape[0], : self._shape[1]]

    def with_frame(self, index: int, frame: NDArray[np.uint8]) -> tuple[Self, Place]:
        """Return the frames that share a pixel with one of them, which shows something else, and where that one lies.

        What is joined of their maps is at this place what the whole image would give.
        """
        y, x = corner = self._corner(index)
        height, width = _sides(self._plan)
        tops, lefts = self._near(corner)
        part = copy(self)
        part._image = self._image[tops[0] : tops[-1] + height, lefts[0] : lefts[-1] + width].copy()
        part._shape = part._image.shape[0], part._image.shape[1]
        part._tops, part._lefts = ([each - starts[0] for each in starts] for starts in (tops, lefts))
        place = self._place((y - tops[0], x - lefts[0]))
        part._image[place] = frame
        return part, place

    def _corner(self, index: int) -> tuple[int, int]:
        row, column = divmod(range(len(self))[index], len(self._lefts))
        return self._tops[row], self._lefts[column]

    def _place(self, corner: tuple[int, int]) -> Place:
        (y, x), (height, width) = corner, _sides(self._plan)
        return slice(y, y + height), slice(x, x + width)

    def _near(self, corner: tuple[int, int]) -> tuple[list[int], list[int]]:
        """Return tops and lefts of the frames that share a pixel with the one at a corner, itself included."""
        (y, x), (height, width) = corner, _sides(self._plan)
        return [top for top in self._tops if abs(top - y) < height], [a for a in self._lefts if abs(a - x) < width]


def joined_shape(plan: FramePlan, height: int, width: int) -> tuple[int, int]:
    """Return height and width of what `Frames.join` returns for an image of this size."""
    if plan.mode == "resize":
        return _sides(plan)
    return max(1, round(height * plan.scale)), max(1, round(width * plan.scale))


def random_frames(
    planes: Sequence[NDArray[Any]],
    plan: FramePlan,
    rng: np.random.Generator,
    num_tiles: int,
    showing: NDArray[np.bool_] | None = None,
) -> Iterator[list[NDArray[Any]]]:
    """Cut training frames out of planes of one size (an image, its target, its weights), all at the same places.

    A target or weight plane is resized like the image; uint8 and float32 planes are accepted. Tiles lie at the image's
    edges about as often as those of `Frames` do, or edges would be foreign to whoever learns from them.

    Args:
        planes: (H, W) or (H, W, C), all of one size.
        plan: How images become frames.
        rng: Where tiles lie.
        num_tiles: How many tiles; an image that is seen whole is one frame.
        showing: (H, W); every other tile shows one of these pixels, each as likely as the other, if there are any.
    """
    scaled = [resize(plane, *joined_shape(plan, *plane.shape[:2])) for plane in planes]
    if plan.mode == "resize":
        yield scaled
        return
    scaled = [_pad(plane, plan) for plane in scaled]
    height, width = scaled[0].shape[:2]
    shown = np.flatnonzero(showing) if showing is not None else np.empty(0, np.int64)
    for index in range(num_tiles):
        y, x = _random_start(height, plan.height, rng), _random_start(width, plan.width, rng)
        if index % 2 and len(shown):
            down, right = divmod(int(shown[int(rng.integers(len(shown)))]), planes[0].shape[1])
            y = _start_that_shows(down * plan.scale, height, plan.height, rng)
            x = _start_that_shows(right * plan.scale, width, plan.width, rng)
        yield [plane[y : y + plan.height, x : x + plan.width] for plane in scaled]


def to_stride(length: float) -> int:
    """Return the side of a frame, in pixels, that is nearest to a length and that every network can halve."""
    return max(2 * _STRIDE, round(length / _STRIDE) * _STRIDE)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    picture = np.ascontiguousarray(image[..., :3])  # what follows is its template
    thumbnail = cv2.resize(picture, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    grey: NDArray[np.float32] = thumbnail.mean(axis=2, dtype=np.float32)
    return grey


def _pad(plane: NDArray[Any], plan: FramePlan) -> NDArray[Any]:
    bottom, right = max(0, plan.height - plane.shape[0]), max(0, plan.width - plane.shape[1])
    if not bottom and not right:
        return plane
    return cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REFLECT)


def _sides(plan: FramePlan) -> tuple[int, int]:
    return plan.height, plan.width


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


@lru_cache(maxsize=8)
def _share(plan: FramePlan, downs: tuple[int, ...], rights: tuple[int, ...]) -> NDArray[np.float32]:
    """Return how much a frame has to say at each of its pixels, (h, w); the shares of all frames sum to 1.

    Frame by frame, because a map of the sums would be as large as the image; most frames have equal neighbours.

    Args:
        plan: How images become frames.
        downs: How far below it frames begin that share a pixel with it, itself included, px; negative: above.
        rights: The same to the right.
    """
    window = _window(plan)
    total = np.zeros_like(window)
    for down in downs:
        for right in rights:
            here, there = zip(_overlap(down, window.shape[0]), _overlap(right, window.shape[1]), strict=True)
            total[here] += window[there]
    return window / total


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Return where two equal lengths overlap, the second shifted: as part of the first, and of the second."""
    return slice(max(shift, 0), length + min(shift, 0)), slice(max(-shift, 0), length - max(shift, 0))


def _window(plan: FramePlan) -> NDArray[np.float32]:
    """Blending weights that fall towards a tile's edge, where a network sees least context; never zero."""
    rows = np.minimum(np.arange(plan.height), np.arange(plan.height)[::-1]) + 1.0
    columns = np.minimum(np.arange(plan.width), np.arange(plan.width)[::-1]) + 1.0
    return np.minimum.outer(rows, columns).astype(np.float32)
