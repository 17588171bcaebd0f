"""How rare an anomaly map's value is on good images: the one unit in which maps of different methods compare.

Shapes: T points of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ssad_ray.errors import DataError

_TABLE_ENDS_AT = 1e-2
_LEAST_BEYOND = 20
_POINTS = 64
_HEAVIEST = 0.5  # shape up to which the weighted moments have a variance


@dataclass(frozen=True, slots=True, eq=False)
class NormalTail:
    """The tail of the values of good maps: counted where there are many, a generalised Pareto tail beyond.

    Attributes:
        values_T: float64, rising.
        rarity_T: float64, rising from 0: of each value -log10 of the share of good pixels that reach it.
        scale: Of the excess over the table's end, in units of value, above zero.
        shape: 0 (an exponential tail) to 0.5 (of ever rarer values each has to be much higher than the one before).
    """

    values_T: NDArray[np.float64]
    rarity_T: NDArray[np.float64]
    scale: float
    shape: float

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Self:
        """Learn from the map values of pixels of good images, at least 40 of them; their order has no meaning.

        Beyond the value that one in 100 reaches (or, of fewer than 2000, that 20 reach) the excess is taken to be
        generalised Pareto, as tails are in the limit (Pickands 1975), its shape by probability-weighted moments
        (Hosking and Wallis 1987). Lighter than exponential it is never taken to be: beyond the end of such a tail all
        values would be equally rare.

        Raises:
            DataError: Too few values, or one that is not finite.
        """
        num = values.size
        if num < 2 * _LEAST_BEYOND or not np.isfinite(values).all():
            raise DataError(
                f"the tail of {num} map values cannot be learnt: at least {2 * _LEAST_BEYOND} are needed, all finite"
            )
        falling = np.sort(values.ravel().astype(np.float64))[::-1]
        num_beyond = max(_LEAST_BEYOND, round(num * _TABLE_ENDS_AT))
        counts = np.unique(np.geomspace(num_beyond, num, _POINTS).astype(np.int64))[::-1]
        # Of equal values the first counts: the share that reaches them is the largest.
        table, first = np.unique(falling[counts - 1], return_index=True)
        excess = falling[:num_beyond] - table[-1]
        mean, weighted = excess.mean(), (excess * np.linspace(0.0, 1.0, num_beyond)).mean()
        heaviness = (mean - 4.0 * weighted) / max(mean - 2.0 * weighted, np.finfo(np.float64).tiny)
        shape = float(np.clip(heaviness, 0.0, _HEAVIEST))
        least = 1e-6 * max(float(np.ptp(falling)), abs(float(falling[0])), 1e-6)
        return cls(table, np.log10(num / counts)[first], max(float(mean) * (1.0 - shape), least), shape)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return the table and the tail beyond it as named arrays."""
        beyond = {"scale": np.array(self.scale), "shape": np.array(self.shape)}
        return {"values": self.values_T, "rarity": self.rarity_T, **beyond}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.float64]]) -> Self:
        """Make what `state` was returned by."""
        return cls(state["values"], state["rarity"], float(state["scale"]), float(state["shape"]))

    def rarity(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return -log10 of the tail probability of every value, at least 0, in the given shape."""
        beyond = np.maximum(maps - self.values_T[-1], 0.0) / self.scale
        if self.shape > 0.0:
            beyond = np.log1p(self.shape * beyond) / self.shape
        rarity: NDArray[np.float64] = np.interp(maps, self.values_T, self.rarity_T) + beyond / np.log(10.0)
        return rarity.astype(np.float32)
