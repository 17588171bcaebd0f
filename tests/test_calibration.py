import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssad_ray.core.calibration import calibrate, conformal_threshold, p_value, reaching_outlines
from ssad_ray.core.records import Calibration
from ssad_ray.errors import ConfigError, DataError

Map = NDArray[np.float32]


def normal_maps(num: int, seed: int = 0) -> list[Map]:
    rng = np.random.default_rng(seed)
    return [rng.gamma(2.0, size=(40 + 7 * (i % 3), 60 + 11 * (i % 2))).astype(np.float32) for i in range(num)]


def calibrated(maps: Sequence[Map], level: float = 0.05, high: float = 1e-3, low: float = 1e-2) -> Calibration:
    return calibrate(((float(m.max()), m) for m in maps), len(maps), level, high, low)


def mean_fpr(maps: Sequence[Map], threshold: float) -> float:
    return float(np.mean([(m > threshold).mean() for m in maps]))


@pytest.mark.parametrize(
    ("n", "level", "rank", "promised"),
    [(10, 0.01, 10, 1 / 11), (19, 0.05, 19, 1 / 20), (99, 0.05, 95, 5 / 100), (109, 0.01, 109, 1 / 110)],
)
def test_the_image_threshold_has_the_hand_computed_rank(n: int, level: float, rank: int, promised: float) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1)).tolist()
    threshold, level_of_threshold = conformal_threshold(scores, level)
    assert threshold == rank
    assert level_of_threshold == pytest.approx(promised)


@pytest.mark.parametrize(("n", "level"), [(10, 0.01), (19, 0.05), (50, 0.1), (37, 0.05)])
def test_false_alarms_stay_at_or_below_the_promised_level_and_near_it(n: int, level: float) -> None:
    repetitions = 20_000
    scores = np.random.default_rng(7).standard_t(df=2, size=(repetitions, n + 1))
    results = [conformal_threshold(row[:n].tolist(), level) for row in scores]
    thresholds, levels = np.array(results).T
    promised = float(levels[0])
    rate = float((scores[:, n] > thresholds).mean())
    assert abs(rate - promised) <= 4 * math.sqrt(promised * (1 - promised) / repetitions)


def test_ten_images_support_nine_percent_and_the_rule_says_so() -> None:
    calibration = calibrated(normal_maps(10), level=0.01)
    assert calibration.false_alarm_level == pytest.approx(1 / 11)
    assert calibration.image_threshold == max(calibration.normal_scores)
    assert "at most 9.09 %" in calibration.rule
    assert "the asked 1 % is not supported and needs at least 99 images" in calibration.rule


def test_a_supported_level_is_stated_without_reservation() -> None:
    calibration = calibrated(normal_maps(99), level=0.01)
    assert calibration.false_alarm_level == 0.01
    assert "at most 1 % (asked: 1 %)" in calibration.rule
    assert "not supported" not in calibration.rule


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(-1, 10), st.floats(0.01, 0.99))
def test_an_image_is_above_the_threshold_exactly_when_its_p_value_is_at_or_below_the_level(
    scores: list[int], score: int, level: float
) -> None:
    maps = [np.full((2, 3), s, np.float32) for s in scores]
    calibration = calibrate(zip(scores, maps, strict=True), len(maps), level, 1e-3, 1e-2)
    expected = (1 + sum(s >= score for s in scores)) / (len(scores) + 1)
    assert p_value(calibration, score) == expected
    assert (score > calibration.image_threshold) == (expected <= calibration.false_alarm_level)


def test_pixel_thresholds_are_the_lowest_that_keep_the_mean_false_positive_rate() -> None:
    maps = normal_maps(12)
    calibration = calibrated(maps)
    for threshold, rate in ((calibration.pixel_threshold_high, 1e-3), (calibration.pixel_threshold_low, 1e-2)):
        assert mean_fpr(maps, threshold) <= rate
        assert mean_fpr(maps, float(np.nextafter(np.float32(threshold), np.float32(0)))) > rate
    assert calibration.pixel_threshold_low < calibration.pixel_threshold_high <= calibration.image_threshold


