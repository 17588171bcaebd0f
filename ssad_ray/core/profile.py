"""What the anomaly map of a good part looks like, place by place.

On aligned parts a map is never flat: edges and highlights score higher than plain surface, on every good image. An
image is judged by how far its map rises above what is usual at each place, as PaDiM does with features (Defard et
al., ICPR 2021), so that a highlight does not outshout a hair on plain ground.

Shapes: N held-out good frames, B frames, H W height and width of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Maps = NDArray[np.float32]
Sums = NDArray[np.float64]

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

    def excess(self, maps_BHW: Maps) -> Maps:
        """Return how many spreads maps (B, H, W) lie above the mean, at every place."""
        return (maps_BHW - self.mean_HW) / self.spread_HW


class HeldOutProfiles:
    """Profiles of good frames: of all, for new images, and without a group, to judge the images of that group."""

    def __init__(self, maps_NHW: Maps, groups: Sequence[str]) -> None:
        """Take in maps of good frames, each made by a model that never saw the frame.

        Args:
            maps_NHW: float32, raw map values.
            groups: Per frame, what it is a near duplicate of; there are at least two.
        """
        self._num, self._groups, self._maps = len(maps_NHW), np.array(groups), maps_NHW
        self._total, self._squares = _sums(maps_NHW)
        variance = float((self._squares - self._total**2 / self._num).mean()) / max(1, self._num - 1)
        # Of maps that do not vary, what is still above zero.
        self._common = max(variance, float(np.finfo(np.float32).tiny))

    def of_all(self) -> NormalProfile:
        """Return the profile of all frames."""
        return self._profile(self._total, self._squares, self._num)

    def without(self, group: str) -> NormalProfile:
        """Return the profile of the frames of all other groups; the spread common to all places is that of all."""
        left_out = self._maps[self._groups == group]
        total, squares = _sums(left_out)
        return self._profile(self._total - total, self._squares - squares, self._num - len(left_out))

    def _profile(self, total: Sums, squares: Sums, num: int) -> NormalProfile:
        mean = total / num
        own = np.maximum(squares - total * mean, 0.0)
        spread = np.sqrt((own + _PRIOR_FRAMES * self._common) / (num + _PRIOR_FRAMES))
        return NormalProfile(mean.astype(np.float32), spread.astype(np.float32))


def _sums(maps_NHW: Maps) -> tuple[Sums, Sums]:
    squares = np.einsum("nhw,nhw->hw", maps_NHW, maps_NHW, dtype=np.float64)  # without a copy in float64
    return maps_NHW.sum(axis=0, dtype=np.float64), squares
