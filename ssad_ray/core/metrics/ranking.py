"""Threshold-free metrics of raw scores: how well positives rank above negatives.

Only the order of the scores matters; they are neither squashed nor rescaled. Every threshold here is meant as
"positive is what scores above it", as everywhere in this package.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssad_ray.errors import DataError

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Steps:
    """All that ranking metrics need to know: one entry per distinct score of a positive, highest first.

    Attributes:
        scores: (K,) the distinct scores.
        positives: (K,) positives with exactly this score.
        negatives_above: (K,) negatives with a higher score.
        negatives_reaching: (K,) negatives with this or a higher score.
        num_negatives: All negatives.
    """

    scores: Scores
    positives: NDArray[np.int64]
    negatives_above: NDArray[np.int64]
    negatives_reaching: NDArray[np.int64]
    num_negatives: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Threshold-free figures of one set of scores.

    Attributes:
        auroc: Probability that a positive outranks a negative, ties counting one half.
        average_precision: Sum of precision times recall gained, without interpolation.
        f1_max: Largest F1 over all thresholds.
        f1_threshold: The highest threshold that reaches it; optimistic, since it was chosen with the truth in hand.
    """

    auroc: float
    average_precision: float
    f1_max: float
    f1_threshold: float


def rank_scores(scores: Scores, is_positive: NDArray[np.bool_]) -> Ranking | None:
    """Compute the ranking metrics of `scores` (N,) against `is_positive` (N,); None unless both classes occur.

    Raises:
        DataError: A score is infinite or not a number.
    """
    if not np.isfinite(scores).all():
        raise DataError(
            f"{np.sum(~np.isfinite(scores))} of {scores.size} scores are not finite; leave those images out"
        )
    return rank_steps(find_steps(scores[is_positive], scores[~is_positive]))


def find_steps(positive_scores: Scores, negative_scores: Scores) -> Steps:
    """Reduce raw scores to their steps, exactly, sorting each score once."""
    levels, counts = np.unique(positive_scores, return_counts=True)
    ordered = np.sort(negative_scores)
    return Steps(
        scores=levels[::-1],
        positives=counts[::-1],
        negatives_above=ordered.size - np.searchsorted(ordered, levels, side="right")[::-1],
        negatives_reaching=ordered.size - np.searchsorted(ordered, levels, side="left")[::-1],
        num_negatives=ordered.size,
    )


def rank_steps(steps: Steps) -> Ranking | None:
    """Compute the ranking metrics; None unless both classes occur."""
    true_positives = np.cumsum(steps.positives)
    if not true_positives.size or not steps.num_negatives:
        return None
    num_positives = int(true_positives[-1])
    share = steps.positives / num_positives
    beaten = 1.0 - (steps.negatives_above + steps.negatives_reaching) / (2.0 * steps.num_negatives)
    flagged = true_positives + steps.negatives_reaching
    f1 = 2.0 * true_positives / (flagged + num_positives)
    best = int(np.argmax(f1))
    return Ranking(
        auroc=float(share @ beaten),
        average_precision=float(share @ (true_positives / flagged)),
        f1_max=float(f1[best]),
        f1_threshold=_just_below(steps.scores[best]),
    )


def _just_below(score: np.floating[Any]) -> float:
    """The next number down in the scores' own precision, so that `scores > threshold` still holds the score itself."""
    return float(np.nextafter(score, score.dtype.type(-np.inf)))
