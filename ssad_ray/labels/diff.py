"""What changed between two label versions."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ssad_ray.core.masks import mask_ious
from ssad_ray.core.records import DefectRegion, Verdict


@dataclass(frozen=True, slots=True)
class ImageDiff:
    """What changed on one image, as region ids.

    Attributes:
        sample_id: The image.
        appeared: Regions of the new version without a counterpart.
        vanished: Regions of the old version without a counterpart.
        changed: (old, new) counterparts that differ in their pixels or their defect type.
        num_unchanged: Counterparts that do not.
        is_flipped: Whether the image's own judgement differs.
    """

    sample_id: str
    appeared: tuple[str, ...]
    vanished: tuple[str, ...]
    changed: tuple[tuple[str, str], ...]
    num_unchanged: int
    is_flipped: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not (self.appeared or self.vanished or self.changed or self.is_flipped)


@dataclass(frozen=True, slots=True)
class LabelDiff:
    """What changed between two versions.

    Attributes:
        images: The images of both versions on which something changed, in the new version's order.
        counts: Sums over the images of both versions: `appeared`, `vanished`, `changed`, `unchanged` regions, and
            `images_changed`, `images_flipped`, `images_unchanged`; and `images_added`, `images_removed`, which only
            one version has.
    """

    images: tuple[ImageDiff, ...]
    counts: Mapping[str, int]


def diff(old: Iterable[Verdict], new: Iterable[Verdict], iou: float = 0.5) -> LabelDiff:
    """Compare two label versions.

    Args:
        old: Verdicts of the earlier version; held in memory.
        new: Verdicts of the later version; read once.
        iou: Regions are counterparts only if their masks' intersection over union reaches this; in (0, 1].
    """
    remaining = {verdict.sample_id: verdict for verdict in old}
    names = ("appeared", "vanished", "changed", "unchanged")
    states = ("images_changed", "images_flipped", "images_unchanged", "images_added", "images_removed")
    counts: Counter[str] = Counter(dict.fromkeys((*names, *states), 0))
    images: list[ImageDiff] = []
    for verdict in new:
        before = remaining.pop(verdict.sample_id, None)
        if before is None:
            counts["images_added"] += 1
            continue
        image = diff_image(before, verdict, iou)
        counts.update(appeared=len(image.appeared), vanished=len(image.vanished), changed=len(image.changed))
        counts.update(unchanged=image.num_unchanged, images_flipped=int(image.is_flipped))
        counts["images_unchanged" if image.is_empty else "images_changed"] += 1
        if not image.is_empty:
            images.append(image)
    counts["images_removed"] = len(remaining)
    return LabelDiff(tuple(images), dict(counts))


def diff_image(old: Verdict, new: Verdict, iou: float = 0.5) -> ImageDiff:
    """Compare two verdicts on one image; counterparts are paired one to one for the largest total overlap."""
    overlaps = mask_ious([region.mask for region in old.regions], [region.mask for region in new.regions])
    # Pairs below the limit count nothing, so that they cannot draw a partner away from a pair above it.
    rows, columns = linear_sum_assignment(np.where(overlaps >= iou, overlaps, 0.0), maximize=True)
    is_pair = overlaps[rows, columns] >= iou
    pairs = [(old.regions[i], new.regions[j]) for i, j in zip(rows[is_pair], columns[is_pair], strict=True)]
    changed = tuple((before.region_id, after.region_id) for before, after in pairs if not _is_same(before, after))
    return ImageDiff(
        sample_id=new.sample_id,
        appeared=_unpaired(new.regions, {after.region_id for _, after in pairs}),
        vanished=_unpaired(old.regions, {before.region_id for before, _ in pairs}),
        changed=changed,
        num_unchanged=len(pairs) - len(changed),
        is_flipped=old.is_anomalous != new.is_anomalous,
    )


def _is_same(before: DefectRegion, after: DefectRegion) -> bool:
    return before.mask == after.mask and before.defect_type == after.defect_type


def _unpaired(regions: Iterable[DefectRegion], paired_ids: set[str]) -> tuple[str, ...]:
    return tuple(region.region_id for region in regions if region.region_id not in paired_ids)
