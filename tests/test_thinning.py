"""Farthest-first thinning against the long way, and the axes that are looked at first."""

from itertools import pairwise

import pytest
import torch
from farthest_first import farthest_first

from ssad_ray.methods.thinning import principal_axes, spread_out


def features(num: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(seed))


def flat(num: int, noise: float) -> torch.Tensor:
    """Features of 24 channels near a plane of three axes."""
    return features(num, 3) @ features(3, 24, 1) + noise * features(num, 24, 2)


@pytest.mark.parametrize("num_items", [5, 300, 9000])
def test_spread_out_is_greedy_k_centre(num_items):
    items = features(num_items, 3)
    assert spread_out(items, 200).tolist() == farthest_first(items, 200)


@pytest.mark.parametrize(("noise", "num"), [(0.01, 3000), (0.15, 300)])
def test_each_is_the_farthest_where_few_axes_are_looked_at_first(noise, num):
    items = flat(5000, noise)
    assert principal_axes(items - items.mean(0))[1] <= 4
    places = spread_out(items, num, first=7).tolist()
    assert places[0] == 7
    items, apart = items.double(), torch.full((5000,), torch.inf, dtype=torch.float64)
    for before, place in pairwise(places):
        apart = torch.minimum(apart, ((items - items[before]) ** 2).sum(1))
        assert apart[place] >= apart.max() - 1e-6 * (items**2).sum(1).mean()


def test_all_items_are_chosen_where_as_many_are_wanted():
    places = spread_out(features(1500, 4), 10_000)
    assert sorted(places.tolist()) == list(range(1500))


def test_equal_items_are_each_chosen_once():
    places = spread_out(torch.ones(50, 4), 20)
    assert len(set(places.tolist())) == 20


def test_along_the_first_axes_no_distance_is_longer_and_most_are_as_long():
    items = flat(1000, 0.05)
    axes, num = principal_axes(items - items.mean(0))
    torch.testing.assert_close(axes.T @ axes, torch.eye(24), rtol=0, atol=1e-5)
    assert num <= 3
    whole, rough = torch.pdist(items), torch.pdist(items @ axes[:, :num])
    assert (rough <= whole * (1 + 1e-5)).all()
    assert (rough > 0.8 * whole).float().mean() > 0.9


def test_all_axes_are_looked_at_where_a_third_are_too_few():
    assert principal_axes(features(1000, 24))[1] == 24
