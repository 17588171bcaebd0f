"""What all families of planted defects share: where a plant goes, how it is blended in, what counts as visible."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""(H, W, 3) RGB."""
Mask = NDArray[np.bool_]
"""(H, W)."""
Pixels = NDArray[np.float32]
"""(H, W) coverage in [0, 1], or (H, W, 3) colours in [0, 255]."""
Planted = tuple[Image, Mask]
Point = tuple[float, float]
"""(y, x) in pixels."""

VISIBLE = 8
"""Grey levels (of 255) by which some channel of a pixel must change to be seen."""
CLOSING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
MARGIN_PX = 2
"""Reach of the closing: with so much around a change, its mask is that of the whole frame."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a plant goes, and from which images it may borrow.

    Attributes:
        other: Another anomaly-free image, of any size, as a source of texture.
    """

    other: Image | None = None

    def centre(self, image: Image, rng: np.random.Generator) -> Point:
        """Draw the point a plant is centred on."""
        height, width = image.shape[:2]
        y, x = divmod(int(rng.integers(height * width)), width)
        return float(y), float(x)

    def donor(self, image: Image, rng: np.random.Generator) -> Image:
        """Draw the image whose texture is used: the planted one itself or the other one."""
        return self.other if self.other is not None and rng.random() < 0.5 else image

    def background(self, image: Image) -> Pixels:
        """Return the mean colour (3,) of the frame's outermost pixels."""
        outside = np.ones(image.shape[:2], np.uint8)
        outside[1:-1, 1:-1] = 0
        return np.array(cv2.mean(image, outside)[:3], np.float32)


ANYWHERE = Site()


def side_px(image: Image) -> float:
    """Return the side of the square of the frame's area; all sizes of plants are relative to it."""
    return float(np.sqrt(image.shape[0] * image.shape[1]))


def blend(image: Image, source: Pixels, coverage: Pixels) -> Planted:
    """Lay `source` over the image where and as far as `coverage` says.

    A grey image stays grey: a plant that were told by its colour alone would teach nothing.
    """
    planted, mask = image.copy(), np.zeros(image.shape[:2], np.bool_)
    x, y, width, height = cv2.boundingRect((coverage > 0).astype(np.uint8))
    if width > 0:
        window = np.s_[max(0, y - MARGIN_PX) : y + height + MARGIN_PX, max(0, x - MARGIN_PX) : x + width + MARGIN_PX]
        before, after = image[window], source[window]
        if is_grey(image):
            after = np.asarray(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY)[..., None], np.float32)
        mixed = before + coverage[window][..., None] * (after - before)
        planted[window] = np.rint(np.clip(mixed, 0.0, 255.0))
        mask[window] = visible_change(before, planted[window])
    return planted, mask


def visible_change(before: Image, after: Image) -> Mask:
    """Return the (H, W) mask of what a person sees changed.

    Pixels that changed by `VISIBLE` levels form areas. Gaps of a pixel or two are closed if they changed at all: new
    texture equals the old one here and there by chance. An area counts if its 3 x 3 means changed by `VISIBLE`
    somewhere: speckles of one texture replaced by its like are not seen.
    """
    difference = cv2.subtract(after, before, dtype=cv2.CV_16S)
    change, steady_change = _largest_channel(difference), _largest_channel(cv2.blur(difference, (3, 3)))
    closed = cv2.morphologyEx((change >= VISIBLE).astype(np.uint8), cv2.MORPH_CLOSE, CLOSING)
    num_areas, labels = cv2.connectedComponents(closed * (change > 0))
    is_seen = np.zeros(num_areas, np.bool_)
    is_seen[labels[steady_change >= VISIBLE]] = True
    is_seen[0] = False
    return np.asarray(is_seen[labels], np.bool_)


def _largest_channel(difference: cv2.typing.MatLike) -> NDArray[np.int16]:
    red, green, blue = cv2.split(cv2.absdiff(difference, np.zeros_like(difference)))
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.int16)


def is_grey(image: Image) -> bool:
    """Whether all channels are the same."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return np.array_equal(red, green) and np.array_equal(green, blue)
