from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ssad_ray.core.images import encode_png
from ssad_ray.core.masks import encode_mask, mask_box
from ssad_ray.core.metrics.objects import BoxHits
from ssad_ray.core.records import DefectRegion, Provenance, TrueBox, Verdict
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.pipelines.label_quality import LabelQuality, compare_with_truth

SHAPE = (20, 30)
ANY_SIZE = 1 << 20


def mask(columns: slice) -> np.ndarray:
    drawn = np.zeros(SHAPE, bool)
    drawn[5:15, columns] = True
    return drawn


def verdict(sample_id: str, found: np.ndarray | None) -> Verdict:
    provenance = Provenance("draem-1", 1.0, None, "auto", datetime(2026, 1, 1, tzinfo=UTC).isoformat())
    regions = ()
    if found is not None:
        encoded = encode_mask(found)
        region = DefectRegion("r", encoded, mask_box(encoded), int(found.sum()), 1.0, 0.5, None, provenance)
        regions = (region,)
    return Verdict(sample_id, sample_id, *SHAPE, 1.0, 0.1, found is not None, regions)


def row(sample_id: str, defect_type: str | None, mask_uri: str | None = None) -> ManifestRow:
    return ManifestRow(sample_id, sample_id, "c", sample_id, defect_type=defect_type, mask_uri=mask_uri)


def test_hits_misses_false_alarms_and_overlap_are_counted(tmp_path: Path) -> None:
    for name, columns in (("hit", slice(0, 10)), ("missed", slice(0, 4))):
        (tmp_path / name).write_bytes(encode_png(np.uint8(255) * mask(columns)))
    (tmp_path / "broken").write_bytes(b"no mask")
    rows = [
        row("hit", "dent", str(tmp_path / "hit")),
        row("missed", "dent", str(tmp_path / "missed")),
        row("mask broken", "dent", str(tmp_path / "broken")),
        row("no mask", "dent"),
        row("false alarm", "good"),
        row("quiet", "good"),
        row("unknown", None),
        row("unread", "dent"),
    ]
    found = {"hit": mask(slice(5, 15)), "mask broken": mask(slice(0, 30)), "false alarm": mask(slice(0, 1))}
    verdicts = {each.sample_id: verdict(each.sample_id, found.get(each.sample_id)) for each in rows}
    verdicts["unread"] = Verdict("unread", "unread", 0, 0, None, None, None, error="cut off")
    quality = compare_with_truth(rows, verdicts, ANY_SIZE)
    assert quality == LabelQuality(4, 2, 2, 1, pooled_iou=50 / (150 + 40 + 10), boxes=None, tianchi_score=None)


def test_where_nothing_is_known_nothing_is_claimed() -> None:
    rows = [row("a", None)]
    assert compare_with_truth(rows, {"a": verdict("a", None)}, ANY_SIZE) is None
    quality = compare_with_truth([row("b", "dent")], {"b": verdict("b", mask(slice(0, 9)))}, ANY_SIZE)
    assert quality == LabelQuality(1, 1, 0, 0, pooled_iou=None, boxes=None, tianchi_score=None)


def test_boxes_are_counted_that_a_region_is_in_and_regions_that_are_in_none() -> None:
    boxes = (TrueBox((0.0, 4.0, 12.0, 16.0), "dent"), TrueBox((20.0, 0.0, 30.0, 5.0), "stain"))
    rows = [
        replace(row("hit", "mixed"), boxes=boxes),
        replace(row("beside", "stain"), boxes=boxes[1:]),
        row("false alarm", "good"),
        row("no box", "dent"),
    ]
    found = {"hit": mask(slice(1, 9)), "beside": mask(slice(0, 9)), "false alarm": mask(slice(0, 1))}
    verdicts = {each.sample_id: verdict(each.sample_id, found.get(each.sample_id)) for each in rows}
    quality = compare_with_truth(rows, verdicts, ANY_SIZE)
    assert quality.boxes == BoxHits(num_true=3, num_found=1, num_regions=3, num_outside=2)
    assert quality.pooled_iou is None
    assert quality.tianchi_score is None


def test_types_count_where_regions_have_some() -> None:
    rows = [
        replace(row("right", "dent"), boxes=(TrueBox((0.0, 5.0, 10.0, 15.0), "dent"),)),
        replace(row("called dent", "stain"), boxes=(TrueBox((0.0, 5.0, 10.0, 15.0), "stain"),)),
        replace(row("unknown", "dent"), boxes=(TrueBox((0.0, 5.0, 10.0, 15.0), "dent"),)),
        row("quiet", "good"),
    ]
    verdicts = {each.sample_id: verdict(each.sample_id, mask(slice(0, 10))) for each in rows[:3]}
    for name in ("right", "called dent"):
        regions = tuple(replace(region, defect_type="dent") for region in verdicts[name].regions)
        verdicts[name] = replace(verdicts[name], regions=regions)
    verdicts["quiet"] = verdict("quiet", None)
    quality = compare_with_truth(rows, verdicts, ANY_SIZE)
    # All four images are told apart; one of two dents is found with all its pixels, no stain.
    assert quality.tianchi_score == pytest.approx(0.2 + 0.8 * np.mean([0.5, 0.0]))
