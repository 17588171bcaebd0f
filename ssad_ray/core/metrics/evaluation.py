"""From judged images, one by one, to an evaluation report.

Any order of the images, and any split into parts that are merged afterwards, gives the same report: bit for bit with
streamed pixel metrics, up to rounding with exact ones.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.metrics.intervals import bootstrap_mean
from ssad_ray.core.metrics.objects import (
    CocoPrecision,
    ImageBoxes,
    box_hits,
    coco_precision,
    image_boxes,
    tianchi_score,
)
from ssad_ray.core.metrics.pixel import Overlap, PixelAccumulator, PixelHistogram, PixelScores, overlap
from ssad_ray.core.metrics.ranking import Ranking, rank_scores
from ssad_ray.core.records import GOOD, DefectRegion, EvaluationReport, GroundTruth, Prediction
from ssad_ray.core.regions import label_mask
from ssad_ray.core.rng import generator


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """What a model says about one image, and the truth.

    Attributes:
        regions: Predicted regions; None where the model makes none, which leaves mask and box metrics out.
        true_mask: (H, W) of the map; None where there is none. Not needed for good images.
    """

    prediction: Prediction
    truth: GroundTruth
    regions: Sequence[DefectRegion] | None = None
    true_mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """The little that is kept of an image."""

    sample_id: str
    is_defective: bool
    anomaly_score: float
    overlap: Overlap | None
    boxes: ImageBoxes | None


class Evaluation:
    """Evaluates image after image; holds a few numbers per image besides its pixel accumulator.

    Good images enter the pixel metrics with an all-zero mask. What cannot be used is left out and counted: unreadable
    images and images of unknown truth everywhere, defective images without a usable mask at pixel level, and those
    with neither a mask nor boxes at object level.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self._pixels: PixelAccumulator = PixelScores() if exact else PixelHistogram()
        self._rows: list[_Row] = []
        self._counts: Counter[str] = Counter()

    def update(self, image: JudgedImage) -> None:
        """Take in one image."""
        self._counts["images"] += 1
        score, anomaly_map = image.prediction.anomaly_score, image.prediction.anomaly_map
        if image.prediction.error is not None or score is None or anomaly_map is None:
            self._counts["skipped_error"] += 1
        elif not np.isfinite(score) or not np.isfinite(anomaly_map).all():
            self._counts["skipped_not_finite"] += 1
        elif image.truth.defect_type is None:
            self._counts["skipped_unknown_truth"] += 1
        else:
            self._take_in(image, float(score), anomaly_map)

    def merge(self, other: "Evaluation") -> None:
        """Take in everything that `other` has seen."""
        self._pixels.merge(other._pixels)
        self._rows += other._rows
        self._counts.update(other._counts)

    def report(self) -> EvaluationReport:
        """Return all figures of the images so far."""
        rows = sorted(self._rows, key=lambda row: row.sample_id)
        return EvaluationReport(
            {**_image_metrics(rows), **self._pixel_metrics(), **_mask_metrics(rows), **_object_metrics(rows)},
            dict(self._counts),
        )

    def _take_in(self, image: JudgedImage, score: float, anomaly_map: NDArray[np.float32]) -> None:
        is_defective = image.truth.defect_type != GOOD
        self._counts["defective_images" if is_defective else "good_images"] += 1
        mask = self._usable_mask(image, anomaly_map.shape)
        common = None
        if mask is not None:
            self._counts["pixel_images"] += 1
            self._pixels.update(anomaly_map, mask)
            if image.regions is not None:
                common = overlap(label_mask(image.regions, *mask.shape), mask)
        self._rows.append(_Row(image.prediction.sample_id, is_defective, score, common, self._boxes(image, mask)))

    def _usable_mask(self, image: JudgedImage, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        if image.truth.defect_type == GOOD:
            return np.zeros(shape, bool)
        reason = None
        if image.true_mask is None:
            reason = "defective_without_mask"
        elif image.true_mask.shape != shape:
            reason = "defective_with_mask_of_other_size"
        elif not image.true_mask.any():
            reason = "defective_with_empty_mask"
        if reason is None:
            return image.true_mask
        self._counts[reason] += 1
        return None

    def _boxes(self, image: JudgedImage, mask: NDArray[np.bool_] | None) -> ImageBoxes | None:
        if image.regions is None:
            return None
        boxes = image_boxes(image.truth.boxes, image.regions)
        if not image.truth.boxes:
            if mask is None:
                self._counts["defective_without_boxes"] += 1
                return None
            boxes = replace(boxes, true_boxes=component_boxes(mask))
        hits = box_hits(boxes)
        self._counts["object_images"] += 1
        self._counts["regions"] += hits.num_regions
        self._counts["regions_outside"] += hits.num_outside
        self._counts["true_regions"] += hits.num_true
        self._counts["true_regions_found"] += hits.num_found
        return boxes

    def _pixel_metrics(self) -> dict[str, float | None]:
        pixel = self._pixels.result()
        if pixel is None:
            return {**_named("pixel", None), "pixel_aupro": None}
        return {**_named("pixel", pixel.ranking), "pixel_aupro": pixel.aupro}


def evaluate(images: Iterable[JudgedImage], *, exact: bool = False) -> EvaluationReport:
    """Evaluate one model on one set of images, read once.

    Args:
        images: The judged images, in any order.
        exact: Keep every pixel in memory instead of a histogram; see `PixelHistogram` for the difference it makes.

    Returns:
        image_auroc, image_ap, image_f1_max, pixel_auroc, pixel_ap, pixel_f1_max, pixel_aupro; `image_f1_threshold` and
        `pixel_f1_threshold`, the thresholds chosen with the truth in hand that reach the two F1; of the regions' masks,
        pooled_iou (all images together) and mean_iou (mean over defective images) with mean_iou_low and mean_iou_high
        (its 95 % bootstrap interval, None of a single image); of the regions' boxes, whatever their defect type,
        map_10, map_30, map_50, map and tianchi_score.
    """
    evaluation = Evaluation(exact=exact)
    for image in images:
        evaluation.update(image)
    return evaluation.report()


def component_boxes(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the tight half-open boxes (N, 4) of the 8-connected components of a (H, W) mask."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    corner, size = stats[1:, :2], stats[1:, 2:4]
    return np.concatenate([corner, corner + size], axis=1).astype(np.float64)


def _image_metrics(rows: Sequence[_Row]) -> dict[str, float | None]:
    scores = np.array([row.anomaly_score for row in rows], np.float64)
    return _named("image", rank_scores(scores, np.array([row.is_defective for row in rows], bool)))


def _named(level: str, ranking: Ranking | None) -> dict[str, float | None]:
    names = (f"{level}_auroc", f"{level}_ap", f"{level}_f1_max", f"{level}_f1_threshold")
    return dict.fromkeys(names) if ranking is None else dict(zip(names, astuple(ranking), strict=True))


def _mask_metrics(rows: Sequence[_Row]) -> dict[str, float | None]:
    overlaps = [row.overlap for row in rows if row.overlap is not None]
    defective = [row.overlap.iou for row in rows if row.is_defective and row.overlap is not None]
    ious = [iou for iou in defective if iou is not None]
    low, high = bootstrap_mean(ious, generator(0, "mean_iou")) or (None, None)
    return {
        "pooled_iou": sum(overlaps, Overlap()).iou if ious else None,
        "mean_iou": float(np.mean(ious)) if ious else None,
        "mean_iou_low": low,
        "mean_iou_high": high,
    }


def _object_metrics(rows: Sequence[_Row]) -> dict[str, float | None]:
    images = [row.boxes for row in rows if row.boxes is not None]
    coco = coco_precision(images)
    return {
        **({field.name: None for field in fields(CocoPrecision)} if coco is None else asdict(coco)),
        "tianchi_score": tianchi_score(images, class_agnostic=True),
    }
