"""How good automatic labels are, where the truth about the labelled images is known; for reports alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ssad_ray.core.metrics.objects import BoxHits, box_hits, image_boxes, tianchi_score
from ssad_ray.core.metrics.pixel import Overlap, overlap
from ssad_ray.core.records import GOOD, Verdict
from ssad_ray.core.regions import label_mask
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.pipelines.truth import true_mask


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """A label version against the truth.

    Attributes:
        num_defective: Labelled images that are defective.
        num_found: Those of them that were judged anomalous.
        num_good: Labelled images that are good.
        num_false_alarms: Those of them that were judged anomalous.
        pooled_iou: Of the regions with the true masks, all good and masked images together; None without a mask.
        boxes: What the regions find of the true boxes, all good and boxed images together; None without a box.
        tianchi_score: Of the same images, by defect type as in the contests; None where no region has a type, too.
    """

    num_defective: int
    num_found: int
    num_good: int
    num_false_alarms: int
    pooled_iou: float | None
    boxes: BoxHits | None
    tianchi_score: float | None


def compare_with_truth(
    rows: list[ManifestRow], verdicts: Mapping[str, Verdict], max_image_bytes: int
) -> LabelQuality | None:
    """Compare the labels of images with their ground truth; None where nothing is known of any of them.

    Args:
        rows: The images.
        verdicts: Their labels by sample_id. Images without one, or with an error, are left out.
        max_image_bytes: Largest accepted mask file.
    """
    judged = [(row, verdicts[row.sample_id]) for row in rows if row.sample_id in verdicts and row.defect_type]
    judged = [(row, verdict) for row, verdict in judged if verdict.error is None]
    if not judged:
        return None
    good = [verdict for row, verdict in judged if row.defect_type == GOOD]
    defective = [verdict for row, verdict in judged if row.defect_type != GOOD]
    total, has_mask, boxed = Overlap(), False, []
    for row, verdict in judged:
        found = label_mask(verdict.regions, verdict.height, verdict.width)
        if row.defect_type == GOOD:
            total += overlap(found, np.zeros_like(found))
        elif (true := true_mask(row, verdict.height, verdict.width, max_image_bytes)) is not None:
            total, has_mask = total + overlap(found, true), True
        if row.boxes or row.defect_type == GOOD:
            boxed.append(image_boxes(row.boxes, verdict.regions))
    hits = sum(map(box_hits, boxed), BoxHits())
    has_types = any(any(image.types) for image in boxed)
    return LabelQuality(
        num_defective=len(defective),
        num_found=sum(bool(verdict.is_anomalous) for verdict in defective),
        num_good=len(good),
        num_false_alarms=sum(bool(verdict.is_anomalous) for verdict in good),
        pooled_iou=total.iou if has_mask else None,
        boxes=hits if hits.num_true else None,
        tianchi_score=tianchi_score(boxed) if has_types else None,
    )
