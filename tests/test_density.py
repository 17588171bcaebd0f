"""Densities of features, against scikit-learn and written-out formulas."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from ssad_ray.methods.density import Gaussian, Kernel, ledoit_wolf

FITS = {"everywhere": Gaussian.everywhere, "by place": Gaussian.by_place, "kernel": Kernel.fitted}


def features(num: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Correlated, of unequal spread, off the origin, of unit length, (num, D)."""
    source = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=source) * torch.logspace(0, -3, channels)[:, None]
    return torch.nn.functional.normalize(torch.randn(num, channels, generator=source) @ mixing + 0.3, dim=1)


def in_frames(features_QD: torch.Tensor, height: int = 2, width: int = 5) -> torch.Tensor:
    return features_QD.view(-1, height, width, features_QD.shape[1])


@pytest.mark.parametrize(("num", "channels"), [(10, 512), (2, 5), (300, 40), (9000, 12)])
def test_the_covariance_is_shrunk_as_scikit_learn_does(num, channels):
    expected = LedoitWolf().fit(features(num, channels).double().numpy())
    mean, covariance = ledoit_wolf(features(num, channels))
    np.testing.assert_allclose(mean, expected.location_, atol=1e-12)
    np.testing.assert_allclose(covariance, expected.covariance_, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("num", "channels"), [(10, 512), (5000, 32)])
def test_one_gaussian_scores_mahalanobis_distances(num, channels):
    seen, unseen = features(num, channels), features(50, channels, seed=1)
    expected = LedoitWolf().fit(seen.double().numpy()).mahalanobis(unseen.double().numpy())
    scores = Gaussian.everywhere(in_frames(seen)).score(in_frames(unseen))
    assert scores.shape == (5, 2, 5)
    np.testing.assert_allclose(scores.flatten() ** 2, expected, rtol=1e-3)


def test_one_gaussian_fits_more_features_than_are_looked_at_at_once():
    many = in_frames(torch.randn(120_000, 16, generator=torch.Generator().manual_seed(0)))
    assert float((Gaussian.everywhere(many).score(many) ** 2).mean()) == pytest.approx(16.0, rel=1e-3)


def test_gaussians_by_place_know_mean_and_spread_of_their_place():
    # Six channels, of which places on the left vary in the first, those on the right in the second.
    source = torch.Generator().manual_seed(0)
    seen = 0.01 * torch.randn(400, 3, 20, 6, generator=source)
    seen[:, :, :10, 0] *= 30
    seen[:, :, 10:, 1] *= 30
    seen[:, :, 19] += 5.0
    density = Gaussian.by_place(seen)
    probe = seen.mean(0, keepdim=True).clone()
    assert float(density.score(probe).max()) < 0.01
    probe[..., 0] += 0.3
    scores = density.score(probe)[0]
    np.testing.assert_allclose(scores[:, :7], 1.0, rtol=0.1)
    assert scores[:, 13:].min() > 2.5


def test_by_place_ten_frames_of_many_channels_are_enough():
    seen, unseen = in_frames(features(20 * 35, 512), 5, 7).chunk(2)
    density = Gaussian.by_place(seen)
    # What was not seen is not much farther off than what was.
    assert 1.0 < float(density.score(unseen).mean() / density.score(seen).mean()) < 1.5


def test_the_kernel_density_is_its_formula():
    seen, unseen = features(30, 8), features(20, 8, seed=1)
    gamma = 10 / (8 * float(seen.double().var(correction=0)))
    squared = torch.cdist(unseen.double(), seen.double()).square()
    expected = -(-gamma * squared).exp().mean(1).log() / gamma
    scores = Kernel.fitted(in_frames(seen)).score(in_frames(unseen))
    np.testing.assert_allclose(scores.flatten(), expected, rtol=1e-4)


def test_the_kernel_density_of_many_features_keeps_some_of_all_of_them():
    many = in_frames(torch.cat([features(30_000, 4), -features(30_000, 4)]))
    density = Kernel.fitted(many)
    assert len(density.state()["kept_MD"]) == 2048
    ends = density.score(many[[0, -1]])
    assert ends.max() < float(density.score(torch.zeros(1, 1, 1, 4)))


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("num", [1, 2, 20])
def test_equal_features_are_told_from_others_in_finite_numbers(name, num):
    density = FITS[name](torch.full((num, 1, 1, 4), 0.5))
    probes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [-0.5, 0.5, 0.5, 0.5]])[:, None, None]
    equal, other = density.score(probes).flatten().tolist()
    assert np.isfinite(other)
    assert other > equal + 0.1
    assert equal == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("name", FITS)
def test_a_density_is_restored_from_its_state(name):
    density = FITS[name](in_frames(features(100, 40)))
    again = type(density).from_state(density.state(), torch.device("cpu"))
    unseen = in_frames(features(20, 40, 1))
    assert torch.equal(again.score(unseen), density.score(unseen))
