"""Exact search and affinity, against brute force and known values."""

import numpy as np
import pytest
import torch
from farthest_first import farthest_first
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad_ray.methods.memory import Memory, PlaceMemory, affinity_weights
from ssad_ray.methods.thinning import principal_axes


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


@pytest.mark.parametrize("beside", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("num", [1, 10])
def test_the_nearest_are_exact_where_few_axes_are_looked_at_first(beside, num):
    plane = features(3, 0, 24)
    items = features(2000, 1, 3) @ plane + 0.01 * features(2000, 2, 24)
    queries = features(300, 3, 3) @ plane + beside * features(300, 4, 24)
    assert principal_axes(items - items.mean(0))[1] <= 3
    distances, found = Memory(items).nearest(queries, num)
    expected = torch.cdist(queries, items, compute_mode="donot_use_mm_for_euclid_dist").topk(num, largest=False)
    torch.testing.assert_close(distances, expected.values)
    torch.testing.assert_close(found, items[expected.indices])


def test_a_memory_of_equal_items_is_searched():
    distances, _ = Memory(torch.ones(50, 8)).nearest(torch.zeros(3, 8), 4)
    torch.testing.assert_close(distances, torch.full((3, 4), 8**0.5))


def test_a_memory_gives_back_its_items():
    items = features(45, 0)
    assert torch.equal(Memory(items).items, items)


@pytest.mark.parametrize("columns", [3, 8, 19])
def test_the_nearest_around_a_place_are_those_of_brute_force(columns):
    items, queries = features(5 * columns * 3, 0).view(5, columns, 3, 8), features(5 * columns, 1).view(5, columns, 8)
    distances, found = PlaceMemory(items).nearest(queries, 10)
    for row in range(5):
        for column in range(columns):
            around = items[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].flatten(0, 2)
            expected = (around - queries[row, column]).norm(dim=1).topk(10, largest=False)
            torch.testing.assert_close(distances[row, column], expected.values)
            torch.testing.assert_close(found[row, column], around[expected.indices])


def test_a_feature_that_is_remembered_of_its_place_is_at_no_distance():
    items = features(5 * 7 * 3, 0).view(5, 7, 3, 8) * 1e-3 + 1000.0
    distances, found = PlaceMemory(items).nearest(items[:, :, 1], 1)
    assert distances.max() == 0.0
    assert torch.equal(found[:, :, 0], items[:, :, 1])


def test_no_more_neighbours_are_asked_for_than_a_corner_has():
    distances, _ = PlaceMemory(features(2 * 6, 0).view(2, 6, 1, 8)).nearest(features(2 * 6, 1).view(2, 6, 8), 10)
    assert distances.shape == (2, 6, 6)
    assert distances.isfinite().all()


def test_places_share_a_memory_evenly_and_remember_what_is_farthest_apart():
    maps = features(9 * 2 * 3, 0, 4).view(9, 2, 3, 4)
    memory = PlaceMemory.of(maps, 25)
    assert memory.items.shape == (2, 3, 4, 4)
    for row in range(2):
        for column in range(3):
            seen = maps[:, row, column]
            first = int((seen - seen.mean(0)).norm(dim=1).argmin())
            assert torch.equal(memory.items[row, column], seen[farthest_first(seen, 4, first)])
    assert PlaceMemory.of(maps, 1).items.shape == (2, 3, 1, 4)
    assert PlaceMemory.of(maps, 1000).items.shape == (2, 3, 9, 4)


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
