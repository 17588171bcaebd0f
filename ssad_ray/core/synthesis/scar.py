"""Thin scratches: curved lines, darker or brighter than what they cross."""

import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Pixels, Planted, Point, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import Outline, log_uniform, stroked
from ssad_ray.core.synthesis.textures import cloud, random_shift


def scar(image: Image, rng: np.random.Generator, site: Site = ANYWHERE) -> Planted:
    """Draw a scratch 1 to 6 px wide: sharp or soft, even or interrupted, plain or a groove with a lit edge."""
    shape, thickness_px = image.shape[:2], round(log_uniform(rng, 1.0, 6.0))
    path = _curve(site.centre(image, rng), side_px(image) * log_uniform(rng, 0.15, 0.9), rng)
    softness_px = rng.uniform(0.0, 2.5)
    coverage = stroked(shape, path, thickness_px, softness_px)
    if rng.random() < 0.4:
        coverage *= np.clip(0.6 + 0.5 * cloud(shape, rng, 0.1 * side_px(image), 2)[..., 0], 0.0, 1.0)
    shift = random_shift(rng, 18.0, 120.0) * np.float32(1.0 + 0.2 * softness_px)
    source = image + shift
    if rng.random() < 0.3:
        source, coverage = _groove(image, shift, coverage, thickness_px)
    return blend(image, source, coverage)


def _curve(centre: Point, length_px: float, rng: np.random.Generator) -> Outline:
    """Return points of a line that bends slowly, its middle at `centre`."""
    num_points = 24
    heading = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.06) * np.arange(num_points)
    heading += np.cumsum(rng.normal(0.0, 0.08, num_points))
    path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0) * (length_px / num_points)
    return np.asarray(path - path[num_points // 2] + centre)


def _groove(image: Image, shift: Pixels, coverage: Pixels, thickness_px: int) -> tuple[Pixels, Pixels]:
    """Light the far flank of the line: its coverage moved across by its width, with the opposite change of colour."""
    flank = np.zeros_like(coverage)
    flank[thickness_px:, thickness_px:] = coverage[:-thickness_px, :-thickness_px]
    flank *= 1.0 - coverage
    change = coverage[..., None] * shift - 0.7 * flank[..., None] * shift
    return np.asarray(image + change, np.float32), ((coverage + flank) > 0).astype(np.float32)
