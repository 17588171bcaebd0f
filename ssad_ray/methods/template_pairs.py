"""Good pairs that were never taken: a template that looks printed and photographed once more, and not quite registered.

What is varied, and how far, is what good places of real pairs differ by after registration; see
docs/decisions/0015-template-difference.md.

Shapes: H W height and width of a frame; pairs have 6 channels, the image's RGB and the template's.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.images import resize
from ssad_ray.core.warp import sample

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_SAME = 0.05  # mean difference, grey levels; cameras repeat themselves less well
_SLOW, _FAST = (32, 0.4), (4, 0.4)
"""Of the two random displacements: pixels over which they change, and their size in pixels."""
_THICKNESS = 0.35  # of a pixel
_GAIN = 0.02
_BIAS = 2.0  # grey levels
_NOISE = 2.0  # grey levels


def as_photographed(pair_HWC: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a pair whose image is its template with an image that could have been taken; any other as it is."""
    image, template = pair_HWC[..., :3], pair_HWC[..., 3:]
    if np.abs(image.astype(np.int16) - template).mean() > _SAME:
        return pair_HWC
    height, width = image.shape[:2]
    bend = sum(
        (_smooth(height, width, rng, *each) for each in (_SLOW, _FAST)), np.zeros((height, width, 2), np.float32)
    )
    bend[..., 0] += np.arange(width, dtype=np.float32)
    bend[..., 1] += np.arange(height, dtype=np.float32)[:, None]
    moved = sample(_thicker(template, rng.normal(0, _THICKNESS)), bend)
    taken = moved * rng.normal(1, _GAIN) + rng.normal(0, _BIAS) + rng.normal(0, _NOISE, moved.shape)
    return np.concatenate([np.clip(np.rint(taken), 0, 255).astype(np.uint8), template], axis=2)


def _smooth(height: int, width: int, rng: np.random.Generator, every_px: int, size_px: float) -> Floats:
    """Return a displacement (H, W, 2) that changes over so many pixels."""
    nodes = rng.normal(0, size_px, (2 + height // every_px, 2 + width // every_px, 2)).astype(np.float32)
    return resize(nodes, height, width)


def _thicker(template: Pixels, by_px: float) -> Floats:
    """Move edges towards their bright side, or their dark side where `by_px` is negative, by a part of a pixel."""
    change = cv2.erode if by_px > 0 else cv2.dilate
    grown = change(np.ascontiguousarray(template), np.ones((3, 3), np.uint8)).astype(np.float32)
    return np.asarray(cv2.addWeighted(template.astype(np.float32), 1 - abs(by_px), grown, abs(by_px), 0), np.float32)
