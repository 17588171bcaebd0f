"""How unlikely features are among those of good frames: one Gaussian, one per place, or a sum of kernels.

They score features of unit length (Sohn et al., "Learning and Evaluating Representations for Deep One-Class
Classification", ICLR 2021), which whoever calls has made so.

Shapes: N frames to learn from, B to score, h w places of a frame, D channels of a feature, K directions that are seen,
Q features in any order, M kept ones.
"""

import math
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssad_ray.methods.base import State

_AT_ONCE = 4096
_LEAST_VARIANCE = 1e-12
_MOST_KERNELS = 2048
_DIRECTIONS_BY_PLACE = 32
_NEIGHBOURHOOD = 5
_PRIOR_FRAMES = 3.0
"""Weight of the covariance common to all places, in frames; a few frames say little about a single place."""


class Density(Protocol):
    """What good features look like."""

    def score(self, features_BhwD: Tensor) -> Tensor:
        """Return how unlikely features are (B, h, w)."""

    def state(self) -> State:
        """Everything that was learnt, as named arrays."""

    @classmethod
    def from_state(cls, state: State, device: torch.device) -> Self:
        """Take over what `state` returned."""


class Gaussian:
    """One Gaussian for all places or one for each; the score is the Mahalanobis distance.

    It ranks features of one place as their negative log density does.
    """

    def __init__(self, mean_hwD: Tensor, basis_DK: Tensor, whitener_hwKK: Tensor) -> None:
        self._mean_hwD = mean_hwD
        self._basis_DK = basis_DK
        self._whitener_hwKK = whitener_hwKK

    @classmethod
    def everywhere(cls, features_NhwD: Tensor) -> Self:
        """Fit one to all features, at least one; ten of 512 channels are enough, see `ledoit_wolf`."""
        mean_D, covariance_DD = ledoit_wolf(features_NhwD.flatten(0, 2))
        basis = torch.eye(len(mean_D)).to(features_NhwD)
        return cls(mean_D.to(basis)[None, None], basis, _whitener(covariance_DD).to(basis)[None, None])

    @classmethod
    def by_place(cls, features_NhwD: Tensor) -> Self:
        """Fit one to each place, on the directions that vary most, as PaDiM does (Defard et al., ICPR 2021).

        A place's covariance is the mean over its neighbourhood, mixed with the one common to all places.
        """
        num = len(features_NhwD)
        mean_hwD = features_NhwD.mean(0)
        centred = features_NhwD - mean_hwD
        variances, directions = torch.linalg.eigh(ledoit_wolf(centred.flatten(0, 2))[1])
        common_KK = variances[-_DIRECTIONS_BY_PLACE:].diag()
        basis_DK = directions[:, -_DIRECTIONS_BY_PLACE:].to(centred)
        seen = centred @ basis_DK
        own_hwKK = _neighbourhood_means(torch.einsum("nhwi,nhwj->hwij", seen, seen) / num).double()
        mixed_hwKK = (num * own_hwKK + _PRIOR_FRAMES * common_KK) / (num + _PRIOR_FRAMES)
        return cls(mean_hwD, basis_DK, _whitener(mixed_hwKK).to(centred))

    def score(self, features_BhwD: Tensor) -> Tensor:
        """Return Mahalanobis distances (B, h, w)."""
        seen = (features_BhwD - self._mean_hwD) @ self._basis_DK
        return (self._whitener_hwKK @ seen[..., None]).square().sum((3, 4)).sqrt()

    def state(self) -> State:
        """Return means, directions that are seen, and whitening matrices."""
        arrays = {"mean_hwD": self._mean_hwD, "basis_DK": self._basis_DK, "whitener_hwKK": self._whitener_hwKK}
        return {name: value.cpu().numpy() for name, value in arrays.items()}

    @classmethod
    def from_state(cls, state: State, device: torch.device) -> Self:
        """Take over what `state` returned."""
        names = ("mean_hwD", "basis_DK", "whitener_hwKK")
        return cls(*(torch.from_numpy(np.array(state[name])).to(device) for name in names))


