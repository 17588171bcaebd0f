"""What patches of good frames look like, and how far others are from it: the head of methods that compare features.

On aligned parts a patch is compared with what is remembered of its place, and its distance is measured in units of
what is usual there: the edge of a part is farther from all that was seen than its plain ground is, on every good frame.
Elsewhere all patches share one memory and one unit.

Shapes: N good frames, B frames, h w of a frame's map of features, D channels of a feature.
"""

from collections.abc import Callable
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ssad_ray.methods.base import State, TrainingFrames
from ssad_ray.methods.devices import device
from ssad_ray.methods.memory import Memory, PlaceMemory

Apart = Callable[[Tensor, Memory | PlaceMemory], Tensor]
"""Maps the features of a frame (h, w, D) and a memory to their distances from it (h, w)."""

_MAX_PIXELS = 1 << 23  # of all frames that are remembered
_LEAST_DISTANCE = 1e-6
_LEAST_SHARE = 0.1  # of the mean over all places


class NormalPatches:
    """A memory of features, and the usual distance from it of features that are as good."""

    def __init__(self, memory: Memory | PlaceMemory, usual: Tensor, apart: Apart) -> None:
        """Take in a memory, the usual distance at each place (h, w) or anywhere (), and how distances are taken."""
        self._memory, self._usual, self._apart = memory, usual, apart

    @classmethod
    def of(cls, maps_NhwD: Tensor, has_places: bool, num: int, apart: Apart, rng: np.random.Generator) -> Self:
        """Remember `num` features of good frames in random order.

        Usual is the mean distance of the features of one half of the frames from what is remembered of the other half.
        """
        remember: Callable[[Tensor], Memory | PlaceMemory] = (
            partial(PlaceMemory.of, num=num) if has_places else partial(Memory.of, num=num, rng=rng)
        )
        halves = maps_NhwD[::2], maps_NhwD[1::2]
        distances = []
        for asked, others in (halves, halves[::-1]):
            if len(others):
                memory = remember(others)
                distances += [apart(features, memory) for features in asked]
        usual = torch.stack(distances or [torch.ones_like(maps_NhwD[0, :, :, 0])]).mean(0)
        least = max(float(usual.mean()) * _LEAST_SHARE, _LEAST_DISTANCE)
        usual = functional.avg_pool2d(usual[None], 3, 1, 1, count_include_pad=False)[0] if has_places else usual.mean()
        return cls(remember(maps_NhwD), usual.clamp(min=least), apart)

    def ratios(self, maps_BhwD: Tensor) -> Tensor:
        """Return distances in units of usual ones, (B, h, w)."""
        return torch.stack([self._apart(features, self._memory) for features in maps_BhwD]) / self._usual

    def state(self) -> State:
        """Return what is remembered and what is usual."""
        return {"memory": self._memory.items.cpu().numpy(), "usual": self._usual.cpu().numpy()}

    @classmethod
    def from_state(cls, state: State, apart: Apart) -> Self:
        """Make what `state` was returned by."""
        items, usual = (torch.from_numpy(np.array(state[name])).to(device()) for name in ("memory", "usual"))
        return cls(Memory(items) if items.ndim == 2 else PlaceMemory(items), usual, apart)


def frames_to_remember(frames: TrainingFrames, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return good frames (N, H, W, 3) in random order, as many as are remembered at most; two at least."""
    height, width = frames.images_NHWC.shape[1:3]
    kept = rng.permutation(np.flatnonzero(frames.is_good_N))[: max(2, _MAX_PIXELS // (height * width))]
    images: NDArray[np.uint8] = frames.images_NHWC[kept]
    return images
