"""Carry a mask from a reference image to another image of the same product, and check that it came through.

The reference is registered to the image and its mask laid over it; what registration leaves over is followed by an
affinity between neighbourhoods, after Sli2Vol (Yeung, Namburete, Xie, MICCAI 2021). Different from the paper: nothing
is trained, an affinity moves the outline by as much as it differs from the affinity of the reference with itself, and a
mask is never carried on from where it was carried to.

Shapes: H W of an image, h w of it at the working scale, N pixels near the outline, K = 48 neighbours of a pixel.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.images import resize
from ssad_ray.core.registration import MIN_CORRELATION, Registered, register
from ssad_ray.core.warp import Floats, Image, sample
from ssad_ray.errors import DataError

MIN_CYCLE_IOU = 0.8
"""A mask that is carried to the image and back again overlaps itself by as much, or it is refused."""

_WORKING_PX = 256
_REACH_PX = 6  # of the working scale; the window of Sli2Vol has 13 pixels a side
_NEAR_PX = 3.0  # standard deviation of how far a place is expected to have moved
_NEIGHBOUR_PX = 3
_GREY_LEVELS = 16.0
_ALIKE = 0.04  # squared distance of two profiles of unit length at which an affinity has fallen to 1 / e
_THUMBNAIL_PX = 32

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Propagated:
    """A mask that was carried to an image.

    Attributes:
        mask: (H, W) bool in the image's frame.
        correlation: How well image and reference agree, as `Registered` says.
        cycle_iou: Intersection over union of the reference's mask and what comes back of it.
    """

    mask: Mask
    correlation: float
    cycle_iou: float


def propagate(reference: Image, mask: Mask, image: Image) -> Propagated:
    """Carry a mask from a reference to an image, and back again.

    Args:
        reference: (h, w, 3) uint8 RGB, of any size.
        mask: (h, w) bool.
        image: (H, W, 3) uint8 RGB.

    Raises:
        DataError: The image shows something else, the mask does not lie on it, or does not come back as it was.
    """
    there = register(reference, image)
    if there.correlation < MIN_CORRELATION:
        raise DataError(
            f"it shows something else than its reference: they correlate by {there.correlation:.2f}, needed are "
            f"{MIN_CORRELATION}; draw a mask for an image that is more like this one, or for this one itself"
        )
    carried = carry(mask, there, image)
    if not carried.any():
        raise DataError("the mask lies beside this image; draw one for an image that shows the same place")
    cycle_iou = overlap(carry(carried, register(image, reference), reference), mask)
    if cycle_iou < MIN_CYCLE_IOU:
        raise DataError(
            f"carried here and back again the mask overlaps itself by {cycle_iou:.2f} (intersection over union), "
            f"needed are {MIN_CYCLE_IOU}; draw a mask for this image or for one that is more like it"
        )
    return Propagated(carried, there.correlation, cycle_iou)


def carry(mask: Mask, registered: Registered, image: Image) -> Mask:
    """Lay a mask over an image as its registered reference lies, and let its outline follow the image.

    Where the reference ends, the mask goes on as at its edge.

    Args:
        mask: (h, w) bool, of the reference.
        registered: The reference in the frame of the image.
        image: (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    share, laid = mask.astype(np.float32), np.empty((height, width), np.bool_)
    for block, places in registered.warp.parts(height, width):
        block.of(laid)[:] = sample(share, places) > 0.5
    if laid.all() or not laid.any():
        return laid
    scale = min(1.0, _WORKING_PX / max(height, width))
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    reference, seen = (resize(each, *shape) for each in (registered.template, image))
    share, covered = (resize(each.astype(np.float32), *shape) for each in (laid, registered.is_covered))
    moved = _moved(reference, seen, _depth(share > 0.5), covered == 1.0)
    return np.asarray(_depth(laid) + resize(moved, height, width) / scale > 0, np.bool_)


def overlap(one: Mask, other: Mask) -> float:
    """Return the intersection over union of two masks of one frame; 1 where both are empty."""
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 1.0


def thumbnail_spectrum(image: Image) -> NDArray[np.complex128]:
    """Return what `likeness` compares: the spectrum of a small grey picture of mean 0 and length 1."""
    grey = resize(image, _THUMBNAIL_PX, _THUMBNAIL_PX).mean(axis=2)
    grey -= grey.mean()
    return np.asarray(np.fft.rfft2(grey / max(float(np.linalg.norm(grey)), 1e-9)))


def likeness(one: NDArray[np.complex128], other: NDArray[np.complex128]) -> float:
    """Return how alike two pictures are at a glance, in [-1, 1]: their correlation under the best shift."""
    return float(np.fft.irfft2(np.conj(one) * other, (_THUMBNAIL_PX, _THUMBNAIL_PX)).max())


def _depth(mask: Mask) -> Floats:
    """Return how far pixels lie inside a mask, in pixels, negative outside; an average of it keeps straight edges."""
    inside = mask.view(np.uint8)
    return np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5))


