"""DRAEM: learn to repair planted defects, and to find them by comparing before and after.

Zavrtanik, Kristan, Skocaj: DRAEM, ICCV 2021. Different from the paper: several families of planted defects made from
the product's own images (no external texture set), several plants at a time, GroupNorm, what is usual at each place or
in each frame as a second reconstruction that needs no training, and masks closed to the defect's body.
docs/decisions/0006-draem.md says why.
"""

from typing import Self

from ssad_ray.config import RunConfig
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.batches import Batch, planted_shard
from ssad_ray.methods.comparison import Comparison
from ssad_ray.methods.training import train

_PLANTED_FRACTION = 0.75


class Draem(Comparison):
    """The detector: good frames and planted defects."""

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.draem)

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Batch:
        """Return good frames, most of them with planted defects."""
        return planted_shard(frames, self.training, seed, step, shard, _PLANTED_FRACTION)

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)
