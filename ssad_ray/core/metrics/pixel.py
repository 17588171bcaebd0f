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
KEY_BITS = 20
"""Leading bits of a float32 that tell histogram bins apart: sign, exponent and 11 bits of mantissa."""
_NUM_BINS = 1 << KEY_BITS
_DROPPED_BITS = 32 - KEY_BITS
_WHOLE_REGION = 1 << 36
"""Fixed-point weight of one component: sums of integers do not depend on their order, room for 2^27 components."""


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
    """Streaming metrics in 24 MB, whatever the number of images; the order of images and merges changes nothing.

    A bin is a run of neighbouring float32 values that agree in their leading `KEY_BITS` bits, so that no value range
    has to be known: a score is rounded down by less than one part in 2^11 (of its magnitude). The result is the exact
    one for maps so rounded. AUROC thus differs from the unrounded one by at most half the share of
    (defective, defect-free) pixel pairs that fall into a common bin, and AUPRO by at most half of the same share with
    pixels weighted by component, divided by `FPR_LIMIT`; fixed-point weights add less than 1e-6.
    """

    def __init__(self) -> None:
        self._background = np.zeros(_NUM_BINS, np.int64)
        self._defective = np.zeros(_NUM_BINS, np.int64)
        self._weights = np.zeros(_NUM_BINS, np.int64)

    def update(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Take in one image: a finite (H, W) map and its true mask, all False for a good image."""
        _check(anomaly_map, mask)
        bins = _bins(anomaly_map)
        first = int(bins.min())
        bins -= first
        counts = np.bincount(bins.ravel())
        seen = slice(first, first + counts.size)
        self._background[seen] += counts
        if mask.any():
            inside = bins[mask]
            defective = np.bincount(inside, minlength=counts.size)
            weights = np.bincount(inside, _region_weights(mask) * _WHOLE_REGION, minlength=counts.size)
            self._background[seen] -= defective
            self._defective[seen] += defective
            self._weights[seen] += np.rint(weights).astype(np.int64)

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

    @property
    def dice(self) -> float | None:
        """Twice the intersection over the sum of both areas; None where both masks are empty."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else None


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
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return np.asarray(1.0 / stats[labels[mask], cv2.CC_STAT_AREA])


def _bins(anomaly_map: NDArray[np.float32]) -> NDArray[np.int32]:
    """Number the bins in the order of the scores, from 0."""
    # A float's bits, read as an integer, are in order already, but backwards for negatives; adding zero makes -0.0 0.0.
    bits = (anomaly_map + np.float32(0.0)).view(np.int32)
    return (_flip_negatives(bits) >> _DROPPED_BITS) + _NUM_BINS // 2


def _bin_floors(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    """The lowest score of each bin."""
    return _flip_negatives(((bins - _NUM_BINS // 2) << _DROPPED_BITS).astype(np.int32)).view(np.float32)


def _flip_negatives(bits: NDArray[np.int32]) -> NDArray[np.int32]:
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
