"""How far a figure measured on few images can be trusted."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided bounds of a success probability; (0, 1) without trials.

    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits" (Biometrika, 1934).
    """
    if not trials:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def bootstrap_mean(
    values: Sequence[float], rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = 2000
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean of `values`; None below two values."""
    if len(values) < 2:
        return None
    resampled = stats.bootstrap(
        (np.asarray(values, np.float64),),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, 10_000_000 // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    )
    return float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)
