import dataclasses
import logging
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from ssad_ray.core.calibration import calibrate
from ssad_ray.core.masks import decode_mask, encode_mask, mask_box
from ssad_ray.core.records import Calibration, DefectRegion, Provenance, Verdict
from ssad_ray.core.regions import (
    MAX_REGIONS,
    find_regions,
    label_mask,
    region_confidence,
    to_defect_regions,
    training_target,
)
from ssad_ray.errors import DataError

Map = NDArray[np.float32]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CALIBRATION = Calibration("by hand", 0.1, 9, 6.0, 6.0, 3.0, 4, 1.0, 2.0, tuple(float(i) for i in range(9)))


def blank() -> Map:
    return np.ones((64, 96), np.float32)


def labelled(anomaly_map: Map) -> list[DefectRegion]:
    return to_defect_regions(anomaly_map, CALIBRATION, "a.png@0", "draem-1", NOW, CALIBRATION.image_threshold)


def verdict(anomaly_map: Map, is_anomalous: bool, regions: list[DefectRegion]) -> Verdict:
    height, width = anomaly_map.shape
    return Verdict("a.png@0", "a.png", height, width, 9.0, 0.1, is_anomalous, tuple(regions))


@given(arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 15)), elements=st.sampled_from([0, 1, 2, 3])))
def test_hysteresis_is_that_of_a_plain_reconstruction(anomaly_map: Map) -> None:
    regions, num_found = find_regions(anomaly_map, 2.5, 1.5, min_area_px=1, threshold_sure=np.inf)
    pieces, num_pieces = ndimage.label(anomaly_map > 1.5, np.ones((3, 3)))
    expected = [pieces == i for i in range(1, num_pieces + 1) if anomaly_map[pieces == i].max() > 2.5]
    assert num_found == len(regions) == len(expected)
    union = np.zeros(anomaly_map.shape, np.bool_)
    for region in regions:
        x0, y0, x1, y1 = region.box
        assert region.mask.shape == (y1 - y0, x1 - x0)
        assert region.area_px == region.mask.sum()
        assert region.peak == 3
        union[y0:y1, x0:x1] |= region.mask
    np.testing.assert_array_equal(union, np.any([np.zeros(anomaly_map.shape, np.bool_), *expected], axis=0))


def test_regions_come_by_falling_peak_with_tight_boxes() -> None:
    anomaly_map = blank()
    anomaly_map[10:14, 70:80] = 7
    anomaly_map[40:50, 5:8] = 9
    regions, _ = find_regions(anomaly_map, 6.0, 3.0, min_area_px=4, threshold_sure=np.inf)
    assert [(r.box, r.peak, r.area_px) for r in regions] == [((5, 40, 8, 50), 9, 30), ((70, 10, 80, 14), 7, 40)]


def test_where_seeds_differ_by_place_regions_still_come_by_falling_peak() -> None:
    anomaly_map = blank()
    anomaly_map[10:14, 70:80] = 6
    anomaly_map[40:50, 5:8] = 8
    anomaly_map[40, 5] = 5
    seeds_above = np.full(anomaly_map.shape, 5.5, np.float32)
    seeds_above[40:50, 5:8] = 10
    seeds_above[40, 5] = 4
    regions, _ = find_regions(anomaly_map, seeds_above, 3.0, min_area_px=4, threshold_sure=np.inf)
    assert [region.peak for region in regions] == [8, 6]


def test_a_small_piece_inside_a_hole_of_another_belongs_to_one_region_only() -> None:
    anomaly_map = blank()
    anomaly_map[10:19, 10:19] = 7
    anomaly_map[12:17, 12:17] = 1
    anomaly_map[14, 14] = 9
    (peak, ring), _ = find_regions(anomaly_map, 6.0, 3.0, min_area_px=30, threshold_sure=np.inf)
    assert (peak.area_px, peak.peak) == (1, 9)
    assert (ring.area_px, ring.peak) == (81 - 1, 7)


def test_of_small_pieces_that_rise_equally_one_is_kept() -> None:
    anomaly_map = blank()
    anomaly_map[10, 10] = anomaly_map[30, 30] = anomaly_map[50, 50] = 9
    assert find_regions(anomaly_map, 6.0, 3.0, min_area_px=4, threshold_sure=np.inf)[1] == 1


def test_small_pieces_are_dropped_but_never_the_one_with_the_peak() -> None:
    anomaly_map = blank()
    anomaly_map[10, 10] = 9
    anomaly_map[30, 30:32] = 8
    anomaly_map[50, 50:60] = 7
    regions, num_found = find_regions(anomaly_map, 6.0, 3.0, min_area_px=4, threshold_sure=np.inf)
    assert [region.peak for region in regions] == [9, 7]
    assert num_found == 2


