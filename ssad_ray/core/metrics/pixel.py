"""Pixel-level metrics over images of any sizes, exactly or streaming, and the overlap of two masks.

AUPRO follows P. Bergmann et al., "Uninformed Students" (CVPR 2020), section 4: regions are 8-connected components of
the ground truth, every component weighs the same, and false positives are counted over all defect-free pixels.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.metrics.ranking import Ranking, Steps, find_steps, rank_steps
from ssad_ray.errors import DataError

FPR_LIMIT = 0.3
"""AUPRO integrates up to this false-positive rate."""
_DROPPED_BITS = 12
"""Trailing bits of a float32 that histogram bins ignore; left are the sign, the exponent and 11 bits of mantissa."""
# Bin numbers count from the lowest float32. Probabilities crowd below one, so between a half and one it is the distance
# from one that is binned: these bins mirror those from zero to a half, and push everything from one on upwards.
_ZERO_BIN = 1 << (31 - _DROPPED_BITS)
_ONE = 2 * 0x3F000000
_HALF_BIN = _ZERO_BIN + (0x3F000000 >> _DROPPED_BITS)
_ONE_BIN = _ZERO_BIN + (_ONE >> _DROPPED_BITS)
_PUSHED_BINS = (_ONE - 0x3F800000) >> _DROPPED_BITS
_NUM_BINS = 2 * _ZERO_BIN + _PUSHED_BINS
_PIXELS_AT_ONCE = 1 << 20
_WHOLE_REGION = 1 << 40
"""Fixed-point weight of one component: sums of integers do not depend on their order; room for 2^23 components."""


@dataclass(frozen=True, slots=True)
class PixelMetrics:
    """Threshold-free pixel-level figures; `aupro` is the area up to `FPR_LIMIT`, divided by it."""

    ranking: Ranking
    aupro: float


class PixelAccumulator(Protocol):
    """Pixels of many images, taken in one by one or in parts."""

    def update(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Take in one image: a finite (H, W) map and its true mask, all False for a good image."""

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen."""

    def result(self) -> PixelMetrics | None:
        """Return the metrics; None without any defective or without any defect-free pixel."""


class PixelScores:
    """Exact metrics; holds every pixel in memory, up to 12 bytes each, and sorts them once."""

    def __init__(self) -> None:
        self._background_scores: list[NDArray[np.float32]] = []
        self._defective_scores: list[NDArray[np.float32]] = []
        self._region_shares: list[NDArray[np.float64]] = []

    def update(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Take in one image: a finite (H, W) map and its true mask, all False for a good image."""
        _check(anomaly_map, mask)
        self._background_scores.append(anomaly_map[~mask])
        self._defective_scores.append(anomaly_map[mask])
        self._region_shares.append(_region_weights(mask))

    def merge(self, other: "PixelScores") -> None:
        """Take in everything that `other` has seen."""
        self._background_scores += other._background_scores
        self._defective_scores += other._defective_scores
        self._region_shares += other._region_shares

    def result(self) -> PixelMetrics | None:
        """Return the metrics; None without any defective or without any defect-free pixel."""
        if not self._background_scores:
            return None
        defective = np.concatenate(self._defective_scores)
        steps = find_steps(defective, np.concatenate(self._background_scores))
        level = np.searchsorted(steps.scores[::-1], defective)
        return _metrics(steps, np.bincount(level, np.concatenate(self._region_shares))[::-1])


