"""What a method is shown of an image: the image, or the image on top of its registered template."""

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import DataConfig
from ssad_ray.core.images import decode
from ssad_ray.core.records import Sample
from ssad_ray.core.registration import MIN_CORRELATION, register
from ssad_ray.core.rng import generator
from ssad_ray.core.storage import read_bytes
from ssad_ray.errors import DataError
from ssad_ray.methods.template_pairs import photographed_pair


def with_template(image: NDArray[np.uint8], sample: Sample, limits: DataConfig) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) and its template, laid over it, as (H, W, 6).

    A template that comes as an image of its own is shown as if photographed once more, always in the same way: it would
    lie on itself without any difference, and what is learnt from that would call every true image anomalous.

    Raises:
        DataError: There is no template, it cannot be read, or it shows something else.
    """
    if sample.template_uri is None:
        raise DataError("it has no template, and the model compares with one; name it, or take another detector")
    if sample.template_uri == sample.uri:
        return photographed_pair(image, generator(0, "taken", sample.sample_id))
    try:
        template = decode(read_bytes(sample.template_uri, limits.max_image_bytes), limits.max_image_px)
    except DataError as error:
        raise DataError(f"its template {sample.template_uri} cannot be used: {error.detail}") from error
    registered = register(template, image)
    if registered.correlation < MIN_CORRELATION:
        raise DataError(
            f"its template {sample.template_uri} shows something else: they correlate by {registered.correlation:.2f}, "
            f"needed are {MIN_CORRELATION}; name the template of this pattern"
        )
    return np.concatenate([image, registered.template], axis=2)