def test_holes_as_small_as_dropped_pieces_are_filled_and_larger_ones_stay() -> None:
    anomaly_map = blank()
    anomaly_map[10:40, 10:60] = 7
    anomaly_map[15, 20:23] = 1
    anomaly_map[20:22, 30:32] = 1
    anomaly_map[30, 10] = 1  # a notch in the outline is not a hole
    (region,), _ = find_regions(anomaly_map, 6.0, 3.0, min_area_px=4, threshold_sure=np.inf)
    assert region.area_px == 30 * 50 - 4 - 1
    assert region.mask[5, 10:13].all()
    assert not region.mask[10:12, 20:22].any()


def test_a_broken_image_keeps_the_highest_regions_and_says_how_many_there_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    anomaly_map = np.zeros((60, 160), np.float32)
    anomaly_map[::2, ::2] = np.random.default_rng(0).permutation(np.linspace(10, 20, 30 * 80)).reshape(30, 80)
    regions, num_found = find_regions(anomaly_map, 6.0, 3.0, min_area_px=1, threshold_sure=np.inf)
    assert (len(regions), num_found) == (MAX_REGIONS, 2400)
    assert regions[-1].peak > np.median(anomaly_map[::2, ::2])
    calibration = Calibration("by hand", 0.1, 1, 6.0, 6.0, 3.0, 1, 0.0, 1.0, (0.0,))
    caplog.set_level(logging.WARNING)
    to_defect_regions(anomaly_map, calibration, "a.png@0", "draem-1", NOW, calibration.image_threshold)
    assert "a.png@0: 2400 regions found, the 1000 highest are kept" in caplog.text


@pytest.mark.parametrize("shape", [(3, 4, 1), (5,), (0, 4)])
def test_a_map_that_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"must be \(height, width\), not empty and finite"):
        find_regions(np.zeros(shape, np.float32), 2.0, 1.0, 1, threshold_sure=np.inf)


def test_a_map_with_a_value_that_is_not_finite_is_refused_instead_of_passing_as_normal() -> None:
    anomaly_map = blank()
    anomaly_map[3, 4] = np.nan
    with pytest.raises(DataError, match="1 values that are not finite"):
        find_regions(anomaly_map, 2.0, 1.5, 1, threshold_sure=np.inf)


def test_a_defect_region_records_where_it_is_and_where_it_came_from() -> None:
    anomaly_map = blank()
    anomaly_map[10:14, 70:80] = 5
    anomaly_map[12, 75] = 9
    (region,) = labelled(anomaly_map)
    np.testing.assert_array_equal(decode_mask(region.mask), anomaly_map > 3)
    assert region.region_id == "a.png@0#0"
    assert list(region.box) == list(mask_box(region.mask)) == [70, 10, 80, 14]
    assert (region.area_px, region.score) == (40, 9)
    assert region.defect_type is None
    assert region.provenance == Provenance("draem-1", 3.0, None, "auto", NOW.isoformat())


def test_confidence_rises_from_zero_at_the_thresholds_to_half_one_spread_above() -> None:
    assert region_confidence(0.0, 3.0, CALIBRATION) == 0
    assert region_confidence(2.0, 5.0, CALIBRATION) == 0.5
    assert 0.5 < region_confidence(2.0, 6.0, CALIBRATION) < region_confidence(3.0, 6.0, CALIBRATION) < 1


def test_what_makes_an_image_anomalous_by_itself_is_a_region_of_any_size() -> None:
    anomaly_map, sure = blank(), np.full((64, 96), 8.0, np.float32)
    sure[:, 48:] = 2.0
    anomaly_map[10, 10] = 5.0  # below the high threshold and its place's sure one
    anomaly_map[20, 10] = 7.0  # above the high threshold, but too small to be believed
    anomaly_map[40, 5] = 9.0
    anomaly_map[30, 60:62] = 2.5  # below the low threshold, above its place's sure one
    first, second = to_defect_regions(anomaly_map, CALIBRATION, "a.png@0", "draem-1", NOW, sure)
    assert (first.box, second.box) == ((5, 40, 6, 41), (60, 30, 62, 31))
    assert (first.score, second.score) == (9.0, 2.5)
    assert second.confidence == pytest.approx(0.5 / (0.5 + 4.0))


