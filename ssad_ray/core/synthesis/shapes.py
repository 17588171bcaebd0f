"""Outlines of defects, and the pixels that they cover."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.synthesis.canvas import Pixels, Point

Outline = NDArray[np.float64]
"""(N, 2) corners of a polygon, (y, x) in pixels."""

SUBPIXEL_BITS = 4


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a size: every octave between `low` and `high` is equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def smooth_outline(centre: Point, radius_px: float, rng: np.random.Generator) -> Outline:
    """Return a rounded body: a turned ellipse whose radius swings with a few low frequencies."""
    angle = np.linspace(0.0, 2 * np.pi, 64, endpoint=False)
    order = np.arange(2, 6)
    swing = rng.normal(0.0, 0.25 * rng.random(), order.size) / order
    radius = 1.0 + np.cos(np.outer(angle, order) + rng.uniform(0, 2 * np.pi, order.size)) @ swing
    return _placed(centre, radius_px * radius, angle, rng)


def jagged_outline(centre: Point, radius_px: float, rng: np.random.Generator) -> Outline:
    """Return a shard: few corners at uneven distances with straight edges between them."""
    angle = np.sort(rng.uniform(0.0, 2 * np.pi, int(rng.integers(7, 16))))
    return _placed(centre, radius_px * rng.uniform(0.55, 1.25, angle.size), angle, rng)


def box_outline(centre: Point, height_px: float, width_px: float, turn: float) -> Outline:
    """Return a rectangle turned by `turn` radians."""
    corners = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * (height_px / 2, width_px / 2)
    return corners @ _rotation(turn) + centre


def filled(shape: tuple[int, int], outlines: Sequence[Outline], softness_px: float = 0.0) -> Pixels:
    """Return the (H, W) coverage of the union of polygons, its edge blurred over about `softness_px`."""
    canvas = np.zeros(shape, np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [_fixed_point(outline)], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return _softened(canvas, softness_px)


def stroked(shape: tuple[int, int], path: Outline, thickness_px: int, softness_px: float = 0.0) -> Pixels:
    """Return the (H, W) coverage of an open line through the points of `path`."""
    canvas = np.zeros(shape, np.uint8)
    cv2.polylines(canvas, [_fixed_point(path)], False, 255, thickness_px, cv2.LINE_AA, SUBPIXEL_BITS)
    return _softened(canvas, softness_px)


def _placed(centre: Point, radius_px: NDArray[np.float64], angle: Outline, rng: np.random.Generator) -> Outline:
    stretch = np.sqrt(log_uniform(rng, 1.0, 3.0))
    corners = np.stack([np.sin(angle) * radius_px * stretch, np.cos(angle) * radius_px / stretch], axis=1)
    return corners @ _rotation(rng.uniform(0, np.pi)) + centre


def _rotation(turn: float) -> Outline:
    return np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])


def _fixed_point(points: Outline) -> NDArray[np.int32]:
    return np.rint(points[:, ::-1] * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _softened(canvas: NDArray[np.uint8], softness_px: float) -> Pixels:
    if softness_px >= 1.0:
        # OpenCV's stack blur costs the same for every radius; it refuses windows larger than the image.
        window = 2 * min(int(softness_px), min(canvas.shape) // 2 - 1) + 1
        if window > 1:
            return cv2.stackBlur(canvas, (window, window)).astype(np.float32) / 255.0
    return canvas.astype(np.float32) / 255.0
