"""Maps from an image to its template, and how well the two agree under one.

A matrix_23 maps (x, y, 1) of the image to (x, y) of the template; pixel centres are whole numbers. Shapes: H W height
and width of an image, h w of a block of it, R C rows and columns of nodes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.images import resize

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Values = TypeVar("Values", np.uint8, np.float32)
AnyValues = TypeVar("AnyValues", bound=np.generic)

MAX_GAIN = 2.0
"""How much more contrast an image may have than its template, or the template than the image."""
NOISE = 2.0
"""Grey levels; fainter fluctuations say nothing about the place."""

_BLOCK_PX = 96
_PART_PX = 256, 4096  # down and across
_MAX_BLOCKS = 8  # down and across
_LEAST_COVERED = 0.25
_SMOOTHING_PX = 1.0


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of an image, in pixels; it may reach beyond the image."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: NDArray[AnyValues]) -> NDArray[AnyValues]:
        """Return a view of the block; it must lie in the image."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def grown(self, by_px: int) -> "Block":
        """Return the block with a margin."""
        return Block(self.top - by_px, self.left - by_px, self.height + 2 * by_px, self.width + 2 * by_px)

    def within(self, height: int, width: int) -> "Block":
        """Return the part that lies in an image of this size; some of it does."""
        top, left = max(0, self.top), max(0, self.left)
        bottom, right = min(height, self.top + self.height), min(width, self.left + self.width)
        return Block(top, left, bottom - top, right - left)


def blocks(height: int, width: int, side_px: int, most: int) -> list[Block]:
    """Return evenly spread blocks of an image, at most so many down and across."""
    rows, columns = min(side_px, height), min(side_px, width)
    tops, lefts = (
        np.linspace(0, length - side, min(most, math.ceil(length / side))).round().astype(int).tolist()
        for length, side in ((height, rows), (width, columns))
    )
    return [Block(top, left, rows, columns) for top in tops for left in lefts]


@dataclass(frozen=True, slots=True, eq=False)
class Warp:
    """From the image to the template: a displacement, given at nodes, and then an affine map.

    Attributes:
        matrix_23: float64.
        bend_RC2: float32 (dx, dy) in pixels at the centres of R x C equal cells of the image; linear between them.
    """

    matrix_23: Matrix
    bend_RC2: Floats

    def places(self, block: Block, height: int, width: int) -> Floats:
        """Return where the pixels of a block of an image (height, width) are in the template: (h, w, 2), x and y."""
        places = np.empty((block.height, block.width, 2), np.float32)
        places[..., 0] = np.arange(block.left, block.left + block.width, dtype=np.float32)
        places[..., 1] = np.arange(block.top, block.top + block.height, dtype=np.float32)[:, None]
        if self.bend_RC2.any():
            rows, columns = self.bend_RC2.shape[:2]
            cells = (places + 0.5) * np.array((columns / width, rows / height), np.float32) - 0.5
            places += sample(self.bend_RC2, np.asarray(cells, np.float32))
        return np.asarray(cv2.transform(places, self.matrix_23), np.float32)

    def parts(self, height: int, width: int) -> Iterator[tuple[Block, Floats]]:
        """Cut an image (height, width) into blocks; yield each with the places of its pixels in the template.

        The places of all pixels would take more memory than both pictures.
        """
        rows, columns = _PART_PX
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                block = Block(top, left, min(rows, height - top), min(columns, width - left))
                yield block, self.places(block, height, width)


def shifted(x: float, y: float) -> Warp:
    """Return the map of a pure shift."""
    return Warp(np.array([[1.0, 0.0, x], [0.0, 1.0, y]]), np.zeros((1, 1, 2), np.float32))


def sample(values: NDArray[Values], places_hw2: Floats) -> NDArray[Values]:
    """Return an array's values at places, linear between its pixels; outside, those of its edge."""
    x, y = places_hw2[..., 0], places_hw2[..., 1]
    (top, bottom), (left, right) = _reach(y, values.shape[0]), _reach(x, values.shape[1])
    seen = values[top:bottom, left:right]  # remap takes no array with a side of 32,767 or more
    found = cv2.remap(seen, x - left, y - top, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, values.dtype)


