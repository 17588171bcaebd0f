"""Object-level metrics: COCO average precision and the score of the two Tianchi contests.

Boxes are half-open `(x0, y0, x1, y1)`. Both contests count inclusive pixel boxes, one pixel added to every width and
height; `(x0, y0, x1 + 1, y1 + 1)` is the same box here and has the same overlaps, so no rule of its own is needed.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.records import DefectRegion, TrueBox
from ssad_ray.errors import DataError

LOOSE_THRESHOLDS = np.array([0.1, 0.3])
COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
TIANCHI_THRESHOLDS = np.array([0.1, 0.3, 0.5])
LEAST_IOU = 0.1
"""Overlap from which on a region and a true box are about the same defect, wherever their middles are."""

_RECALL_GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class ImageBoxes:
    """True and detected boxes of one image; both may be empty.

    Attributes:
        true_boxes: (G, 4) boxes.
        boxes: (D, 4) detections.
        scores: (D,) raw scores, higher is surer.
        true_types: G defect types; only the class-aware Tianchi score reads them.
        types: D defect types, empty where unknown; likewise.
    """

    true_boxes: NDArray[np.float64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    true_types: Sequence[str] = field(default=())
    types: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class CocoPrecision:
    """`map_10`, `map_30`, `map_50`: average precision at IoU 0.1, 0.3, 0.5; `map`: its mean over 0.50, 0.55, … 0.95."""

    map_10: float
    map_30: float
    map_50: float
    map: float


@dataclass(frozen=True, slots=True)
class BoxHits:
    """What regions find, without regard to how well they fit; those of several images add up.

    Attributes:
        num_true: True boxes.
        num_found: Those that some region is in: the middle of its box lies in the true one, or the two overlap by an
            IoU of at least `LEAST_IOU`.
        num_regions: Regions.
        num_outside: Those that are in no true box.
    """

    num_true: int = 0
    num_found: int = 0
    num_regions: int = 0
    num_outside: int = 0

    def __add__(self, other: "BoxHits") -> "BoxHits":
        return BoxHits(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def box_hits(image: ImageBoxes) -> BoxHits:
    """Count what the detections of an image find."""
    middles = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2
    low, high = image.true_boxes[:, :2], image.true_boxes[:, 2:]
    is_inside_DG = ((low <= middles[:, None]) & (middles[:, None] <= high)).all(axis=2)
    is_in_DG = is_inside_DG | (box_iou(image.boxes, image.true_boxes) >= LEAST_IOU)
    num_regions, num_true = is_in_DG.shape
    num_found, num_hitting = (int(is_in_DG.any(axis=axis).sum()) for axis in (0, 1))
    return BoxHits(num_true, num_found, num_regions, num_regions - num_hitting)


def image_boxes(true_boxes: Sequence[TrueBox], regions: Sequence[DefectRegion]) -> ImageBoxes:
    """Return true boxes and regions as arrays."""
    return ImageBoxes(
        np.array([true.box for true in true_boxes], np.float64).reshape(-1, 4),
        np.array([region.box for region in regions], np.float64).reshape(-1, 4),
        np.array([region.score for region in regions], np.float64),
        [true.defect_type for true in true_boxes],
        [region.defect_type or "" for region in regions],
    )


def coco_precision(images: Sequence[ImageBoxes]) -> CocoPrecision | None:
    """Compute class-agnostic COCO average precision (101 recall points, all areas); None without any true box.

    COCO's own tool looks at the 100 best detections of an image only, which cuts off images with many defects; here
    every detection counts. Equal scores rank in the order of the images. IoU 0.1 and 0.3 are not COCO's: boxes drawn by
    hand round small defects are often several times as large, and an outline that fits the defect then fits no box.
    """
    hits = _ranked_hits(images, np.append(LOOSE_THRESHOLDS, COCO_THRESHOLDS), second_choice=True)
    num_true = sum(len(image.true_boxes) for image in images)
    if not num_true:
        return None
    precisions = []
    for recall, precision in zip(*_recall_and_envelope(hits, num_true), strict=True):
        reached = np.searchsorted(recall, _RECALL_GRID, side="left")
        precisions.append(np.append(precision, 0.0)[reached].mean())
    at_10, at_30, *of_coco = map(float, precisions)
    return CocoPrecision(map_10=at_10, map_30=at_30, map_50=of_coco[0], map=float(np.mean(of_coco)))


def tianchi_score(images: Sequence[ImageBoxes], *, class_agnostic: bool = False) -> float | None:
    """Compute 0.2 × accuracy + 0.8 × mean average precision, as the Tianchi tile and fabric contests do.

    Accuracy is at image level: an image counts as called defective as soon as it has one detection, and as defective
    when it has a true box. Average precision takes every point of the precision-recall curve (VOC), at IoU 0.1, 0.3
    and 0.5; a detection is compared with the one true box it overlaps most, and is false when that one is taken.
    The mean is over the classes that have true boxes. None without any true box.

    Raises:
        DataError: Types count, and a box has none.
    """
    classes = [images] if class_agnostic else _by_type(images)
    precisions = [_voc_precision(group) for group in classes if any(len(image.true_boxes) for image in group)]
    if not precisions:
        return None
    accuracy = np.mean([bool(len(image.boxes)) == bool(len(image.true_boxes)) for image in images])
    return float(0.2 * accuracy + 0.8 * np.mean(precisions))


def box_iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (N, M) overlaps of (N, 4) with (M, 4) boxes of positive area."""
    corner_low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    corner_high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(corner_high - corner_low, 0.0, None).prod(axis=2)
    union = _areas(boxes)[:, None] + _areas(others)[None, :] - common
    return np.asarray(common / union)


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _by_type(images: Sequence[ImageBoxes]) -> list[list[ImageBoxes]]:
    """One list of images for each defect type that has true boxes."""
    for image in images:
        if (len(image.true_types), len(image.types)) != (len(image.true_boxes), len(image.boxes)):
            raise DataError(
                f"{len(image.true_boxes)} true and {len(image.boxes)} found boxes came with {len(image.true_types)} "
                f"and {len(image.types)} defect types; each box needs one, unless the score is class-agnostic"
            )
    return [
        [_only(image, defect_type) for image in images]
        for defect_type in sorted({name for image in images for name in image.true_types})
    ]


