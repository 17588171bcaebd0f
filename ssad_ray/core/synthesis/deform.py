"""The structure itself is bent: a smooth area is shifted, twisted, or pinched."""

import cv2
import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Planted, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import filled, log_uniform, smooth_outline


def deform(image: Image, rng: np.random.Generator, site: Site = ANYWHERE) -> Planted:
    """Warp the neighbourhood of a point; where the image is flat nothing is visible."""
    (height, width), (y, x) = image.shape[:2], site.centre(image, rng)
    radius_px = side_px(image) * log_uniform(rng, 0.08, 0.25)
    outline = smooth_outline((y, x), 0.7 * radius_px, rng)
    bump = filled((height, width), [outline], 0.6 * radius_px)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    strength = np.float32(rng.uniform(0.25, 0.6) * rng.choice((-1.0, 1.0)))
    match rng.integers(3):
        case 0:
            angle = rng.uniform(0, 2 * np.pi)
            dy, dx = np.float32(np.sin(angle) * radius_px), np.float32(np.cos(angle) * radius_px)
        case 1:
            dy, dx = columns - x, y - rows
        case _:
            dy, dx = rows - y, columns - x
    warped = cv2.remap(
        image,
        columns + strength * bump * dx,
        rows + strength * bump * dy,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return blend(image, warped.astype(np.float32), (bump > 0).astype(np.float32))
