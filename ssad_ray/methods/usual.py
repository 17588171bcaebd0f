"""How far good frames usually are from what is generated for them: by how steep it is, and on aligned parts by place.

An outline that is shown a little beside itself differs in proportion to how steep it is; and some places of a part
never look the same twice.

Shapes: B batch, P parts of a difference, 3 colour channels, H W height and width of a frame.
"""

from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ssad_ray.core.images import blurred
from ssad_ray.methods.base import State

_SMOOTHING_PX = 2.0
_LEAST = 0.3  # of the mean over all places: nowhere is a difference of nothing usual
_LARGEST_SHARE = 0.9  # of a part's mean that steepness may account for
_TINY = 1e-6


class Usual:
    """The usual size of the parts of a difference: (level + slope · steepness) · place."""

    def __init__(self, level_P11: Tensor, slope_P11: Tensor, place_PHW: Tensor) -> None:
        self.level_P11 = level_P11
        self.slope_P11 = slope_P11
        self.place_PHW = place_PHW

    @classmethod
    def of_good(cls, differences: Iterable[tuple[Tensor, Tensor]], *, has_places: bool) -> Self:
        """Learn from batches of generated frames (B, 3, H, W) and of parts (B, P, H, W), at least 0; read once.

        Level and slope are the line of least squares through all pixels. A place is how far its mean is above the
        line's; without places all are 1.
        """
        count, sums = 0, [torch.zeros(())] * 4
        for y_BCHW, parts_BPHW in differences:
            steep_B1HW = steepness(y_BCHW)
            terms = (parts_BPHW, steep_B1HW, parts_BPHW * steep_B1HW, steep_B1HW**2)
            sums = [total.to(term.device) + term.sum(0) for total, term in zip(sums, terms, strict=True)]
            count += len(y_BCHW)
        parts_PHW, steep_1HW = sums[0] / count, sums[1] / count
        part, steep, product, square = (total.mean((1, 2), keepdim=True) / count for total in sums)
        part = part.clamp(min=_TINY)
        slope = (product - part * steep) / (square - steep**2).clamp(min=_TINY)
        slope = torch.minimum(slope.clamp(min=0.0), _LARGEST_SHARE * part / steep.clamp(min=_TINY))
        level = part - slope * steep
        if not has_places:
            return cls(level, slope, torch.ones_like(part))
        line_PHW = level + slope * smoothed(steep_1HW)
        return cls(level, slope, (smoothed(parts_PHW) + _LEAST * part) / (line_PHW + _LEAST * part))

    def at(self, y_BCHW: Tensor) -> Tensor:
        """Return what is usual where these frames are generated, (B, P, H, W) > 0."""
        return (self.level_P11 + self.slope_P11 * steepness(y_BCHW)) * self.place_PHW

    def state(self) -> State:
        """Return what was learnt."""
        return {
            "usual.level_P11": self.level_P11.cpu().numpy(),
            "usual.slope_P11": self.slope_P11.cpu().numpy(),
            "usual.place_PHW": self.place_PHW.cpu().numpy(),
        }

    @classmethod
    def from_state(cls, state: State, on: torch.device) -> Self:
        """Take over what `state` returned."""
        names = ("usual.level_P11", "usual.slope_P11", "usual.place_PHW")
        return cls(*(torch.from_numpy(np.array(state[name])).to(on) for name in names))


def steepness(y_BCHW: Tensor) -> Tensor:
    """Return the smoothed sum of the absolute differences of grey to the next pixel right and below (B, 1, H, W)."""
    grey = y_BCHW.mean(1)
    across = torch.diff(grey, dim=2, append=grey[:, :, -1:]).abs()
    down = torch.diff(grey, dim=1, append=grey[:, -1:]).abs()
    return smoothed(across + down)[:, None]


def smoothed(maps_BHW: Tensor) -> Tensor:
    """Blur maps (B, H, W) by a Gaussian of 2 px."""
    return torch.from_numpy(blurred(maps_BHW.cpu().numpy(), _SMOOTHING_PX)).to(maps_BHW.device)