def test_each_image_counts_the_same_whatever_its_size() -> None:
    small, large = np.zeros((10, 20), np.float32), np.zeros((100, 200), np.float32)
    small[:2] = 1.0
    calibration = calibrated([small, large], level=0.4, high=0.05, low=0.11)
    # 20 of 200 pixels of one of two images: a mean rate of 10 %, though only 0.1 % of all pixels.
    assert calibration.pixel_threshold_high == pytest.approx(1.0)
    assert calibration.pixel_threshold_low == 0.0


def test_the_order_of_the_images_changes_nothing() -> None:
    maps = normal_maps(9)
    forward, backward = calibrated(maps), calibrated(maps[::-1])
    assert forward.pixel_threshold_high == backward.pixel_threshold_high
    assert forward.min_area_px == backward.min_area_px
    assert forward.map_scale == pytest.approx(backward.map_scale)


def test_of_many_images_thresholds_are_still_exact() -> None:
    rng = np.random.default_rng(3)
    maps = [rng.standard_normal((20, 30)).astype(np.float32) for _ in range(400)]
    calibration = calibrated(maps, level=0.5, high=2.001e-3, low=2.001e-2)
    descending = np.sort(np.concatenate([m.ravel() for m in maps]))[::-1]
    assert calibration.pixel_threshold_low == descending[int(2.001e-2 * descending.size)]
    assert calibration.pixel_threshold_high == descending[int(2.001e-3 * descending.size)]


def test_announcing_more_images_than_come_changes_nothing() -> None:
    scored = [(float(index), m) for index, m in enumerate(normal_maps(5))]
    assert calibrate(iter(scored), 9, 0.2, 1e-3, 1e-2) == calibrate(scored, 5, 0.2, 1e-3, 1e-2)


def test_hot_outliers_cannot_lift_the_seed_threshold_above_the_peaks_at_the_image_level() -> None:
    maps = normal_maps(20)
    maps[3] = maps[3] + np.float32(100)
    calibration = calibrated(maps, level=0.1)
    assert calibration.image_threshold < 50
    assert (
        calibration.pixel_threshold_low
        < calibration.pixel_threshold_high
        <= np.nextafter(np.float32(calibration.image_threshold), np.float32(np.inf))
    )


@settings(max_examples=30)
@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 4))
def test_constant_maps_give_finite_distinct_thresholds_that_no_normal_pixel_passes(value: float, num: int) -> None:
    maps = [np.full((5, 8), value, np.float32)] * num
    calibration = calibrated(maps)
    assert calibration.pixel_threshold_low < calibration.pixel_threshold_high
    assert mean_fpr(maps, calibration.pixel_threshold_low) == 0
    assert calibration.min_area_px == 1
    assert calibration.map_scale > 0
    assert calibration.map_location == value


def test_the_spread_follows_the_maps_and_not_their_offset() -> None:
    maps = normal_maps(6)
    plain, moved = calibrated(maps), calibrated([m + np.float32(10) for m in maps])
    stretched = calibrated([m * np.float32(3) for m in maps])
    assert moved.map_location == pytest.approx(plain.map_location + 10, rel=1e-5)
    assert moved.map_scale == pytest.approx(plain.map_scale, rel=1e-4)
    assert stretched.map_scale == pytest.approx(3 * plain.map_scale, rel=1e-4)


def test_the_minimum_area_is_learnt_from_false_pieces_and_bounded_by_the_average_image() -> None:
    maps = [np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60) * 0 for _ in range(10)]
    for m in maps:
        m[5:7, 5:8] = 1.0
    assert calibrated(maps, level=0.2, high=1e-3, low=2e-2).min_area_px == 6
    one_odd = [np.zeros((40, 60), np.float32) for _ in range(10)]
    one_odd[0][10:20, 10:22] = 1.0
    assert calibrated(one_odd, level=0.05, high=1e-3, low=2e-2).min_area_px == 12


