"""Perlin-shaped areas filled with another texture: pieces of good images or procedural noise.

Source: Zavrtanik et al., DRAEM, ICCV 2021, section 3.3; without its external texture data set.
"""

import cv2
import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Pixels, Planted, Point, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import filled, log_uniform, smooth_outline
from ssad_ray.core.synthesis.textures import colour_jitter, procedural, transplant

THRESHOLD = 0.6
"""Share of the highest noise value above which there is a defect."""
LARGEST_LATTICE = 5
"""Binary logarithm of the most lattice cells along a side."""


def perlin(image: Image, rng: np.random.Generator, site: Site = ANYWHERE) -> Planted:
    """Fill the area where Perlin noise is high; half of the plants keep to the neighbourhood of their centre."""
    shape, centre = image.shape[:2], site.centre(image, rng)
    rows = int(rng.integers(1, LARGEST_LATTICE + 1))
    columns = int(np.clip(rows + rng.integers(-2, 3), 1, LARGEST_LATTICE))
    noise = _peak_at(centre, perlin_noise(shape, (2**rows, 2**columns), rng), rng.uniform(-90.0, 90.0))
    coverage = (noise > THRESHOLD * noise.max()).astype(np.float32)
    if rng.random() < 0.5:
        radius_px = side_px(image) * log_uniform(rng, 0.06, 0.3)
        coverage *= filled(shape, [smooth_outline(centre, radius_px, rng)]) > 0
    return blend(image, _texture(image, centre, rng, site), coverage * np.float32(rng.uniform(0.2, 1.0)))


def perlin_noise(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Return (H, W) gradient noise, about in [-1, 1], of `cells` lattice cells down and across.

    Fade and distance of a corner are products of a row's and a column's part, so that the whole frame is two small
    matrix products.
    """
    angle = rng.uniform(0.0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    fade_rows, ramp_rows = _lattice_weights(shape[0], cells[0])
    fade_columns, ramp_columns = _lattice_weights(shape[1], cells[1])
    noise = ramp_rows @ np.sin(angle) @ fade_columns.T + fade_rows @ np.cos(angle) @ ramp_columns.T
    return np.asarray(np.sqrt(2.0) * noise, np.float32)


def _lattice_weights(size: int, cells: int) -> tuple[Pixels, Pixels]:
    """Return the fade of every lattice point at every pixel, (size, cells + 1), and fade times signed distance."""
    offset = np.arange(size)[:, None] * (cells / size) - np.arange(cells + 1)
    distance = np.minimum(np.abs(offset), 1.0)
    fade = 1.0 - distance**3 * (10.0 - 15.0 * distance + 6.0 * distance**2)
    return np.asarray(fade, np.float32), np.asarray(fade * offset, np.float32)


def _peak_at(centre: Point, noise: Pixels, degrees: float) -> Pixels:
    """Turn the noise and move its peak to `centre`, so that some of the plant is there."""
    height, width = noise.shape
    peak_y, peak_x = divmod(int(noise.argmax()), width)
    matrix = cv2.getRotationMatrix2D((peak_x, peak_y), degrees, 1.0)
    matrix[:, 2] += (centre[1] - peak_x, centre[0] - peak_y)
    return np.asarray(cv2.warpAffine(noise, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101), np.float32)


def _texture(image: Image, centre: Point, rng: np.random.Generator, site: Site) -> Pixels:
    shape = image.shape[:2]
    if rng.random() < 0.35:
        return procedural(shape, rng)
    return colour_jitter(transplant(site.donor(image, rng), shape, centre, rng, turned=True), 0.5, rng)
