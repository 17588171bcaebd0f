import contextlib
import io
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssad_ray.core.metrics.objects import BoxHits, ImageBoxes, box_hits, box_iou, coco_precision, tianchi_score
from ssad_ray.errors import DataError

few_examples = settings(max_examples=60)
CORNERS = st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(1, 6), st.integers(1, 9))


@st.composite
def images(draw):
    """Boxes on a coarse grid, so that overlaps and scores tie often."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        true, found = draw(st.lists(CORNERS, max_size=5)), draw(st.lists(CORNERS, max_size=7))
        scores = [draw(st.sampled_from([-3.0, 0.5, 0.9, 40.0])) for _ in found]
        kinds = st.sampled_from(["hole", "scratch"])
        made.append(
            boxes(true, found, scores, types=[draw(kinds) for _ in found], true_types=[draw(kinds) for _ in true])
        )
    return made


def boxes(true, found, scores, **types):
    """From (x0, y0, width, height)."""

    def corners(sizes):
        array = np.array(sizes, float).reshape(-1, 4)
        return np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1)

    return ImageBoxes(corners(true), corners(found), np.array(scores, float), **types)


def coco_by_pycocotools(images, max_detections=1000):
    annotations = {"true_boxes": [], "boxes": []}
    for name, rows in annotations.items():
        for number, image in enumerate(images):
            for index, (x0, y0, x1, y1) in enumerate(getattr(image, name).tolist()):
                box = {"id": len(rows) + 1, "image_id": number, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                score = float(image.scores[index]) if name == "boxes" else 1.0
                rows.append({**box, "area": (x1 - x0) * (y1 - y0), "iscrowd": 0, "score": score})
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in annotations.values():
            side = COCO()
            ids = [{"id": number} for number in range(len(images))]
            side.dataset = {"images": ids, "annotations": rows, "categories": [{"id": 1}]}
            side.createIndex()
            sides.append(side)
        evaluator = COCOeval(*sides, "bbox")
        evaluator.params.maxDets = [1, 10, max_detections]
        evaluator.params.iouThrs = np.array([0.1, 0.3, *np.linspace(0.5, 0.95, 10)])
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, 0, 0, 2].mean(axis=1)
    return (*precision[:3], precision[2:].mean())


def voc_by_definition(images, threshold, kind):
    """Walk through the detections one at a time."""
    found, num_true = [], 0
    for number, image in enumerate(images):
        num_true += sum(kind in (None, name) for name in image.true_types)
        for score, box, name in zip(image.scores, image.boxes, image.types, strict=True):
            if kind in (None, name):
                found.append((score, number, box))
    found.sort(key=lambda item: item[0], reverse=True)
    taken, hits = set(), []
    for _, number, box in found:
        best, best_iou = None, 0.0
        for index, true in enumerate(images[number].true_boxes):
            if kind not in (None, images[number].true_types[index]):
                continue
            # Contest boxes hold both of their corner pixels.
            ax0, ay0, ax1, ay1 = box - [0, 0, 1, 1]
            bx0, by0, bx1, by1 = true - [0, 0, 1, 1]
            width, height = min(ax1, bx1) - max(ax0, bx0) + 1, min(ay1, by1) - max(ay0, by0) + 1
            common = max(width, 0) * max(height, 0)
            areas = (ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1)
            if common / (areas - common) > best_iou:
                best, best_iou = (number, index), common / (areas - common)
        hits.append(best_iou >= threshold and best not in taken)
        if hits[-1]:
            taken.add(best)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    return sum(max(precision[i:]) for i, hit in enumerate(hits) if hit) / num_true


# The first detection overlaps both true boxes equally.
TIED = boxes(
    [(0, 0, 2, 1), (1, 0, 1, 2)], [(1, 0, 1, 1), (0, 0, 1, 1)], [-3, -3], types=["hole"] * 2, true_types=["hole"] * 2
)


@few_examples
@given(images())
@example([TIED])
def test_coco_precision_equals_that_of_pycocotools(images):
    ours = coco_precision(images)
    if ours is None:
        assert not any(len(image.true_boxes) for image in images)
    else:
        assert astuple(ours) == pytest.approx(coco_by_pycocotools(images), abs=1e-9)


def test_coco_precision_does_not_stop_at_a_hundred_detections():
    grid = [(20 * column, 10 * row, 18, 8) for row in range(12) for column in range(15)]
    crowded = [boxes(grid, grid, np.linspace(1, 2, len(grid)))]
    assert coco_precision(crowded).map_50 == pytest.approx(1.0)
    assert coco_by_pycocotools(crowded, max_detections=100)[2] < 0.6


def test_coco_precision_worked_out_by_hand():
    # Hit, miss, hit of two true boxes: precision 1 up to recall 1/2 (51 of 101 points), then 2/3.
    image = boxes([(0, 0, 10, 20), (40, 0, 10, 20)], [(0, 0, 10, 20), (80, 0, 5, 9), (40, 0, 10, 20)], [9, 8, 7])
    assert coco_precision([image]).map_50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_box_drawn_wide_round_a_defect_is_found_at_low_overlaps_only():
    # Overlaps 1/5 and 2/5 with boxes of 200 pixels, the lower scored the higher.
    image = boxes([(0, 0, 10, 20), (40, 0, 10, 20)], [(0, 0, 10, 4), (42, 2, 8, 10)], [9, 8])
    assert box_iou(image.boxes, image.true_boxes).diagonal() == pytest.approx([0.2, 0.4])
    found = coco_precision([image])
    # At 0.3 a miss, then a hit: precision 1/2 up to recall 1/2.
    assert (found.map_10, found.map_30) == pytest.approx((1.0, 51 / 2 / 101))
    assert (found.map_50, found.map) == (0.0, 0.0)


def test_a_box_is_found_by_a_region_in_it_or_over_it():
    true = [(0, 0, 20, 30), (50, 0, 10, 10), (80, 0, 10, 10), (90, 50, 10, 10)]
    speck, over, touching, huge = (2, 2, 3, 3), (48, 0, 40, 20), (80, 9, 12, 9), (0, 0, 120, 90)
    # The middle of the one over two boxes lies in neither; they overlap by 100 of 800 and 80 of 820 pixels.
    assert box_hits(boxes(true, [speck], [1])) == BoxHits(4, 1, 1, 0)
    assert box_hits(boxes(true, [over], [1])) == BoxHits(4, 1, 1, 0)
    assert box_hits(boxes(true, [touching, huge], [1, 2])) == BoxHits(4, 0, 2, 2)
    both = [boxes(true, [speck, speck, over], [1, 2, 3]), boxes([], [huge], [1]), boxes(true, [], [])]
    assert sum(map(box_hits, both), BoxHits()) == BoxHits(8, 2, 4, 1)


def test_a_set_without_true_boxes_has_no_object_metrics():
    lone = [boxes([], [(0, 0, 4, 9)], [1.0], types=["hole"])]
    assert coco_precision(lone) is None
    assert tianchi_score(lone) is None
    assert tianchi_score([]) is None


@few_examples
@given(images(), st.booleans())
def test_the_tianchi_score_equals_its_definition(images, class_agnostic):
    kinds = [None] if class_agnostic else sorted({name for image in images for name in image.true_types})
    if not any(len(image.true_boxes) for image in images):
        assert tianchi_score(images, class_agnostic=class_agnostic) is None
        return
    precision = np.mean([voc_by_definition(images, iou, kind) for iou in (0.1, 0.3, 0.5) for kind in kinds])
    accuracy = np.mean([(len(image.boxes) > 0) == (len(image.true_boxes) > 0) for image in images])
    assert tianchi_score(images, class_agnostic=class_agnostic) == pytest.approx(0.2 * accuracy + 0.8 * precision)


def test_perfect_boxes_and_names_score_one():
    box = (5, 0, 10, 30)
    images = [boxes([box], [box], [0.4], true_types=["hole"], types=["hole"]), boxes([], [], [])]
    assert tianchi_score(images) == pytest.approx(1.0)


def test_a_score_of_classes_needs_a_type_for_every_box():
    box = (5, 0, 10, 30)
    with pytest.raises(DataError, match="1 true and 1 found boxes came with 0 and 0 defect types"):
        tianchi_score([boxes([box], [box], [0.4])])


def test_an_empty_submission_on_defective_images_scores_zero():
    assert tianchi_score([boxes([(5, 0, 10, 30)], [], [], true_types=["hole"])] * 3) == 0.0


def test_a_third_of_overlap_counts_at_two_of_three_thresholds():
    # The inclusive boxes [0, 0, 9, 9] and [5, 0, 14, 9].
    image = boxes([(0, 0, 10, 10)], [(5, 0, 10, 10)], [1.0], true_types=["hole"], types=["hole"])
    assert box_iou(image.boxes, image.true_boxes) == pytest.approx(np.array([[1 / 3]]))
    assert tianchi_score([image]) == pytest.approx(0.2 + 0.8 * 2 / 3)


def test_a_taken_best_box_has_no_runner_up_in_tianchi_but_has_one_in_coco():
    true = [(0, 0, 10, 20), (0, 8, 10, 20)]
    image = boxes(true, [(0, 0, 10, 20), (0, 2, 10, 20)], [2, 1])
    overlaps = box_iou(image.boxes, image.true_boxes)[1]
    assert overlaps[0] > overlaps[1] > 0.5
    assert coco_precision([image]).map_50 == pytest.approx(1.0)
    assert tianchi_score([image], class_agnostic=True) == pytest.approx(0.2 + 0.8 / 2)


def test_a_type_nobody_annotated_does_not_enter_the_class_mean():
    hole, stain = (5, 0, 10, 30), (50, 0, 10, 30)
    image = boxes([hole], [hole, stain], [1, 2], true_types=["hole"], types=["hole", "stain"])
    assert tianchi_score([image]) == pytest.approx(1.0)
    assert tianchi_score([image], class_agnostic=True) == pytest.approx(0.2 + 0.8 / 2)


def test_one_faint_box_makes_a_good_image_a_false_alarm():
    hole = (5, 0, 10, 30)
    found = boxes([hole], [hole], [0.9], true_types=["hole"], types=["hole"])
    faint = boxes([], [hole], [0.01], types=["hole"])
    assert tianchi_score([found, faint]) == pytest.approx(0.2 / 2 + 0.8)
