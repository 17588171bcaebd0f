"""Images that could be taken of a template: as if printed and photographed once more, and not quite registered.

What is varied, and how far, is what good places of real pairs differ by after registration; see
docs/decisions/0015-template-difference.md.

Shapes: H W height and width of a frame, C = 3 channels.
"""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.warp import Warp, sample, shifted

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_DISPLACEMENTS = (32, 0.4), (4, 0.4)
"""Pixels over which a random displacement changes, and its standard deviation in pixels."""
_THICKNESS = 0.2  # of a pixel, standard deviation
_NOISE = 2.0  # grey levels
_MARGIN_PX = 8  # no displacement is as long


def photographed_pair(template_HWC: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a photograph of a template on top of the template, (H, W, 6)."""
    return np.concatenate([as_photographed(template_HWC, rng), template_HWC], axis=2)


def as_photographed(template_HWC: Pixels, rng: np.random.Generator) -> Pixels:
    """Return an image (H, W, C) that shows a template and nothing else; as bright, as registration leaves it."""
    height, width = template_HWC.shape[:2]
    coarse, fine = (_bend(height, width, rng, *each) for each in _DISPLACEMENTS)
    by_px = rng.normal(0, _THICKNESS)
    taken_HWC = np.empty_like(template_HWC)
    for block, places in coarse.parts(height, width):
        places += fine.places(block, height, width) - shifted(0, 0).places(block, height, width)
        near = block.grown(_MARGIN_PX).within(height, width)
        moved = sample(_thicker(near.of(template_HWC), by_px), places - np.array((near.left, near.top), np.float32))
        moved += rng.normal(0, _NOISE, moved.shape)
        block.of(taken_HWC)[:] = np.clip(np.rint(moved), 0, 255)
    return taken_HWC


def _bend(height: int, width: int, rng: np.random.Generator, every_px: int, size_px: float) -> Warp:
    """Return a displacement that changes over so many pixels."""
    nodes = rng.normal(0, size_px, (2 + height // every_px, 2 + width // every_px, 2)).astype(np.float32)
    return replace(shifted(0, 0), bend_RC2=nodes)


def _thicker(template: Pixels, by_px: float) -> Floats:
    """Move edges towards their bright side, or their dark side where `by_px` is negative, by a part of a pixel."""
    change = cv2.erode if by_px > 0 else cv2.dilate
    grown = change(np.ascontiguousarray(template), np.ones((3, 3), np.uint8)).astype(np.float32)
    return np.asarray(cv2.addWeighted(template.astype(np.float32), 1 - abs(by_px), grown, abs(by_px), 0), np.float32)