def _only(image: ImageBoxes, defect_type: str) -> ImageBoxes:
    true = np.array([name == defect_type for name in image.true_types], bool)
    kept = np.array([name == defect_type for name in image.types], bool)
    return ImageBoxes(image.true_boxes[true], image.boxes[kept], image.scores[kept])


def _voc_precision(images: Sequence[ImageBoxes]) -> float:
    """Average precision over every point of the curve, mean over the Tianchi thresholds."""
    hits = _ranked_hits(images, TIANCHI_THRESHOLDS, second_choice=False)
    recall, precision = _recall_and_envelope(hits, sum(len(image.true_boxes) for image in images))
    return float((np.diff(recall, axis=1, prepend=0.0) * precision).sum(axis=1).mean())


def _ranked_hits(
    images: Sequence[ImageBoxes], thresholds: NDArray[np.float64], *, second_choice: bool
) -> NDArray[np.bool_]:
    """Return for each threshold and detection, best score first, whether it finds a true box: (T, D)."""
    empty: NDArray[Any] = np.zeros((len(thresholds), 0), bool)
    hits, scores = [empty], [np.zeros(0)]
    for image in images:
        order = np.argsort(-image.scores, kind="stable")
        # Of true boxes that are overlapped equally COCO's code takes the last, VOC's the first.
        true_boxes = image.true_boxes[::-1] if second_choice else image.true_boxes
        hits.append(_match(box_iou(image.boxes[order], true_boxes), thresholds, second_choice=second_choice))
        scores.append(image.scores[order])
    return np.concatenate(hits, axis=1)[:, np.argsort(-np.concatenate(scores), kind="stable")]


def _match(iou_DG: NDArray[np.float64], thresholds: NDArray[np.float64], *, second_choice: bool) -> NDArray[np.bool_]:
    """Give each true box to the first detection that claims it: (T, D).

    With `second_choice` a detection claims the box it overlaps most among those still free, else among all.
    """
    num_detections, num_true = iou_DG.shape
    rows = np.arange(len(thresholds))
    taken_TG = np.zeros((len(thresholds), num_true), bool)
    hits_TD = np.zeros((len(thresholds), num_detections), bool)
    if not num_true:
        return hits_TD
    for detection, iou_G in enumerate(iou_DG):
        claimed = np.where(taken_TG & second_choice, -1.0, iou_G).argmax(axis=1)
        hit = (iou_G[claimed] >= thresholds) & ~taken_TG[rows, claimed]
        taken_TG[rows[hit], claimed[hit]] = True
        hits_TD[:, detection] = hit
    return hits_TD


def _recall_and_envelope(hits_TD: NDArray[np.bool_], num_true: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall after each detection, and the best precision at this or any higher recall."""
    found = np.cumsum(hits_TD, axis=1)
    precision = found / np.arange(1, hits_TD.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return found / num_true, envelope
