"""A piece of the same image in another place.

Source: Li et al., CutPaste, CVPR 2021: area, aspect ratio and colour jitter of the patch.
"""

import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Planted, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import box_outline, filled, jagged_outline, log_uniform, smooth_outline
from ssad_ray.core.synthesis.textures import colour_jitter, transplant


def cutpaste(
    image: Image,
    rng: np.random.Generator,
    site: Site = ANYWHERE,
    *,
    area: tuple[float, float] = (0.004, 0.12),
    irregular: float = 0.5,
    jitter: float = 0.15,
) -> Planted:
    """Paste a patch of the image onto another place, half of the patches turned and scaled.

    Args:
        area: Smallest and largest share of the frame that a patch covers.
        irregular: Probability of an irregular outline instead of a rectangle.
        jitter: Strength of the patch's colour jitter.
    """
    shape, centre = image.shape[:2], site.centre(image, rng)
    turned = rng.random() < 0.5
    patch_px = side_px(image) * np.sqrt(log_uniform(rng, *area))
    if rng.random() < irregular:
        draw = smooth_outline if rng.random() < 0.5 else jagged_outline
        outline = draw(centre, patch_px / np.sqrt(np.pi), rng)
    else:
        stretch = np.sqrt(log_uniform(rng, 0.3, 3.3))
        turn = rng.uniform(-np.pi / 4, np.pi / 4) if turned else 0.0
        outline = box_outline(centre, patch_px * stretch, patch_px / stretch, turn)
    source = colour_jitter(transplant(image, shape, centre, rng, turned), jitter, rng)
    return blend(image, source, filled(shape, [outline]))
