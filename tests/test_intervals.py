import numpy as np
import pytest
from scipy import stats

from ssad_ray.core.metrics.intervals import binomial_interval, bootstrap_mean


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (57, 64)])
def test_each_bound_leaves_exactly_its_tail(successes, trials):
    low, high = binomial_interval(successes, trials, 0.9)
    assert successes == 0 or stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.05)
    assert successes == trials or stats.binom.cdf(successes, trials, high) == pytest.approx(0.05)


def test_bounds_worked_out_by_hand():
    assert binomial_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert binomial_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert binomial_interval(0, 0) == (0.0, 1.0)


def test_the_bootstrap_interval_agrees_with_the_normal_one_on_many_values():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    half = 1.96 * values.std() / 20
    expected = (values.mean() - half, values.mean() + half)
    assert bootstrap_mean(values.tolist(), np.random.default_rng(1)) == pytest.approx(expected, abs=0.03)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).random(30).tolist()
    first, again, other = (bootstrap_mean(values, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first == again != other


def test_equal_values_leave_no_doubt_and_a_single_one_says_nothing():
    assert bootstrap_mean([0.5, 0.5, 0.5], np.random.default_rng(0)) == (0.5, 0.5)
    assert bootstrap_mean([0.5], np.random.default_rng(0)) is None
