import tracemalloc

import numpy as np
import pytest

from ssad_ray.core.masks import encode_mask
from ssad_ray.core.metrics.evaluation import Evaluation, JudgedImage, component_boxes, evaluate
from ssad_ray.core.records import DefectRegion, GroundTruth, Prediction, Provenance, TrueBox
from ssad_ray.errors import DataError

SHAPE = (24, 40)
NAMES = {
    *("image_auroc", "image_ap", "image_f1_max", "image_f1_threshold"),
    *("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_threshold", "pixel_aupro"),
    *("pooled_iou", "mean_iou", "mean_iou_low", "mean_iou_high"),
    *("map_10", "map_30", "map_50", "map", "tianchi_score"),
}


def blob(top, left, height, width):
    mask = np.zeros(SHAPE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def region(mask, score):
    return DefectRegion(
        "region",
        encode_mask(mask),
        tuple(component_boxes(mask)[0].tolist()),
        int(mask.sum()),
        score,
        1.0,
        None,
        Provenance("detector/test-1", 0.5, None, "auto", "2025-01-01T00:00:00Z"),
    )


def judged(name, anomaly_map, defect_type, *, true_mask=None, found=(), boxes=(), error=None):
    anomaly_map = np.asarray(anomaly_map, np.float32)
    return JudgedImage(
        Prediction(name, float(anomaly_map.max()), anomaly_map, error),
        GroundTruth(name, defect_type, boxes=boxes),
        None if found is None else tuple(region(mask, float(anomaly_map[mask].max())) for mask in found),
        true_mask,
    )


def random_images(num=12, seed=0):
    rng = np.random.default_rng(seed)
    images = []
    for number in range(num):
        noise = rng.normal(size=SHAPE)
        true = blob(*rng.integers(1, 12, size=4)) if number % 3 else None
        found = [blob(*rng.integers(1, 12, size=4)) for _ in range(rng.integers(3))]
        anomaly_map = noise if true is None else noise + 2 * true
        images.append(
            judged(f"{number:02d}", anomaly_map, "good" if true is None else "hole", true_mask=true, found=found)
        )
    return images


def test_a_perfect_model_reaches_one_in_every_figure():
    mask = blob(3, 5, 4, 20)
    defective = [judged(name, mask, "hole", true_mask=mask, found=[mask]) for name in ("a", "b")]
    report = evaluate([*defective, judged("c", np.zeros(SHAPE), "good")])
    assert set(report.metrics) == NAMES
    scored = {name: value for name, value in report.metrics.items() if not name.endswith("threshold")}
    assert scored == pytest.approx(dict.fromkeys(scored, 1.0))
    pairs = {"images": 3, "pixel_images": 3, "object_images": 3}
    pairs |= {"regions": 2, "regions_outside": 0, "true_regions": 2, "true_regions_found": 2}
    assert report.counts == pairs | {"defective_images": 2, "good_images": 1}


def test_pooled_iou_counts_false_pixels_of_good_images_and_mean_iou_does_not():
    true = blob(0, 0, 10, 10)
    images = [
        judged("a", true, "hole", true_mask=true, found=[blob(0, 0, 10, 5)]),
        judged("b", true, "hole", true_mask=true, found=[]),
        judged("c", np.zeros(SHAPE), "good", found=[blob(0, 0, 4, 25)]),
    ]
    report = evaluate(images)
    assert report.metrics["pooled_iou"] == pytest.approx(50 / 300)
    assert report.metrics["mean_iou"] == pytest.approx(0.25)
    assert (report.metrics["mean_iou_low"], report.metrics["mean_iou_high"]) == (0.0, 0.5)


def test_overlapping_regions_are_one_mask():
    true = blob(2, 2, 10, 10)
    images = [judged("a", true, "hole", true_mask=true, found=[blob(2, 2, 10, 7), blob(2, 5, 10, 7)])]
    metrics = evaluate(images).metrics
    assert (metrics["mean_iou"], metrics["mean_iou_low"]) == (1.0, None)


def test_regions_of_another_frame_are_refused():
    true = blob(2, 2, 10, 10)
    image = JudgedImage(
        Prediction("a", 1.0, true.astype(np.float32)), GroundTruth("a", "hole"), (region(true.T, 1.0),), true
    )
    with pytest.raises(DataError, match=r"40 x 24 px \(height x width\) and its image has 24 x 40"):
        evaluate([image])


def test_what_cannot_be_used_is_left_out_and_counted():
    mask, blank = blob(3, 5, 4, 20), np.zeros(SHAPE)
    images = [
        judged("a", mask, "hole", true_mask=mask),
        judged("b", blank, "good"),
        judged("c", blank, "good", error="truncated file"),
        JudgedImage(Prediction("d", None, None, "no such file"), GroundTruth("d", "good")),
        judged("e", np.full(SHAPE, np.nan), "good"),
        judged("f", blank, None),
        judged("g", mask, "hole"),
        judged("h", mask, "hole", true_mask=mask.T),
        judged("i", mask, "hole", true_mask=np.zeros(SHAPE, bool)),
    ]
    report = evaluate(images)
    assert report.counts["images"] == 9
    assert report.counts["skipped_error"] == 2
    assert report.counts["skipped_not_finite"] == 1
    assert report.counts["skipped_unknown_truth"] == 1
    assert report.counts["defective_without_mask"] == 1
    assert report.counts["defective_with_mask_of_other_size"] == 1
    assert report.counts["defective_with_empty_mask"] == 1
    assert report.counts["defective_without_boxes"] == 3
    assert (report.counts["defective_images"], report.counts["good_images"], report.counts["pixel_images"]) == (4, 1, 2)
    assert report.metrics["image_auroc"] == 1.0
    assert report.metrics["pixel_auroc"] == pytest.approx(1.0)


def test_what_the_data_cannot_answer_is_none():
    good_only = evaluate([judged("a", np.zeros(SHAPE), "good", found=[blob(1, 1, 2, 2)])])
    assert good_only.metrics == dict.fromkeys(NAMES)
    assert evaluate([]).metrics == dict.fromkeys(NAMES)
    mask = blob(3, 5, 4, 20)
    no_regions = evaluate([judged("a", mask, "hole", true_mask=mask, found=None)]).metrics
    assert {name for name in NAMES if no_regions[name] is None} == {
        *("image_auroc", "image_ap", "image_f1_max", "image_f1_threshold"),
        *("pooled_iou", "mean_iou", "mean_iou_low", "mean_iou_high"),
        *("map_10", "map_30", "map_50", "map", "tianchi_score"),
    }


def test_boxes_alone_give_object_metrics_only():
    mask = blob(3, 5, 4, 20)
    boxes = (TrueBox((5.0, 3.0, 25.0, 7.0), "hole"),)
    images = [judged("a", mask, "hole", boxes=boxes, found=[mask]), judged("b", np.zeros(SHAPE), "good")]
    metrics = evaluate(images).metrics
    assert metrics["map"] == pytest.approx(1.0)
    assert metrics["tianchi_score"] == pytest.approx(1.0)
    assert (metrics["pixel_auroc"], metrics["pooled_iou"]) == (None, None)


def test_parts_merged_in_any_grouping_give_the_very_same_report():
    images = random_images()
    whole = evaluate(images)
    parts = [Evaluation() for _ in range(3)]
    for number, image in enumerate(reversed(images)):
        parts[number % 3].update(image)
    parts[2].merge(parts[0])
    parts[1].merge(parts[2])
    assert parts[1].report() == whole


def test_tied_scores_rank_alike_in_any_order_of_the_images():
    true = blob(2, 2, 10, 10)
    images = [judged("a", true, "hole", true_mask=true, found=[true]), judged("b", true, "good", found=[true])]
    assert evaluate(images) == evaluate(reversed(images))


def test_streaming_stays_close_to_exact():
    streamed, exact = evaluate(random_images(30)).metrics, evaluate(random_images(30), exact=True).metrics
    assert streamed == pytest.approx(exact, abs=2e-3)


def test_an_image_leaves_less_than_two_kilobytes_behind():
    images = random_images()
    evaluation = Evaluation()
    evaluation.update(images[0])
    tracemalloc.start()
    for image in images * 10:
        evaluation.update(image)
    growth, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert growth / 120 < 2048


def test_component_boxes_are_half_open_and_join_corners():
    mask = blob(3, 5, 4, 20) | blob(7, 25, 1, 1) | blob(20, 30, 2, 3)
    assert component_boxes(mask).tolist() == [[5, 3, 26, 8], [30, 20, 33, 22]]
