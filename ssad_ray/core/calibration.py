"""Held-out anomaly-free images, as they are and with planted defects -> thresholds.

Image level: split conformal prediction (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005).
Pixel level: the mean over images of each image's false-positive rate, as in AUPIMO (Bertoldo et al., 2024), so that
a large image speaks no louder than a small one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.records import Calibration
from ssad_ray.core.regions import check_map
from ssad_ray.errors import ConfigError, DataError

AREA_QUANTILE = 0.99
CLEAR_OF_NORMAL = 3.0
"""Spreads of normal maps above their usual value that a region's pixels have at least."""


def calibrate(
    scored_maps: Iterable[tuple[float, NDArray[np.float32]]],
    num_images: int,
    false_alarm_level: float,
    pixel_fpr_high: float,
    pixel_fpr_low: float,
) -> Calibration:
    """Learn thresholds from held-out anomaly-free images.

    The image threshold keeps false alarms at or below the asked level for exchangeable images, or at the lowest level
    that so few images support; `false_alarm_level` of the result is what is promised, and an image scores above the
    threshold exactly when its `p_value` is at or below it.

    The high pixel threshold is never above what the maps' own peaks reach at that level, so that an image judged
    anomalous nearly always has a pixel to seed a region. The low one is strictly below it; where maps are so flat that
    nothing lies between, the high one is moved up by the resolution of a float32.

    `min_area_px` is the 99 % quantile of the areas of what stands above the value of rate `pixel_fpr_low` on these
    normal images, but no more than all that stands above it on the average one: of a few pieces the quantile is the
    largest, and one odd image would then hide small defects for good.

    Args:
        scored_maps: Score and anomaly map, (H, W) float32, of each held-out image, by a model that never saw it; of any
            sizes, read once. What is kept in memory are the most anomalous pixels, `num_images * pixel_fpr_low` maps'
            worth of them, and as many again before they are sorted out.
        num_images: How many come at most.
        false_alarm_level: Asked image-level false-alarm probability.
        pixel_fpr_high: Mean per-image pixel false-positive rate of the high threshold.
        pixel_fpr_low: The same for the low threshold; larger.

    Raises:
        ConfigError: The rates are not 0 < high < low < 1, or the level is outside (0, 1).
        DataError: No image, more than `num_images`, or a score or a map that is not finite.
    """
    _check_rates(false_alarm_level, pixel_fpr_high, pixel_fpr_low)
    tail = _Tail(budget=num_images * pixel_fpr_low)
    scores: list[float] = []
    peaks: list[float] = []
    moments: list[tuple[float, float, float]] = []
    for score, anomaly_map in scored_maps:
        check_map(anomaly_map, f"held-out map {len(peaks)}")
        tail.add(anomaly_map)
        scores.append(float(score))
        peaks.append(float(anomaly_map.max()))
        moments.append((float(np.median(anomaly_map)), *_moments(anomaly_map)))
    _check_scores(scores, num_images)
    tail.settle()
    image_threshold, promised_level = conformal_threshold(scores, false_alarm_level)
    peak_threshold, _ = conformal_threshold(peaks, false_alarm_level)
    false_growth = tail.threshold(len(scores) * pixel_fpr_low)
    high = min(tail.threshold(len(scores) * pixel_fpr_high), peak_threshold)
    low = min(false_growth, high)
    if high == low:
        high = float(np.nextafter(np.float32(low), np.float32(np.inf)))
    location, scale = _location_and_scale(moments)
    return Calibration(
        rule=_rule(len(scores), false_alarm_level, promised_level, pixel_fpr_high, pixel_fpr_low),
        false_alarm_level=promised_level,
        num_normals=len(scores),
        image_threshold=image_threshold,
        pixel_threshold_high=high,
        pixel_threshold_low=low,
        min_area_px=_min_area_px(tail.component_areas(false_growth), len(scores)),
        map_location=location,
        map_scale=scale,
        normal_scores=tuple(sorted(scores)),
    )


