"""A piece of the same image in another place.

Source: Li et al., CutPaste, CVPR 2021: area, aspect ratio and colour jitter of the patch.
"""

import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Planted, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import box_outline, filled, jagged_outline, log_uniform, smooth_outline
from ssad_ray.core.synthesis.textures import colour_jitter, transplant

SMALLEST_AREA, LARGEST_AREA = 0.004, 0.12
"""Shares of the frame."""
COLOUR_JITTER = 0.15


def cutpaste(image: Image, rng: np.random.Generator, site: Site = ANYWHERE) -> Planted:
    """Paste a patch of the image onto another place: half are irregular, half are turned and scaled."""
    shape, centre = image.shape[:2], site.centre(image, rng)
    turned = rng.random() < 0.5
    patch_px = side_px(image) * np.sqrt(log_uniform(rng, SMALLEST_AREA, LARGEST_AREA))
    if rng.random() < 0.5:
        draw = smooth_outline if rng.random() < 0.5 else jagged_outline
        outline = draw(centre, patch_px / np.sqrt(np.pi), rng)
    else:
        stretch = np.sqrt(log_uniform(rng, 0.3, 3.3))
        turn = rng.uniform(-np.pi / 4, np.pi / 4) if turned else 0.0
        outline = box_outline(centre, patch_px * stretch, patch_px / stretch, turn)
    source = colour_jitter(transplant(image, shape, centre, rng, turned), COLOUR_JITTER, rng)
    return blend(image, source, filled(shape, [outline]))