class PixelHistogram:
    """Streaming metrics in 31 MB, whatever the number of images; the order of images and merges changes nothing.

    Bins are runs of neighbouring float32 values, so that no value range has to be known. A bin is narrower than one
    part in 2^11 of its distance from zero or, between 0.5 and 1, from one. The result is the exact one for maps whose
    scores tie within a bin. AUROC thus differs from that of the raw maps by at most half the share of (defective,
    defect-free) pixel pairs that meet in a bin, and AUPRO by at most half the same share with pixels weighted by
    component, divided by `FPR_LIMIT`; fixed-point weights add at most A / 2^41 for components of up to A pixels. The F1
    is what its threshold reaches.
    """

    def __init__(self) -> None:
        self._background = np.zeros(_NUM_BINS, np.int64)
        self._defective = np.zeros(_NUM_BINS, np.int64)
        self._weights = np.zeros(_NUM_BINS, np.int64)

    def update(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Take in one image: a finite (H, W) map and its true mask, all False for a good image."""
        _check(anomaly_map, mask)
        weights = np.rint(_region_weights(mask) * _WHOLE_REGION).astype(np.int64)
        rows = max(1, _PIXELS_AT_ONCE // mask.shape[1])
        for top in range(0, len(mask), rows):
            is_defective = mask[top : top + rows]
            bins = _bins(anomaly_map[top : top + rows])
            np.add.at(self._background, bins[~is_defective], 1)
            np.add.at(self._defective, bins[is_defective], 1)
            own, weights = np.split(weights, [np.count_nonzero(is_defective)])
            np.add.at(self._weights, bins[is_defective], own)

    def merge(self, other: "PixelHistogram") -> None:
        """Take in everything that `other` has seen."""
        self._background += other._background
        self._defective += other._defective
        self._weights += other._weights

    def result(self) -> PixelMetrics | None:
        """Return the metrics; None without any defective or without any defect-free pixel."""
        occupied = np.flatnonzero(self._defective)[::-1]
        reaching = np.cumsum(self._background[::-1])[::-1]
        steps = Steps(
            scores=_bin_floors(occupied),
            positives=self._defective[occupied],
            negatives_above=reaching[occupied] - self._background[occupied],
            negatives_reaching=reaching[occupied],
            num_negatives=int(reaching[0]),
        )
        return _metrics(steps, self._weights[occupied] / _WHOLE_REGION)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixel counts of a predicted against a true mask; overlaps of several images add up to the pooled one."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def iou(self) -> float | None:
        """Intersection over union; None where both masks are empty."""
        union = self.true_positives + self.false_positives + self.false_negatives
        return self.true_positives / union if union else None


def overlap(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> Overlap:
    """Compare two (H, W) masks."""
    common = int(np.count_nonzero(predicted & true))
    return Overlap(common, int(np.count_nonzero(predicted)) - common, int(np.count_nonzero(true)) - common)


def _metrics(steps: Steps, gained: NDArray[Any]) -> PixelMetrics | None:
    """`gained` (K,) holds, per step, the component fractions newly covered, summed over components."""
    ranking = rank_steps(steps)
    return None if ranking is None else PixelMetrics(ranking, _aupro(steps, gained))


def _aupro(steps: Steps, gained: NDArray[Any]) -> float:
    # Between two steps only false positives grow: the curve runs flat to the next step, then straight up along it.
    edges = np.column_stack([steps.negatives_above, steps.negatives_reaching]).ravel() / steps.num_negatives
    fpr = np.concatenate([[0.0], edges, [1.0]])
    pro = np.repeat(np.concatenate([[0.0], np.cumsum(gained) / gained.sum()]), 2)
    kept = fpr <= FPR_LIMIT
    at_limit = np.interp(FPR_LIMIT, fpr, pro)
    return float(np.trapezoid(np.append(pro[kept], at_limit), np.append(fpr[kept], FPR_LIMIT))) / FPR_LIMIT


def _region_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One weight per defective pixel in row-major order: 1 / area of its 8-connected component."""
    if not mask.any():
        return np.zeros(0)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return np.asarray(1.0 / stats[labels[mask], cv2.CC_STAT_AREA])


def _bins(anomaly_map: NDArray[np.float32]) -> NDArray[np.int32]:
    """Number each score's bin, in the order of the scores, from 0."""
    scores = anomaly_map + np.float32(0.0)  # makes -0.0 a 0.0
    plain = _flip_negatives(scores.view(np.int32)) >> _DROPPED_BITS
    mirrored = (_ONE - np.abs(np.float32(1.0) - scores).view(np.int32)) >> _DROPPED_BITS
    upper = np.where(scores < 1.0, mirrored, plain + _PUSHED_BINS)
    return np.where(scores < 0.5, plain, upper) + _ZERO_BIN


def _bin_floors(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    """The lowest score of each bin; of bins that lie between two float32 numbers, one of the two."""
    unpushed = np.where(bins < _ONE_BIN, bins, bins - _PUSHED_BINS) - _ZERO_BIN
    floors = _flip_negatives((unpushed << _DROPPED_BITS).astype(np.int32)).view(np.float32)
    is_mirrored = (bins >= _HALF_BIN) & (bins < _ONE_BIN)
    distance = (_ONE - (unpushed[is_mirrored] << _DROPPED_BITS)).astype(np.int32).view(np.float32)
    floors[is_mirrored] = np.float32(1.0) - distance
    return floors


def _flip_negatives(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Put the bits of float32 numbers, read as integers, in the order of the numbers; its own inverse."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _check(anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    shape = anomaly_map.shape
    if anomaly_map.dtype != np.float32 or mask.dtype != np.bool_ or mask.shape != shape or len(shape) != 2:
        raise DataError(
            f"pixel metrics take a float32 map and a bool mask of one shape (H, W); got {anomaly_map.dtype} {shape} "
            f"and {mask.dtype} {mask.shape}"
        )
    if not anomaly_map.size or not np.isfinite(anomaly_map).all():
        raise DataError(f"an anomaly map of shape {shape} is empty or holds values that are not finite; leave it out")