def _reach(at: Floats, length: int) -> tuple[int, int]:
    """Return the first pixel that is needed to know the values at places, and the one after the last."""
    first, last = np.clip((math.floor(at.min()), math.ceil(at.max())), 0, length - 1)
    return int(first), int(last) + 1


def is_inside(template: Image, places_hw2: Floats) -> NDArray[np.bool_]:
    """Return which places (h, w) lie on a pixel of the template."""
    height, width = template.shape[:2]
    x, y = places_hw2[..., 0], places_hw2[..., 1]
    inside: NDArray[np.bool_] = (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)
    return inside


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A grey image (H, W) uint8 and its grey template, which may have another size."""

    image: Image
    template: Image

    def shrunk(self, scale: float) -> "Pair":
        """Return the pair at a smaller scale."""
        return self if scale == 1.0 else Pair(*(_shrunk(each, scale) for each in (self.image, self.template)))

    def translated(self, warp: Warp, to: "Pair") -> Warp:
        """Return a map of this pair as one of the same pair at another scale."""
        from_image, to_template = _rescaling(to.image, self.image), _rescaling(self.template, to.template)
        matrix = to_template @ np.vstack([warp.matrix_23, (0.0, 0.0, 1.0)]) @ from_image
        scale = np.diagonal(from_image)[:2]
        return Warp(matrix[:2], np.asarray(warp.bend_RC2 / scale, np.float32))

    def correlation(self, warp: Warp) -> float:
        """Return how well the two agree under a map, in [-1, 1].

        The contrast and structure term of SSIM (Wang et al., IEEE TIP 2004), with its sums taken over up to 64 blocks
        at full resolution, each slightly smoothed and relative to its own mean, after a gain of 1/2 to 2 that makes
        contrasts equal. Blocks have a say as they have contrast: the large blank parts of a binary picture do not
        count, nor does what is darker towards one end. Fluctuations of less than two grey levels are noise: two plain
        pictures agree, and a plain one does not agree with a pattern. 0 where the template covers nothing.
        """
        covariance, own, others, num = 0.0, 0.0, 0.0, 0
        height, width = self.image.shape
        for block in blocks(height, width, _BLOCK_PX, _MAX_BLOCKS):
            places = warp.places(block, height, width)
            is_covered = is_inside(self.template, places)
            if np.count_nonzero(is_covered) >= _LEAST_COVERED * is_covered.size:
                a, b = (_smooth(each)[is_covered] for each in (block.of(self.image), sample(self.template, places)))
                a, b = a - a.mean(), b - b.mean()
                covariance, own, others = covariance + float(a @ b), own + float(a @ a), others + float(b @ b)
                num += a.size
        if not num:
            return 0.0
        gain = min(max(math.sqrt(own / max(others, 1e-9)), 1 / MAX_GAIN), MAX_GAIN)
        noise = 2 * num * NOISE**2
        return (2 * gain * covariance + noise) / (own + gain**2 * others + noise)


def _smooth(block: Image) -> Floats:
    return np.asarray(cv2.GaussianBlur(block.astype(np.float32), (0, 0), _SMOOTHING_PX), np.float32)


def _shrunk(image: Image, scale: float) -> Image:
    height, width = (max(1, round(side * scale)) for side in image.shape)
    return resize(image, height, width)


def _rescaling(source: Image, target: Image) -> Matrix:
    """Return the matrix (3, 3) of a resizing, which keeps the corners of the outermost pixels where they are."""
    y, x = (float(new / old) for new, old in zip(target.shape, source.shape, strict=True))
    return np.array([[x, 0.0, (x - 1) / 2], [0.0, y, (y - 1) / 2], [0.0, 0.0, 1.0]])
