"""Opening one image and its ground truth, and saying what is wrong with them."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import DataConfig
from ssad_ray.core import images, storage
from ssad_ray.core.records import DIGEST_DIGITS, GOOD, TrueBox
from ssad_ray.datasets.duplicates import thumbnail
from ssad_ray.datasets.entries import Entry
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import DataError, UnavailableError

_NO_DIGEST = "0" * DIGEST_DIGITS
_ENOUGH_BITS = 6


def inspect(root_uri: str, entry: Entry, config: DataConfig) -> tuple[ManifestRow, NDArray[np.float32] | None]:
    """Return the manifest row of an image, and its thumbnail where the image can be used.

    The image is decoded whole, as nothing less shows that it is; its mask and template are decoded too.
    """
    uri = storage.join(root_uri, entry.path)
    facts: dict[str, Any] = {}
    print_of_image = None
    error = entry.error
    try:
        data = storage.read_bytes(uri, config.max_image_bytes)
        facts |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        info = images.probe(data)
        facts |= {name: getattr(info, name) for name in ("height", "width", "channels", "bit_depth")}
        depth_warning, seen = _look(images.decode(data, config.max_image_px), info.bit_depth)
        facts |= _ground_truth(root_uri, entry, info.height, info.width, config)
        facts["warning"] = "; ".join(filter(None, (facts["warning"], depth_warning))) or None
        print_of_image = seen if error is None else None
    except (DataError, UnavailableError) as refusal:
        error = error or refusal.detail
    sample_id = f"{entry.path}@{facts.get('sha256', _NO_DIGEST)[:DIGEST_DIGITS]}"
    row = ManifestRow(
        sample_id=sample_id,
        uri=uri,
        category=entry.category,
        group=entry.group or sample_id,
        defect_type=entry.defect_type,
        source_stage=entry.source_stage,
        error=error,
        **facts,
    )
    return row, print_of_image


def _ground_truth(root_uri: str, entry: Entry, height: int, width: int, config: DataConfig) -> dict[str, Any]:
    """Return the checked fields `mask_uri`, `boxes`, `template_uri` and `warning`.

    Raises:
        DataError: The ground truth contradicts the image.
    """
    if entry.size not in (None, (height, width)):
        raise DataError(f"{height}x{width} (HxW) pixels, but its annotation says {entry.size}; the boxes would be off")
    mask_uri, mask_warning = _check_mask(root_uri, entry, height, width, config)
    boxes, boxes_warning = clip_boxes(entry.boxes, height, width)
    template_uri, template_warning = _check_template(root_uri, entry, config)
    warnings = filter(None, (entry.warning, mask_warning, boxes_warning, template_warning))
    return {
        "mask_uri": mask_uri,
        "boxes": boxes,
        "template_uri": template_uri,
        "warning": "; ".join(warnings) or None,
    }


def _look(image: NDArray[np.uint8], bit_depth: int) -> tuple[str | None, NDArray[np.float32]]:
    """Return the warning of `_check_depth` and the thumbnail; the image is held no longer than that takes."""
    return _check_depth(image, bit_depth), thumbnail(image)


def _check_depth(image: NDArray[np.uint8], bit_depth: int) -> str | None:
    """Return a warning where a file has more than 8 bits and its picture lies in the lower ones."""
    if bit_depth <= 8 or (num_bits := int(image.max()).bit_length()) > _ENOUGH_BITS:
        return None
    return (
        f"of the 8 highest bits of the file's {bit_depth} only {num_bits} are used, the rest is lost: write all images "
        "with the bits of the camera at the top"
    )


def _check_mask(
    root_uri: str, entry: Entry, height: int, width: int, config: DataConfig
) -> tuple[str | None, str | None]:
    """Return the address of the mask, if it says something, and a warning if it should but does not."""
    if entry.mask is None:
        return None, None
    uri = storage.join(root_uri, entry.mask)
    try:
        mask = images.decode_mask(storage.read_bytes(uri, config.max_image_bytes), height, width)
    except DataError as error:
        raise DataError(f"its mask {entry.mask}: {error.detail}") from error
    if entry.defect_type == GOOD and mask.any():
        raise DataError(f"labelled good, but its mask {entry.mask} marks {mask.sum()} pixels as defective")
    if entry.defect_type not in (GOOD, None) and not mask.any():
        return None, f"labelled {entry.defect_type}, but its mask {entry.mask} has no pixel above 127: mask not used"
    return uri, None


def clip_boxes(boxes: Sequence[TrueBox], height: int, width: int) -> tuple[tuple[TrueBox, ...], str | None]:
    """Return the boxes cut to the image, without those that have no area in it, and a count of both as a warning.

    Raises:
        DataError: There are boxes, but none with an area inside the image.
    """
    kept, num_cut = [], 0
    for box in boxes:
        x0, y0, x1, y1 = box.box
        cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        # Comparisons with a NaN are false, so a box with one is dropped as well.
        if all(map(math.isfinite, box.box)) and cut[0] < cut[2] and cut[1] < cut[3]:
            kept.append(TrueBox(cut, box.defect_type))
            num_cut += cut != box.box
    num_dropped = len(boxes) - len(kept)
    if boxes and not kept:
        raise DataError(f"none of its {len(boxes)} boxes has an area inside the {height}x{width} (HxW) image")
    counts = ((num_cut, "boxes cut to the image"), (num_dropped, "boxes without area in the image dropped"))
    return tuple(kept), "; ".join(f"{count} {text}" for count, text in counts if count) or None


def _check_template(root_uri: str, entry: Entry, config: DataConfig) -> tuple[str | None, str | None]:
    """Return the address of the template if it can be decoded, else a warning."""
    if entry.template is None:
        return None, None
    uri = storage.join(root_uri, entry.template)
    try:
        images.decode(storage.read_bytes(uri, config.max_image_bytes), config.max_image_px)
    except DataError as error:
        return None, f"its template {entry.template} is not used: {error.detail}"
    return uri, None