@pytest.mark.parametrize(("high", "low"), [(0.01, 0.001), (0.01, 0.01), (0.0, 0.1), (0.1, 1.0)])
def test_rates_that_do_not_rise_are_refused(high: float, low: float) -> None:
    with pytest.raises(ConfigError, match="must rise from seeds to growth"):
        calibrated(normal_maps(3), high=high, low=low)


def test_what_cannot_be_calibrated_is_refused_with_its_reason() -> None:
    maps = normal_maps(3)
    with pytest.raises(DataError, match="no held-out anomaly-free image"):
        calibrate([], 3, 0.01, 1e-4, 1e-3)
    with pytest.raises(DataError, match="3 held-out images came, at most 2 were announced"):
        calibrate([(1.0, each) for each in maps], 2, 0.01, 1e-4, 1e-3)
    with pytest.raises(DataError, match="scores must be finite; got 1"):
        calibrate([(1.0, maps[0]), (math.nan, maps[1])], 2, 0.01, 1e-4, 1e-3)
    with pytest.raises(DataError, match=r"held-out map 1 must be .* got shape \(2, 3\) with 6 values"):
        calibrate([(1.0, maps[0]), (2.0, np.full((2, 3), np.nan, np.float32))], 2, 0.01, 1e-4, 1e-3)
    with pytest.raises(ConfigError, match=r"between 0 and 1; got 1\.5"):
        calibrated(maps, level=1.5)


def planted_map(noise: float, body_value: float) -> tuple[Map, NDArray[np.bool_]]:
    """A defect whose edge is bright and whose body is faint."""
    rng = np.random.default_rng(3)
    values, mask = rng.normal(0.0, noise, (60, 80)).astype(np.float32), np.zeros((60, 80), bool)
    mask[20:40, 30:60] = True
    values[mask] += body_value
    values[20:22, 30:60] += 20.0
    return values, mask


def test_the_growth_threshold_goes_down_to_where_bodies_are_filled_and_seeds_stay() -> None:
    plain = calibrated([m + np.float32(0) for m in normal_maps(20)], low=1e-3, high=1e-4)
    values, mask = planted_map(noise=0.5, body_value=0.9 * plain.pixel_threshold_low)
    assert (values > plain.pixel_threshold_low)[mask].mean() < 0.5
    lowered = reaching_outlines(plain, values.ravel(), mask.ravel())
    found = values > lowered.pixel_threshold_low
    assert (found & mask).sum() / (found | mask).sum() > 0.9
    assert lowered.pixel_threshold_high == plain.pixel_threshold_high
    assert "Regions grow further" in lowered.rule


def test_no_other_threshold_outlines_plants_better_by_brute_force() -> None:
    plain = calibrated([m * np.float32(0.01) for m in normal_maps(20)])
    values, mask = planted_map(noise=1.0, body_value=1.5)
    values = np.round(values, 1)
    low = reaching_outlines(replace(plain, pixel_threshold_low=9.0), values.ravel(), mask.ravel()).pixel_threshold_low

    def overlap(threshold: float) -> float:
        return float(((values > threshold) & mask).sum() / ((values > threshold) | mask).sum())

    assert overlap(low) == max(overlap(float(threshold)) for threshold in np.unique(values) - np.float32(0.05))


def test_growth_is_never_made_stricter_and_stays_clear_of_normal_values() -> None:
    plain = calibrated(normal_maps(20))
    values, mask = planted_map(noise=0.0, body_value=100.0)
    assert reaching_outlines(plain, values.ravel(), mask.ravel()) == plain
    assert reaching_outlines(plain, values.ravel(), np.zeros(values.size, bool)) == plain
    blind = np.random.default_rng(0).normal(plain.map_location, plain.map_scale, 4000).astype(np.float32)
    lowered = reaching_outlines(plain, blind, np.arange(4000) < 1000)
    assert lowered.pixel_threshold_low >= plain.map_location + 3 * plain.map_scale - 1e-6
