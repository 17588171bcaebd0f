"""A piece of another place blended in without a seam.

Source: Schlueter et al., Natural Synthetic Anomalies, ECCV 2022. Their Poisson equation is not solved: the difference
between image and patch is continued smoothly from outside the patch and added to it, the same idea in a millisecond.
"""

import numpy as np

from ssad_ray.core.synthesis.canvas import ANYWHERE, Image, Planted, Site, blend, side_px
from ssad_ray.core.synthesis.shapes import box_outline, filled, log_uniform, smooth_outline
from ssad_ray.core.synthesis.textures import continued, transplant


def poisson(image: Image, rng: np.random.Generator, site: Site = ANYWHERE) -> Planted:
    """Blend in a patch of this or the other image; its structure stays, its colour follows the place.

    The patch's contrast is raised at random, or one piece of an even texture in another would not be seen.
    """
    shape, centre = image.shape[:2], site.centre(image, rng)
    patch_px = side_px(image) * np.sqrt(log_uniform(rng, 0.006, 0.12))
    if rng.random() < 0.5:
        outline = smooth_outline(centre, patch_px / np.sqrt(np.pi), rng)
    else:
        stretch = np.sqrt(log_uniform(rng, 0.3, 3.3))
        outline = box_outline(centre, patch_px * stretch, patch_px / stretch, 0.0)
    coverage = filled(shape, [outline])
    patch = transplant(site.donor(image, rng), shape, centre, rng, turned=bool(rng.random() < 0.7))
    patch *= np.float32(log_uniform(rng, 0.8, 2.5))
    seam = continued(image - patch, (coverage == 0).astype(np.float32))
    return blend(image, patch + seam, coverage)