class Kernel:
    """A sum of Gaussian kernels, one on every kept feature; the score is a squared distance, softly the smallest.

    -log(mean exp(-gamma d^2)) / gamma over the distances d, with gamma = 10 / (D variance), the variance that of all
    entries of all features (Sohn et al.). Of many features every so many-th is kept.
    """

    def __init__(self, kept_MD: Tensor, gamma: float) -> None:
        self._kept_MD = kept_MD
        self._gamma = gamma

    @classmethod
    def fitted(cls, features_NhwD: Tensor) -> Self:
        """Keep features, evenly spaced in their order."""
        features_QD = features_NhwD.flatten(0, 2)
        num = len(features_QD)
        places = torch.linspace(0, num - 1, min(num, _MOST_KERNELS), dtype=torch.float64).round().long()
        variance = max(float(features_QD.double().var(correction=0)), _LEAST_VARIANCE)
        return cls(features_QD[places.to(features_QD.device)], 10.0 / (features_QD.shape[1] * variance))

    def score(self, features_BhwD: Tensor) -> Tensor:
        """Return soft smallest squared distances (B, h, w)."""
        parts = [self._score(part) for part in torch.split(features_BhwD.flatten(0, 2), _AT_ONCE)]
        return torch.cat(parts).view(features_BhwD.shape[:3])

    def _score(self, features_QD: Tensor) -> Tensor:
        squared_QM = torch.cdist(features_QD, self._kept_MD).square()
        log_means = torch.logsumexp(-self._gamma * squared_QM, dim=1) - math.log(len(self._kept_MD))
        return -log_means / self._gamma

    def state(self) -> State:
        """Return the kept features and gamma."""
        return {"kept_MD": self._kept_MD.cpu().numpy(), "gamma": np.array(self._gamma)}

    @classmethod
    def from_state(cls, state: State, device: torch.device) -> Self:
        """Take over what `state` returned."""
        return cls(torch.from_numpy(np.array(state["kept_MD"])).to(device), float(state["gamma"]))


def ledoit_wolf(features_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and shrunk covariance (D, D), float64; features are looked at a few thousand at a time.

    The covariance is S + e/d (m I - S), with S the empirical one, m the mean of its eigenvalues, d how far they are
    spread, and e, at most d, the error of S as an estimate (Ledoit, Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004).
    """
    num, width = features_QD.shape
    mean_D = features_QD.mean(0, dtype=torch.float64)
    sum_DD = torch.zeros(width, width, dtype=torch.float64, device=features_QD.device)
    fourth_powers = torch.zeros((), dtype=torch.float64, device=features_QD.device)
    for part in torch.split(features_QD, _AT_ONCE):
        centred = part.double() - mean_D
        sum_DD += centred.T @ centred
        fourth_powers += centred.square().sum(1).square().sum()
    empirical_DD = sum_DD / num
    sphere_DD = empirical_DD.trace() / width * torch.eye(width).to(empirical_DD)
    spread = (empirical_DD - sphere_DD).square().sum()
    error = (fourth_powers / num - empirical_DD.square().sum()) / num
    weight = float((error / spread).clamp(0.0, 1.0)) if spread > 0 else 1.0
    return mean_D, torch.lerp(empirical_DD, sphere_DD, weight)


def _whitener(covariance_hwKK: Tensor) -> Tensor:
    """Return matrices that make a covariance, or each of several, the identity."""
    identity = torch.eye(covariance_hwKK.shape[-1]).to(covariance_hwKK)
    lower = torch.linalg.cholesky(covariance_hwKK + _LEAST_VARIANCE * identity)
    whitener: Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return whitener


def _neighbourhood_means(values_hwKK: Tensor) -> Tensor:
    """Return at each place the mean of the values around it, those beyond the frame left out."""
    height, width, *matrix = values_hwKK.shape
    planes = values_hwKK.flatten(2).permute(2, 0, 1)[None]
    means = functional.avg_pool2d(planes, _NEIGHBOURHOOD, 1, _NEIGHBOURHOOD // 2, count_include_pad=False)
    return means[0].permute(1, 2, 0).view(height, width, *matrix)
