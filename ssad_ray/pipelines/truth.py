"""True masks, for reports alone: a broken one is as good as none."""

import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.images import decode_mask
from ssad_ray.core.storage import read_bytes
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import DataError


def true_mask(row: ManifestRow, height: int, width: int, max_bytes: int) -> NDArray[np.bool_] | None:
    """Read an image's mask, (height, width) bool; None where there is none of this size that can be read."""
    if row.mask_uri is None:
        return None
    try:
        return decode_mask(read_bytes(row.mask_uri, max_bytes), height, width)
    except DataError:
        return None
