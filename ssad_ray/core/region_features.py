"""What a defect region looks like, as a few numbers: its shape, how it differs from what surrounds it, and, where the
image lies on a template, how it differs from that.

Nothing here is learnt, so that regions of any model can be compared; docs/decisions/0017-label-propagation.md says
what learnt features were compared with.

Shapes: H W of an image, C its channels (6 with a template), h w of the cut around a region, P pixels of a region.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.masks import decode_mask, mask_box
from ssad_ray.core.records import RunLengthMask
from ssad_ray.core.warp import Floats

_GAP_PX = 2  # between a region and its surroundings: outlines are not exact
_LEAST_RING_PX = 4
_RING = 0.5  # width of the surroundings, of the side of a square of the region's area
_NEAR_PX = 4

Mask = NDArray[np.bool_]


def describe(image: NDArray[np.uint8], region: RunLengthMask) -> Floats:
    """Return the features of a region, float32: 15 of an image, 21 of an image on top of its template.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W, 6) with the registered template.
        region: Its pixels, at least one, in the frame of the image.
    """
    x0, y0, x1, y1 = mask_box(region)
    ring_px = max(_LEAST_RING_PX, round(_RING * ((x1 - x0) * (y1 - y0)) ** 0.5))
    margin = _GAP_PX + ring_px
    box = max(0, x0 - margin), max(0, y0 - margin), min(region.width, x1 + margin), min(region.height, y1 + margin)
    mask = decode_mask(region, box)
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 5)
    around = (distance > _GAP_PX) & (distance <= margin)
    cut = image[box[1] : box[3], box[0] : box[2]].astype(np.float32)
    features = [
        *_shape(mask, region.height * region.width),
        *_contrast(cut[..., :3], mask, around if around.any() else mask),
        *(_difference(cut, mask, distance <= _NEAR_PX) if image.shape[2] > 3 else ()),
    ]
    return np.array(features, np.float32)


def _shape(mask: Mask, image_px: int) -> list[float]:
    """Return size, elongation, and how full and how round a region is."""
    y, x = np.nonzero(mask)
    # A pixel is a square, not a point: its own variance is 1/12.
    covariance = np.cov(np.stack([x, y]), bias=True) + np.eye(2) / 12
    short, long = np.sqrt(12 * np.linalg.eigvalsh(covariance))
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(outlines))
    # A contour runs through the centres of pixels, half a pixel inside of their edges.
    hull_px = cv2.contourArea(hull) + cv2.arcLength(hull, closed=True) / 2 + 1
    outline_px = sum(cv2.arcLength(each, closed=True) for each in outlines) + 1
    side = image_px**0.5
    logarithms = np.log([y.size / image_px, long / short, outline_px**2 / y.size, long / side, short / side])
    return [*logarithms.tolist(), y.size / hull_px]


def _contrast(cut: Floats, mask: Mask, around: Mask) -> list[float]:
    """Return how a region differs from its surroundings in colour, in spread and in edges."""
    grey = cut.mean(axis=2)
    inside, outside = grey[mask], grey[around]
    slope_x, slope_y = (cv2.Sobel(grey, cv2.CV_32F, *order) / 4 for order in ((1, 0), (0, 1)))
    slope, curvature = (
        np.hypot(slope_x, slope_y),
        np.abs(cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.0), cv2.CV_32F)),
    )
    pairs = [(inside.std(), outside.std()), *((each[mask].mean(), each[around].mean()) for each in (slope, curvature))]
    direction = np.log((np.square(slope_x[mask]).mean() + 1) / (np.square(slope_y[mask]).mean() + 1))
    return [
        *(cut[mask].mean(axis=0) - cut[around].mean(axis=0)).tolist(),
        float(inside.min() - outside.mean()),
        float(inside.max() - outside.mean()),
        *(float(np.log1p(one) - np.log1p(other)) for one, other in pairs),
        float(direction),
    ]


def _difference(cut: Floats, mask: Mask, near: Mask) -> list[float]:
    """Return how a region differs from its template, and what the two show at it and near it."""
    seen, wanted = cut[..., :3].mean(axis=2), cut[..., 3:].mean(axis=2)
    nearby = [float(value) for each in (wanted[near], seen[near]) for value in (each.mean(), each.std())]
    return [float((seen - wanted)[mask].mean()), float(wanted[mask].mean()), *nearby]