def test_where_no_pixel_reaches_its_threshold_the_one_nearest_to_it_is_outlined() -> None:
    anomaly_map, sure = blank(), np.full((64, 96), 8.0, np.float32)
    sure[:, 48:] = 3.0
    anomaly_map[10, 10] = 2.5
    anomaly_map[30, 60] = 2.0  # lower, but nearer to what counts at its place
    (region,) = to_defect_regions(anomaly_map, CALIBRATION, "a.png@0", "draem-1", NOW, sure)
    assert (region.box, region.score) == ((60, 30, 61, 31), 2.0)
    anomaly_map[:, :] = 1e-3
    anomaly_map[5, 6] = 2e-3
    (region,) = to_defect_regions(anomaly_map, CALIBRATION, "a.png@0", "draem-1", NOW, np.float32(1e6))
    assert region.box == (6, 5, 7, 6)


def test_the_label_mask_is_the_union_of_the_regions_and_only_of_this_frame() -> None:
    anomaly_map = blank()
    anomaly_map[10:14, 70:80] = 7
    anomaly_map[40:50, 5:8] = 9
    regions = labelled(anomaly_map)
    np.testing.assert_array_equal(label_mask(regions, 64, 96), anomaly_map > 3)
    assert not label_mask([], 64, 96).any()
    with pytest.raises(DataError, match="mask of 64 x 96 px"):
        label_mask(regions, 96, 64)


def test_on_a_normal_image_every_target_is_zero_and_only_hot_pixels_are_ignored() -> None:
    anomaly_map = blank()
    anomaly_map[10:14, 70:80] = 5
    target, weight = training_target(anomaly_map, verdict(anomaly_map, False, []), CALIBRATION)
    assert not target.any()
    np.testing.assert_array_equal(weight, np.where(anomaly_map > 3, 0.0, 1.0))
    assert target.dtype == weight.dtype == np.float32


def test_a_scratch_one_pixel_wide_keeps_its_core_inside_an_ignored_ring() -> None:
    anomaly_map = blank()
    anomaly_map[30, 20:60] = 8
    anomaly_map[50, 80] = 4  # above the low threshold, but no region
    regions = labelled(anomaly_map)
    target, weight = training_target(anomaly_map, verdict(anomaly_map, True, regions), CALIBRATION)
    core = anomaly_map == 8
    np.testing.assert_array_equal(target == 1, core)
    np.testing.assert_array_equal(weight[core], np.float32(regions[0].confidence))
    assert not weight[28:30, 20:60].any()
    assert not weight[31:33, 20:60].any()
    assert weight[50, 80] == 0
    assert (weight[26] == 1).all()
    assert not target[~core].any()


def test_a_region_drawn_by_a_person_is_believed_whatever_the_map_says() -> None:
    drawn = np.zeros((64, 96), np.bool_)
    drawn[20:30, 40:70] = True
    provenance = Provenance("draem-1", 3.0, None, "Ada", NOW.isoformat())
    region = DefectRegion("a.png@0#0", encode_mask(drawn), (40, 20, 70, 30), 300, 1.0, 0.0, None, provenance)
    target, weight = training_target(blank(), verdict(blank(), True, [region]), CALIBRATION)
    np.testing.assert_array_equal(target == 1, drawn)
    assert (weight[drawn] == 1).all()


def test_an_image_above_every_normal_peak_gets_a_region_that_covers_its_planted_defect() -> None:
    rng = np.random.default_rng(0)
    maps = [ndimage.gaussian_filter(rng.random((80, 120), np.float32), 2.0) for _ in range(30)]
    calibration = calibrate(((float(m.max()), m) for m in maps), 30, 0.05, 1e-4, 1e-3)
    anomaly_map = maps[0].copy()
    anomaly_map[33:40, 71:90] += 1
    assert anomaly_map.max() > calibration.image_threshold
    regions = to_defect_regions(anomaly_map, calibration, "a.png@0", "draem-1", NOW, calibration.image_threshold)
    assert regions[0].box == (71, 33, 90, 40)


def test_what_is_neither_found_nor_surely_normal_is_not_learnt() -> None:
    calibration = dataclasses.replace(CALIBRATION, map_scale=0.5)
    anomaly_map = blank()
    anomaly_map[10:20, 10:20] = 2  # below the low threshold, but four spreads above what is usual: perhaps a defect
    for is_anomalous in (False, True):
        target, weight = training_target(anomaly_map, verdict(anomaly_map, is_anomalous, []), calibration)
        assert not target.any()
        np.testing.assert_array_equal(weight, np.where(anomaly_map == 2, 0.0, 1.0))


def test_the_grown_part_of_a_region_is_believed_half() -> None:
    anomaly_map = blank()
    anomaly_map[10:20, 10:20] = 4
    anomaly_map[14, 14] = 9
    (region,) = regions = labelled(anomaly_map)
    target, weight = training_target(anomaly_map, verdict(anomaly_map, True, regions), CALIBRATION)
    assert (target[10:20, 10:20] == 1).all()
    assert weight[14, 14] == np.float32(region.confidence)
    assert weight[12, 12] == np.float32(region.confidence / 2)
