"""Pictures for people: thumbnails, coloured anomaly maps, outlines of masks."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssad_ray.core.masks import polygons
from ssad_ray.core.records import Calibration

THUMBNAIL_HEIGHT_PX, THUMBNAIL_WIDTH_PX = 256, 320
_JPEG_QUALITY = 82


def thumbnail_shape(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) at which an image fits a thumbnail; small images are not enlarged."""
    scale = min(1.0, THUMBNAIL_HEIGHT_PX / height, THUMBNAIL_WIDTH_PX / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def colour_map(anomaly_map: NDArray[np.float32], calibration: Calibration) -> NDArray[np.uint8]:
    """Colour an anomaly map (H, W) on a scale that is the same for all images of a model.

    Black is the median of normal images, the middle of the scale the high pixel threshold, and pale yellow lies as far
    above that threshold as it lies above the median.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    reach = 2.0 * (calibration.pixel_threshold_high - calibration.map_location)
    span = max(reach, calibration.map_scale)
    level = np.clip((anomaly_map - calibration.map_location) / span, 0.0, 1.0)
    return colour_levels(level)


def colour_levels(levels: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour levels (H, W) in [0, 1] from black over purple and orange to pale yellow; (H, W, 3) uint8 RGB."""
    coloured = cv2.applyColorMap(np.rint(levels * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(coloured[:, :, ::-1]).astype(np.uint8, copy=False)


def outline(mask: NDArray[np.bool_], height: int, width: int) -> str:
    """Return the outlines of a mask as SVG path data in a frame of another size; empty for an empty mask.

    Holes are rings too: fill the path by the even-odd rule.
    """
    # Any set pixel sets the pixel that it falls on, so that no defect is too small to be seen.
    y, x = np.nonzero(mask)
    small = np.zeros((height, width), np.bool_)
    small[y * height // mask.shape[0], x * width // mask.shape[1]] = True
    rings = [ring for shape in polygons(small) for ring in (shape.outline, *shape.holes)]
    return "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in ring) + "Z" for ring in rings)


def to_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Return an (H, W, 3) RGB picture as a JPEG that is good enough to look at."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
