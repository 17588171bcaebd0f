"""CutPaste's local edits of a crop, and the soft label that says how much of an edit shows.

Unlike the families of planted defects these are the published transformations, on crops as small as a patch, and they
return what was pasted, seen or not. Sources: Li et al., CutPaste, CVPR 2021 (geometry); Hu, Wang, "An Anomaly Detection
Method Based on Self-Supervised Learning with Soft Label Assignment for Defect Visual Inspection" (labels).
"""

from collections.abc import Callable

import cv2
import numpy as np

from ssad_ray.core.synthesis.canvas import Image, Mask, is_grey
from ssad_ray.core.synthesis.textures import colour_jitter

Edited = tuple[Image, Mask]
"""The edited (H, W, 3) crop, and the (H, W) mask of what was pasted."""

AREA = 0.02, 0.15
"""Shares of the crop."""
STANDING, LYING = (1.0, 3.3), (0.3, 1.0)
"""Ratios of height to width."""
SCAR_WIDTH_PX, SCAR_HEIGHT_PX = (2, 16), (10, 25)
SCAR_TURN = np.pi / 4
COLOUR_JITTER = 0.1
EPSILON = 0.02
"""Change of a pixel, summed over the channels in [0, 1], above which it counts as changed (equation 6)."""

_SCAR_CROP_PX = 32  # a smaller crop has no room for the longest scar at its steepest, so there scars shrink with it


def cutout(image: Image, rng: np.random.Generator) -> Edited:
    """Fill a rectangle of CutPaste's sizes with the mean colour of the image; the paper leaves size and colour open."""
    height, width = _rectangle(image, rng)
    top, left = _corner(image, height, width, rng)
    edited, pasted = image.copy(), np.zeros(image.shape[:2], np.bool_)
    pasted[top : top + height, left : left + width] = True
    edited[pasted] = np.rint(cv2.mean(image)[:3])
    return edited, pasted


def cutpaste(image: Image, rng: np.random.Generator) -> Edited:
    """Copy a rectangle to another place, its colours slightly changed."""
    return _paste(image, *_rectangle(image, rng), 0.0, rng)


def scar(image: Image, rng: np.random.Generator) -> Edited:
    """Copy a narrow rectangle, turned, to another place, its colours slightly changed."""
    scale = min(1.0, min(image.shape[:2]) / _SCAR_CROP_PX)
    height, width = (
        max(1, round(scale * int(rng.integers(low, high, endpoint=True))))
        for low, high in (SCAR_HEIGHT_PX, SCAR_WIDTH_PX)
    )
    return _paste(image, height, width, rng.uniform(-SCAR_TURN, SCAR_TURN), rng)


EDITS: dict[str, Callable[[Image, np.random.Generator], Edited]] = {
    "cutout": cutout,
    "cutpaste": cutpaste,
    "scar": scar,
}
"""Pure functions of image and random stream."""


def changed_share(before: Image, after: Image, pasted: Mask) -> float:
    """Return the share in [0, 1] of the pasted pixels that changed by more than `EPSILON` (equations 6 to 8).

    The paper divides by the area of the destination, which for a turned scar would mostly be its box's empty corners;
    here it is by the pixels that were pasted.
    """
    change = np.abs(after.astype(np.int16) - before).sum(axis=2)
    return float(np.mean(change[pasted] > 255 * EPSILON))


def soft_label(share: float, alpha: float) -> float:
    """Return how anomalous an edit counts as, in [0, 1): 2 / (1 + exp(-alpha share)) - 1 (equation 9)."""
    return float(np.tanh(alpha * share / 2))


def _rectangle(image: Image, rng: np.random.Generator) -> tuple[int, int]:
    """Draw height and width, px; standing and lying are equally likely."""
    height, width = image.shape[:2]
    area = height * width * rng.uniform(*AREA)
    aspect = rng.uniform(*(STANDING if rng.random() < 0.5 else LYING))
    return (
        min(height, max(1, round(np.sqrt(area * aspect)))),
        min(width, max(1, round(np.sqrt(area / aspect)))),
    )


def _corner(image: Image, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw where a box of this size lies in the image."""
    return int(rng.integers(image.shape[0] - height + 1)), int(rng.integers(image.shape[1] - width + 1))


def _paste(image: Image, height: int, width: int, turn: float, rng: np.random.Generator) -> Edited:
    """Copy a box of `height` x `width` px, turned by `turn` radians, to where it lies inside the image as a whole."""
    cos, sin = np.cos(turn), np.sin(turn)
    high = int(np.ceil(height * cos + width * abs(sin)))
    wide = int(np.ceil(width * cos + height * abs(sin)))
    source, (top, left) = _corner(image, height, width, rng), _corner(image, high, wide, rng)
    y, x = np.ogrid[:high, :wide]
    y, x = y - (high - 1) / 2, x - (wide - 1) / 2
    down, right = cos * y - sin * x, sin * y + cos * x
    is_inside = (np.abs(down) <= height / 2) & (np.abs(right) <= width / 2)
    from_y = (down + source[0] + (height - 1) / 2).astype(np.float32)
    from_x = (right + source[1] + (width - 1) / 2).astype(np.float32)
    patch = cv2.remap(image, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    edited, pasted = image.copy(), np.zeros(image.shape[:2], np.bool_)
    window = np.s_[top : top + high, left : left + wide]
    pasted[window] = is_inside
    edited[window][is_inside] = _jittered(np.asarray(patch, np.uint8), rng)[is_inside]
    return edited, pasted


def _jittered(patch: Image, rng: np.random.Generator) -> Image:
    """Change the colours of a patch; a grey one stays grey, or its tint would give it away."""
    jittered = colour_jitter(patch.astype(np.float32), COLOUR_JITTER, rng)
    if is_grey(patch):
        jittered[:] = jittered.mean(axis=2, keepdims=True)
    return np.rint(jittered).astype(np.uint8)
