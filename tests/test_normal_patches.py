"""The head of methods that compare features: what is usual, and how patches become pixels."""

from functools import partial

import numpy as np
import pytest
import torch

from ssad_ray.core.rng import generator
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.memory import Memory, affinity_distance
from ssad_ray.methods.normal_patches import NormalPatches, frames_to_remember
from ssad_ray.methods.patch_maps import gaussian_kernel, spread_over_pixels

NEAREST = partial(affinity_distance, num=1, sharpest=20.0, of_features=True)


def maps(num: int = 12, noise_hw: float | torch.Tensor = 1.0) -> torch.Tensor:
    """Maps of one part, 4x6 places of 8 channels, with noise."""
    chance = torch.Generator().manual_seed(0)
    part = 10 * torch.randn(4, 6, 8, generator=chance)
    noise = torch.as_tensor(noise_hw).expand(4, 6)[..., None]
    return part + noise * torch.randn(num, 4, 6, 8, generator=chance)


def normal(features: torch.Tensor, has_places: bool, num: int = 240) -> NormalPatches:
    return NormalPatches.of(features, has_places, num, NEAREST, generator(0, "memory"))


@pytest.mark.parametrize("has_places", [True, False])
def test_unseen_good_frames_are_about_as_far_as_usual(has_places):
    features = maps(24)
    ratios = normal(features[:20], has_places).ratios(features[20:])
    assert ratios.shape == (4, 4, 6)
    assert 0.8 < ratios.mean() < 1.2


def test_usual_is_the_mean_distance_of_either_half_from_one_memory_of_the_other():
    features, chance = maps(), generator(0, "memory")
    halves = features[::2], features[1::2]
    memories = [Memory.of(each, 20, chance) for each in halves[::-1]]
    distances = [NEAREST(frame, memory) for asked, memory in zip(halves, memories, strict=True) for frame in asked]
    usual = normal(features, has_places=False, num=20).state()["usual"]
    np.testing.assert_allclose(usual, torch.stack(distances).mean())


def test_what_is_usual_is_usual_at_a_place():
    noise = torch.ones(4, 6)
    noise[:, 3:] = 5.0
    features = maps(24, noise)
    for has_places, low, high in ((True, 0.8, 1.3), (False, 2.5, 6.0)):
        ratios = normal(features[:20], has_places).ratios(features[20:])
        assert low < ratios[:, :, 4:].mean() / ratios[:, :, :2].mean() < high


def test_a_feature_of_another_place_is_far_only_where_places_are_remembered():
    features = maps()
    moved = features[:1].clone()
    moved[0, 0, 0] = features[1, 3, 5]
    assert normal(features, has_places=True).ratios(moved)[0, 0, 0] > 3
    assert normal(features, has_places=False, num=1000).ratios(moved)[0, 0, 0] == 0


def test_one_frame_is_enough_and_equal_frames_are_finite():
    for features in (maps(1), maps(1).expand(5, -1, -1, -1)):
        assert normal(features, has_places=True).ratios(maps(3)).isfinite().all()


def test_a_bounded_number_of_good_frames_is_remembered():
    images = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], (200, 512, 256, 3))
    kept = frames_to_remember(TrainingFrames.of_good(images), generator(0, "memory"))
    assert kept.shape == (64, 512, 256, 3)
    assert len(set(kept[:, 0, 0, 0].tolist())) == 64


def test_a_pixel_has_the_mean_of_the_patches_it_lies_in_the_nearer_ones_weighing_more():
    values = torch.tensor([[[1.0, 3.0]], [[5.0, 5.0]]])
    first, second = spread_over_pixels(values, gaussian_kernel(8, 8, 0.2), 4, 10, 14)
    torch.testing.assert_close(first[0, [0, 1, 2, 3, 8, 9, 10, 11, 12, 13]], torch.tensor([1.0] * 4 + [3.0] * 6))
    both = first[0, 4:8]
    torch.testing.assert_close(both + both.flip(0), torch.full((4,), 4.0))
    assert (both.diff() > 0.1).all()
    assert torch.equal(first[9], first[0])
    torch.testing.assert_close(second, torch.full((10, 14), 5.0))
