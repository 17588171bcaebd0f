"""Exact search, farthest-first thinning and affinity, against brute force and known values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad_ray.methods.memory import Memory, affinity_weights, spread_out


def features(num: int, seed: int, channels: int = 8) -> torch.Tensor:
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(num_items=st.integers(1, 500), num_queries=st.integers(1, 40), num=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_nearest_are_those_of_brute_force(num_items, num_queries, num, seed):
    items, queries = features(num_items, seed), features(num_queries, seed + 1)
    distances, found = Memory(items).nearest(queries, num)
    expected = torch.cdist(queries, items, compute_mode="donot_use_mm_for_euclid_dist").topk(
        min(num, num_items), largest=False
    )
    torch.testing.assert_close(distances, expected.values)
    torch.testing.assert_close(found, items[expected.indices])


def test_search_spans_several_chunks_of_queries_and_items():
    items, queries = features(40_000, 0, 4), features(600, 1, 4)
    distances, _ = Memory(items).nearest(queries, 3)
    expected = torch.cdist(queries, items, compute_mode="donot_use_mm_for_euclid_dist").topk(3, largest=False).values
    torch.testing.assert_close(distances, expected)


def test_distances_far_from_the_origin_keep_their_digits():
    items = features(300, 0) * 1e-3 + 1000.0
    distances, _ = Memory(items).nearest(items[:50], 1)
    assert distances.max() == 0.0


def test_a_memory_gives_back_its_items():
    items = features(45, 0)
    assert torch.equal(Memory(items).items, items)


@pytest.mark.parametrize("num_items", [5, 300, 9000])
def test_spread_out_is_greedy_k_centre(num_items):
    items = features(num_items, 0, 3)
    chosen = [0]
    apart = torch.full((num_items,), torch.inf)
    for _ in range(min(num_items, 200) - 1):
        apart = torch.minimum(apart, ((items - items[chosen[-1]]) ** 2).sum(1))
        apart[chosen[-1]] = -1.0
        chosen.append(int(apart.argmax()))
    assert spread_out(items, 200).tolist() == chosen


def test_equal_items_are_each_chosen_once():
    places = spread_out(torch.ones(50, 4), 20)
    assert len(set(places.tolist())) == 20


def test_affinity_has_the_golden_values():
    def first(*distances: float) -> float:
        return float(affinity_weights(torch.tensor([distances], dtype=torch.float64), 20.0)[0, 0])

    assert first(*[1.0] * 10) == pytest.approx(0.1)
    assert first(0.9, *[1.0] * 9) == pytest.approx(0.2503, abs=1e-4)
    assert first(0.5, *[1.0] * 9) == pytest.approx(0.9993, abs=1e-4)
    assert first(0.5, *[1.0] * 29) == pytest.approx(1 / 30)


def test_affinity_of_exact_matches_is_finite():
    weights = affinity_weights(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), 20.0)
    np.testing.assert_allclose(weights[0], 1 / 3, rtol=1e-6)
    assert weights[1, 0] > 0.99
