"""The table of all families of planted defects, and the one function that training loops call."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ssad_ray.core.synthesis.blob import blob
from ssad_ray.core.synthesis.canvas import Image, Planted, Site
from ssad_ray.core.synthesis.cutpaste import cutpaste
from ssad_ray.core.synthesis.deform import deform
from ssad_ray.core.synthesis.missing import missing
from ssad_ray.core.synthesis.perlin import perlin
from ssad_ray.core.synthesis.poisson import poisson
from ssad_ray.core.synthesis.scar import scar
from ssad_ray.errors import ConfigError


class Plant(Protocol):
    """A pure function of image and random stream; the mask holds the pixels that visibly changed."""

    def __call__(self, image: Image, rng: np.random.Generator, site: Site = ..., /) -> Planted:
        """Return the planted (H, W, 3) image, a new array, and its (H, W) mask; the mask may be empty."""
        ...


FAMILIES: dict[str, Plant] = {
    "blob": blob,
    "cutpaste": cutpaste,
    "deform": deform,
    "missing": missing,
    "perlin": perlin,
    "poisson": poisson,
    "scar": scar,
}

MAX_TRIES = 12
SMALLEST_PLANT_PX = 10


def plant(
    image: Image,
    rng: np.random.Generator,
    families: Sequence[str],
    other: Image | None = None,
) -> Planted:
    """Plant one visible defect of a randomly drawn family.

    Args:
        image: (H, W, 3) uint8, or on top of its template (H, W, 6), which stays as it is; not modified.
        rng: The stream that everything is drawn from.
        families: Names of `FAMILIES` to draw from; keep some back to judge with.
        other: Another anomaly-free image, of any size, as a source of texture; with or without a template.

    Returns:
        The planted image, and the mask of what visibly changed: at least `SMALLEST_PLANT_PX` pixels, or none at all
        in the rare case that nothing visible came of `MAX_TRIES` tries; the image is then the given one.

    Raises:
        ConfigError: No family, or one that does not exist.
    """
    if not families or not FAMILIES.keys() >= set(families):
        raise ConfigError(f"planted defects come from the families {', '.join(FAMILIES)}; got {list(families)}")
    picture, template = image[..., :3], image[..., 3:]
    site = Site(None if other is None else other[..., :3])
    for _ in range(MAX_TRIES):
        planted, mask = FAMILIES[families[int(rng.integers(len(families)))]](picture, rng, site)
        if np.count_nonzero(mask) >= SMALLEST_PLANT_PX:
            return np.concatenate([planted, template], axis=2), mask
    return image.copy(), np.zeros(image.shape[:2], np.bool_)
