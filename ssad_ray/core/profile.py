"""What the anomaly map of a good part looks like, place by place.

On aligned parts a map is never flat: edges and highlights score higher than plain surface, on every good image. An
image is judged by how far its map rises above what is usual at each place, as PaDiM does with features (Defard et
al., ICPR 2021), so that a highlight does not outshout a hair on plain ground.

Shapes: N held-out good frames, B frames, H W height and width of a frame.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Maps = NDArray[np.float32]

_PRIOR_FRAMES = 10.0
"""Weight of the spread common to all places, in frames: with few frames a single place's own spread is mere chance."""


@dataclass(frozen=True, slots=True, eq=False)
class NormalProfile:
    """Mean and spread of held-out good maps at every place.

    Attributes:
        mean_HW: float32, raw map values.
        spread_HW: float32, above zero, raw map values.
    """

    mean_HW: Maps
    spread_HW: Maps

    @classmethod
    def of(cls, maps_NHW: Maps, common_variance: float | None = None) -> Self:
        """Learn from maps of good frames, each made by a model that never saw the frame.

        Args:
            maps_NHW: float32, raw map values; at least one.
            common_variance: Mean over all places of the maps' variance; that of these maps by default.
        """
        num = len(maps_NHW)
        common = _common_variance(maps_NHW) if common_variance is None else common_variance
        variance = (num * maps_NHW.var(axis=0, dtype=np.float64) + _PRIOR_FRAMES * common) / (num + _PRIOR_FRAMES)
        mean = maps_NHW.mean(axis=0, dtype=np.float64)
        return cls(mean.astype(np.float32), np.sqrt(variance).astype(np.float32))

    def excess(self, maps_BHW: Maps) -> Maps:
        """Return how many spreads maps (B, H, W) lie above the mean, at every place."""
        return (maps_BHW - self.mean_HW) / self.spread_HW


def cross_fitted(maps_NHW: Maps, fold_N: NDArray[np.int64], num_folds: int) -> tuple[NormalProfile, ...]:
    """Return per fold the profile of the frames outside it, and at last that of all frames.

    Frames of a fold are judged by a profile that no frame of it, nor its near duplicates, had a part in.
    """
    common = _common_variance(maps_NHW)
    outside = (NormalProfile.of(maps_NHW[fold_N != fold], common) for fold in range(num_folds))
    return (*outside, NormalProfile.of(maps_NHW, common))


def _common_variance(maps_NHW: Maps) -> float:
    """Return the mean over all places of the maps' variance; of maps that do not vary, what is still above zero."""
    num = len(maps_NHW)
    variance = float(maps_NHW.var(axis=0, dtype=np.float64).mean()) * num / max(1, num - 1)
    return max(variance, float(np.finfo(np.float32).tiny))