def reaching_outlines(
    calibration: Calibration, values: NDArray[np.float32], is_planted: NDArray[np.bool_]
) -> Calibration:
    """Lower the threshold of growth to where planted defects are outlined best, where that is lower.

    The false-positive rate alone says how rare a value is on normal images, not how far a defect reaches: what is next
    to a seed may be common elsewhere. Best is the largest intersection over union of all plants with what stands above
    the threshold. It stays clear of normal values, for the best outline of a map that sees nothing is all of the map.

    Args:
        calibration: From held-out normal images.
        values: (N,) map values of normal frames with planted defects, by models that never saw the frames.
        is_planted: (N,) bool, whether a pixel is part of a plant.
    """
    num_planted = np.count_nonzero(is_planted)
    if not num_planted:
        return calibration
    order = np.argsort(-values)
    ranked, num_found = values[order], np.cumsum(is_planted[order])
    overlap = num_found / (num_planted + np.arange(1, len(values) + 1) - num_found)
    between = (ranked[:-1] + ranked[1:]) / 2  # a threshold lies between two values that differ
    best = float(between[np.argmax(np.where(ranked[:-1] > between, overlap[:-1], 0.0))])
    low = max(best, calibration.map_location + CLEAR_OF_NORMAL * calibration.map_scale)
    if low >= calibration.pixel_threshold_low:
        return calibration
    rule = f"{calibration.rule} Regions grow further, to where defects planted on these images are outlined best."
    return replace(calibration, pixel_threshold_low=low, rule=rule)


def conformal_threshold(scores: Sequence[float], false_alarm_level: float) -> tuple[float, float]:
    """Return the threshold above which an exchangeable score falls with at most the promised level, and that level.

    The level is the largest multiple of `1 / (n + 1)` at or below the asked one, or `1 / (n + 1)` where that is more
    than was asked: then the threshold is the largest score.
    """
    n = len(scores)
    # A level given as a decimal fraction may fall a rounding error short of the multiple that is meant.
    num_above = max(1, min(n, math.floor((n + 1) * false_alarm_level + 1e-9)))
    return float(sorted(scores)[n - num_above]), num_above / (n + 1)


def p_value(calibration: Calibration, score: float) -> float:
    """Return `(1 + #{normal scores >= score}) / (n + 1)`, the conformal p-value of being normal."""
    num_below = int(np.searchsorted(calibration.normal_scores, score, side="left"))
    return (1 + calibration.num_normals - num_below) / (calibration.num_normals + 1)


@dataclass
class _Tail:
    """The most anomalous pixels of all images, each weighted by one over its image's size.

    Attributes:
        budget: Total weight to keep, in images; thresholds for any smaller weight are exact.
        shapes: Of each image.
        values: Map values of the pixels, falling where they are settled.
        pixels: Their indices in the flat map.
        images: Which image they are of.
        num_settled: How many pixels there were when they were last sorted and those that do not matter let go.
        floor: No smaller value matters any more.
    """

    budget: float
    shapes: list[tuple[int, int]] = field(default_factory=list)
    values: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    images: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    num_settled: int = 0
    floor: float = -math.inf

    def add(self, anomaly_map: NDArray[np.float32]) -> None:
        """Take an image in."""
        flat = anomaly_map.ravel()
        num_candidates = min(flat.size, math.floor(self.budget * flat.size) + 1)
        pixels = np.argpartition(flat, flat.size - num_candidates)[flat.size - num_candidates :]
        pixels = pixels[flat[pixels] > self.floor]
        self.values = np.concatenate((self.values, flat[pixels]))
        self.pixels = np.concatenate((self.pixels, pixels))
        self.images = np.concatenate((self.images, np.full(len(pixels), len(self.shapes))))
        height, width = anomaly_map.shape
        self.shapes.append((height, width))
        if len(self.values) > 2 * self.num_settled:
            self.settle()

    def settle(self) -> None:
        """Sort the pixels and let go of what the budget does not cover."""
        order = np.argsort(-self.values)
        self.values, self.pixels, self.images = self.values[order], self.pixels[order], self.images[order]
        kept = np.searchsorted(self._weights(), self.budget, side="right") + 1
        if kept <= len(self.values):
            self.floor = float(self.values[kept - 1])
        self.values, self.pixels, self.images = self.values[:kept], self.pixels[:kept], self.images[:kept]
        self.num_settled = len(self.values)

    def threshold(self, weight: float) -> float:
        """Return the smallest value with at most this weight strictly above it; of a settled tail."""
        return float(self.values[np.searchsorted(self._weights(), weight, side="right")])

    def component_areas(self, threshold: float) -> list[int]:
        """Return the areas of all images' 8-connected pieces above a threshold that `threshold` gave."""
        areas: list[int] = []
        is_above = self.values > threshold
        for image in np.unique(self.images[is_above]):
            mask = np.zeros(self.shapes[image], np.uint8)
            mask.flat[self.pixels[is_above & (self.images == image)]] = 1
            stats = cv2.connectedComponentsWithStats(mask, connectivity=8)[2]
            areas += stats[1:, cv2.CC_STAT_AREA].tolist()
        return areas

    def _weights(self) -> NDArray[np.float64]:
        sizes = np.array([height * width for height, width in self.shapes])
        cumulated: NDArray[np.float64] = np.cumsum(1.0 / sizes[self.images])
        return cumulated


