"""A piece broken out: a large jagged area shows what lies behind it."""

import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Pixels, Planted, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import filled, jagged_outline, log_uniform
from ssad_ray.core.synthesis.textures import cloud, continued, grain


def missing(image: Image, rng: np.random.Generator, site: Site = ANYWHERE) -> Planted:
    """Replace a jagged area by the background, darkness, brightness, or a smooth continuation of its surroundings."""
    shape, centre = image.shape[:2], site.centre(image, rng)
    radius_px = side_px(image) * np.sqrt(log_uniform(rng, 0.008, 0.14) / np.pi)
    coverage = filled(shape, [jagged_outline(centre, radius_px, rng)], rng.uniform(0.0, 2.5))
    behind = grain(_behind(image, coverage, rng, site), rng, rng.uniform(0.0, 3.0))
    return blend(image, behind, coverage)


def _behind(image: Image, coverage: Pixels, rng: np.random.Generator, site: Site) -> Pixels:
    kind = rng.integers(4)
    if kind == 3:
        return continued(image.astype(np.float32), (coverage == 0).astype(np.float32))
    flat = (site.background(image), np.full(3, rng.uniform(0, 40)), np.full(3, rng.uniform(215, 255)))[kind]
    return flat.astype(np.float32) + 4.0 * cloud(coverage.shape, rng, 0.2 * side_px(image), 2)[..., :1]
