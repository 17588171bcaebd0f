"""How rare an anomaly map's value is on good images: the one unit in which maps of different methods can be added.

Shapes: T points of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ssad_ray.errors import DataError

_TABLE_ENDS_AT = 1e-3
_LEAST_BEYOND = 20
_POINTS = 64


@dataclass(frozen=True, slots=True, eq=False)
class NormalTail:
    """The tail of the values of good maps: counted where there are many, an exponential beyond.

    Attributes:
        values_T: float64, rising.
        rarity_T: float64, rising from 0: of each value -log10 of the share of good pixels that reach it.
        per_value: Rarity gained per unit of value beyond the table, above zero.
    """

    values_T: NDArray[np.float64]
    rarity_T: NDArray[np.float64]
    per_value: float

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Self:
        """Learn from the map values of pixels of good images, at least 40 of them; their order has no meaning.

        Beyond the value that one in 1000 reaches (or, of fewer than 20,000, that 20 reach) the excess is taken to be
        exponential: neighbouring pixels rise together, and of the highest all may lie in one place of one image.

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
        excess = float((falling[:num_beyond] - table[-1]).mean())
        least = 1e-6 * max(float(np.ptp(falling)), abs(float(falling[0])), 1e-6)
        return cls(table, np.log10(num / counts)[first], 1.0 / (np.log(10.0) * max(excess, least)))

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return the table and the slope as named arrays."""
        return {"values": self.values_T, "rarity": self.rarity_T, "per_value": np.array(self.per_value)}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.float64]]) -> Self:
        """Make what `state` was returned by."""
        return cls(state["values"], state["rarity"], float(state["per_value"]))

    def rarity(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return -log10 of the tail probability of every value, at least 0, in the given shape."""
        beyond = np.maximum(maps - self.values_T[-1], 0.0) * self.per_value
        rarity: NDArray[np.float32] = (np.interp(maps, self.values_T, self.rarity_T) + beyond).astype(np.float32)
        return rarity