def _moments(anomaly_map: NDArray[np.float32]) -> tuple[float, float]:
    # einsum adds up in double precision without a copy of the map in it.
    squares = np.einsum("hw,hw->", anomaly_map, anomaly_map, dtype=np.float64)
    return float(anomaly_map.mean(dtype=np.float64)), float(squares) / anomaly_map.size


def _min_area_px(areas: Sequence[int], num_images: int) -> int:
    if not areas:
        return 1
    return max(1, math.ceil(min(float(np.quantile(areas, AREA_QUANTILE)), sum(areas) / num_images)))


def _location_and_scale(moments: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Median of the maps' medians, and the root mean square deviation from it; each map counts the same."""
    medians, means, squares = np.array(moments).T
    location = float(np.median(medians))
    variance = float(squares.mean() - 2.0 * location * means.mean() + location**2)
    # Constant maps have no spread; what remains is the resolution of their numbers.
    resolution = max(float(np.finfo(np.float32).eps) * abs(location), float(np.finfo(np.float32).tiny))
    return location, max(math.sqrt(max(variance, 0.0)), resolution)


def _rule(num_normals: int, asked: float, promised: float, pixel_fpr_high: float, pixel_fpr_low: float) -> str:
    if promised > asked + 1e-9:
        num_needed = math.ceil(1.0 / asked - 1e-9) - 1
        level = (
            f"at most {100 * promised:.3g} %, the lowest level that {num_normals} images support: the asked "
            f"{100 * asked:.3g} % is not supported and needs at least {num_needed} images"
        )
    else:
        level = f"at most {100 * promised:.3g} % (asked: {100 * asked:.3g} %)"
    return (
        f"Split-conformal on {num_normals} held-out anomaly-free images: the probability that a normal image is called "
        f"anomalous is {level}; pixel thresholds at mean per-image false-positive rates of {pixel_fpr_high:g} (seeds, "
        f"and not above the maps' peaks at the image level) and {pixel_fpr_low:g} (growth)."
    )


def _check_rates(false_alarm_level: float, pixel_fpr_high: float, pixel_fpr_low: float) -> None:
    if not 0.0 < pixel_fpr_high < pixel_fpr_low < 1.0:
        raise ConfigError(
            f"pixel false-positive rates must rise from seeds to growth: 0 < pixel_fpr_high < pixel_fpr_low < 1; "
            f"got {pixel_fpr_high} and {pixel_fpr_low}"
        )
    if not 0.0 < false_alarm_level < 1.0:
        raise ConfigError(f"false_alarm_level must lie between 0 and 1; got {false_alarm_level}")


def _check_scores(scores: Sequence[float], num_images: int) -> None:
    if not scores:
        raise DataError("no held-out anomaly-free image to calibrate on; at least one is needed, 99 for a level of 1 %")
    if len(scores) > num_images:
        raise DataError(f"{len(scores)} held-out images came, at most {num_images} were announced")
    if not np.isfinite(scores).all():
        raise DataError(f"held-out scores must be finite; got {int((~np.isfinite(scores)).sum())} that are not")
