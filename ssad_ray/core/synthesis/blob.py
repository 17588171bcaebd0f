"""Solid bodies: foreign particles, stains and spots, from a few pixels to a seventh of the frame."""

import cv2
import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Pixels, Planted, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import filled, log_uniform, smooth_outline
from ssad_ray.core.synthesis.textures import cloud, random_colour, random_shift

SMALLEST_AREA, LARGEST_AREA = 0.001, 0.15
"""Shares of the frame."""


def blob(image: Image, rng: np.random.Generator, site: Site = ANYWHERE) -> Planted:
    """Lay a rounded body over the image: opaque or a film, flat or shaded, sharp or soft, faint or strong."""
    shape, (y, x) = image.shape[:2], site.centre(image, rng)
    radius_px = side_px(image) * np.sqrt(log_uniform(rng, SMALLEST_AREA, LARGEST_AREA) / np.pi)
    num_lobes = int(rng.integers(1, 4))
    lobe_px = radius_px / np.sqrt(num_lobes)
    offsets = rng.normal(0.0, 0.8 * lobe_px, (num_lobes, 2)) * (num_lobes > 1)
    outlines = [smooth_outline((y + dy, x + dx), lobe_px, rng) for dy, dx in offsets]
    softness_px = rng.choice((0.0, rng.uniform(0.0, 0.6))) * radius_px
    coverage = filled(shape, outlines, softness_px)
    source = _film(image, rng) if rng.random() < 0.4 else _body(image, coverage, rng)
    return blend(image, source, coverage)


def _film(image: Image, rng: np.random.Generator) -> Pixels:
    """Return the image seen through a stain: its texture shows through."""
    opacity = rng.uniform(0.12, 0.8)
    return np.asarray(image + opacity * (random_colour(rng) - image), np.float32)


def _body(image: Image, coverage: Pixels, rng: np.random.Generator) -> Pixels:
    """Return an opaque surface: one colour, half of the time rounded by shading, slightly uneven."""
    inside = (coverage > 0.5).astype(np.uint8)
    ground = np.array(cv2.mean(image, inside)[:3], np.float32)
    colour = random_colour(rng) if rng.random() < 0.5 else ground + random_shift(rng, 12.0, 130.0)
    height, width = coverage.shape
    surface = np.broadcast_to(np.clip(colour, 0, 255), (height, width, 3)).astype(np.float32)
    if rng.random() < 0.5:
        dome = np.sqrt(cv2.distanceTransform(inside, cv2.DIST_L2, 3))
        slope = (np.arange(width, dtype=np.float32) * rng.normal() + np.arange(height)[:, None] * rng.normal()) / width
        surface += (rng.uniform(-40, 60) * dome / max(1.0, float(dome.max())) + 40.0 * slope)[..., None]
    return surface + rng.uniform(0.0, 6.0) * cloud((height, width), rng, 6.0, 2)