def _moved(laid: Image, image: Image, depth_hw: Floats, is_covered_hw: Mask) -> Floats:
    """Return how far the outline moves outwards, (h, w) in pixels; 0 away from it.

    A pixel's depth is the average of its window in the laid reference, weighted by affinity (Sli2Vol, eq. 2). The same
    average around the pixel's own place in the reference is subtracted: it is what windows do to corners.
    """
    rows, columns = np.nonzero(np.abs(depth_hw) < _REACH_PX)
    profiles = _profiles(laid)
    depth = np.clip(depth_hw, -2 * _REACH_PX, 2 * _REACH_PX)
    sums = np.zeros((2, 2, rows.size), np.float32)  # of the image and of the reference: weighted depths, weights
    seen = _profiles(image)[rows, columns], profiles[rows, columns]
    for down in range(-_REACH_PX, _REACH_PX + 1):
        for right in range(-_REACH_PX, _REACH_PX + 1):
            y, x = rows + down, columns + right
            is_there = (y >= 0) & (y < depth.shape[0]) & (x >= 0) & (x < depth.shape[1])
            y, x = y * is_there, x * is_there
            is_there &= is_covered_hw[y, x]
            nearness = np.float32(np.exp(-(down**2 + right**2) / (2 * _NEAR_PX**2)))
            for total, profiles_NK in zip(sums, seen, strict=True):
                apart = np.square(profiles_NK - profiles[y, x]).sum(axis=1)
                weight = np.exp(-apart / _ALIKE) * nearness * is_there
                total += weight * depth[y, x], weight
    moved = np.zeros((*depth.shape, 2), np.float32)
    found, usual = sums[:, 1]
    is_known = (found > 0) & (usual > 0)
    new, old = sums[:, 0] / np.where(is_known, sums[:, 1], 1.0)
    # What looks like nothing in the reference, a defect, says nothing about where the outline is.
    trust = np.where(is_known, np.minimum(found / np.maximum(usual, 1e-9), 1.0), 0.0)
    moved[rows, columns] = np.stack([trust * (new - old), np.ones_like(trust)], axis=1)
    blurred = cv2.GaussianBlur(moved, (0, 0), _NEAR_PX)
    return np.asarray(blurred[..., 0] / np.maximum(blurred[..., 1], 1e-6) * moved[..., 1])


def _profiles(image: Image) -> Floats:
    """Return every pixel's edge profile (h, w, K), of length 1: softmax of its neighbours' differences from it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / _GREY_LEVELS
    height, width = grey.shape
    side = 2 * _NEIGHBOUR_PX + 1
    padded = cv2.copyMakeBorder(grey, *(_NEIGHBOUR_PX,) * 4, cv2.BORDER_REPLICATE)
    places = (divmod(place, side) for place in range(side**2) if place != side**2 // 2)
    differences = np.stack([padded[y : y + height, x : x + width] - grey for y, x in places], axis=2)
    # A softmax that is brought to length 1 need not be brought to a sum of 1 before.
    profiles = np.exp(differences - differences.max(axis=2, keepdims=True))
    return np.asarray(profiles / np.linalg.norm(profiles, axis=2, keepdims=True))
