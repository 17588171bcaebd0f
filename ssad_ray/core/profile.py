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
    def of(cls, maps_NHW: Maps) -> Self:
        """Learn from maps of good frames, each made by a model that never saw the frame."""
        total, squares = _sums(maps_NHW)
        return cls(*_mean_and_spread(total, squares, len(maps_NHW), _common_variance(total, squares, len(maps_NHW))))

    def excess(self, maps_BHW: Maps) -> Maps:
        """Return how many spreads maps (B, H, W) lie above the mean, at every place."""
        return (maps_BHW - self.mean_HW) / self.spread_HW


def held_out_scores(maps_NHW: Maps) -> list[float]:
    """Return each good frame's largest excess over the profile of all others, as an unseen good frame would have."""
    num = len(maps_NHW)
    if num < 2:
        return [0.0] * num
    total, squares = _sums(maps_NHW)
    common = _common_variance(total, squares, num)
    scores = []
    for each in maps_NHW:
        others = total - each, squares - np.square(each, dtype=np.float64)
        profile = NormalProfile(*_mean_and_spread(*others, num - 1, common))
        scores.append(float(profile.excess(each).max()))
    return scores


def _sums(maps_NHW: Maps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return maps_NHW.sum(axis=0, dtype=np.float64), np.square(maps_NHW, dtype=np.float64).sum(axis=0)


def _common_variance(total: NDArray[np.float64], squares: NDArray[np.float64], num: int) -> float:
    """Return the mean over all places of the maps' variance; of maps that do not vary, what is still above zero."""
    variance = float((squares - total**2 / num).mean()) / max(1, num - 1)
    return max(variance, float(np.finfo(np.float32).tiny))


def _mean_and_spread(
    total: NDArray[np.float64], squares: NDArray[np.float64], num: int, common: float
) -> tuple[Maps, Maps]:
    mean = total / num
    own = np.maximum(squares - total * mean, 0.0)
    spread = np.sqrt((own + _PRIOR_FRAMES * common) / (num + _PRIOR_FRAMES))
    return mean.astype(np.float32), spread.astype(np.float32)
