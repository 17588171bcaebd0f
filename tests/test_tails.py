"""How rare a value is, against known distributions."""

import numpy as np
import pytest

from ssad_ray.core.rng import generator
from ssad_ray.core.tails import NormalTail
from ssad_ray.errors import DataError


def exponential(num: int, seed: int = 0) -> np.ndarray:
    return generator(seed, "values").exponential(2.0, num).astype(np.float32)


def test_rarity_is_the_log_of_the_share_that_reaches_a_value():
    tail = NormalTail.of(exponential(100_000))
    values = np.array([0.0, 1.0, 4.0, 8.0, 12.0], np.float32)
    np.testing.assert_allclose(tail.rarity(values), values / (2 * np.log(10)), atol=0.03)


def test_beyond_the_table_rarity_goes_on_rising_as_an_exponential_does():
    tail = NormalTail.of(exponential(100_000))
    values = np.array([16.0, 24.0, 40.0], np.float32)
    np.testing.assert_allclose(tail.rarity(values), values / (2 * np.log(10)), rtol=0.2)


def test_of_a_heavy_tail_far_values_are_as_rare_as_they_are():
    uniform = generator(0, "values").random(200_000)
    tail = NormalTail.of((uniform**-0.25).astype(np.float32))  # reached by x**-4 of all: a shape of 1/4
    assert tail.shape == pytest.approx(0.25, abs=0.08)
    values = np.array([3.0, 6.0, 12.0, 24.0], np.float32)
    np.testing.assert_allclose(tail.rarity(values), 4 * np.log10(values), rtol=0.15)


def test_a_tail_that_ends_is_taken_to_go_on_as_an_exponential():
    tail = NormalTail.of(generator(0, "values").random(100_000).astype(np.float32))
    assert tail.shape == 0
    assert np.diff(tail.rarity(np.array([1.0, 1.1, 1.2], np.float32))).min() > 1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_units_of_maps_do_not_matter(scale):
    values = exponential(5000)
    rarity = NormalTail.of(scale * values - 7 * scale).rarity(scale * values - 7 * scale)
    np.testing.assert_allclose(rarity, NormalTail.of(values).rarity(values), rtol=1e-3, atol=1e-3)


def test_rarity_never_falls_and_keeps_the_shape():
    tail = NormalTail.of(np.repeat(exponential(50), 40))
    values = np.linspace(-5, 50, 600, dtype=np.float32).reshape(20, 30)
    rarity = tail.rarity(values)
    assert rarity.shape == (20, 30)
    assert rarity.dtype == np.float32
    assert (np.diff(rarity.ravel()) >= 0).all()
    assert rarity.ravel()[0] == 0


def test_equal_values_are_not_rare_and_what_is_above_them_is_finite():
    tail = NormalTail.of(np.full(1000, 3.0, np.float32))
    assert tail.rarity(np.array([2.0, 3.0], np.float32)).tolist() == [0.0, 0.0]
    above = tail.rarity(np.array([4.0], np.float32))
    assert above > 10
    assert np.isfinite(above)


def test_a_stored_tail_is_the_same():
    tail = NormalTail.of(exponential(1000))
    again = NormalTail.from_state(tail.state())
    np.testing.assert_array_equal(again.rarity(exponential(500, 1)), tail.rarity(exponential(500, 1)))


def test_too_few_or_broken_values_are_refused():
    for values in (np.zeros(39, np.float32), np.full(100, np.nan, np.float32)):
        with pytest.raises(DataError, match="at least 40 are needed, all finite"):
            NormalTail.of(values)
