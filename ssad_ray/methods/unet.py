"""The segmenter of the downstream task: the pretext's networks on automatic labels, good images and planted defects.

Automatic labels are wrong in places. What keeps them from being learnt as truth: pixels in doubt carry no weight,
good images are clean negatives, and planted defects have exact masks.
"""

from typing import Self

from ssad_ray.config import RunConfig, SegmenterConfig
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.batches import Batch, Retake, planted_shard
from ssad_ray.methods.comparison import Comparison
from ssad_ray.methods.training import train


class UnetSegmenter(Comparison):
    """The segmenter: labelled frames, good frames and planted defects."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config.unet)
        self.mixture = config

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted segmenter."""
        return cls(config.segmenter)

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Batch:
        """Return labelled frames, good frames with planted defects, and good frames as they are."""
        return mixed_shard(frames, self.mixture, seed, step, shard)

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)


def mixed_shard(
    frames: TrainingFrames, config: SegmenterConfig, seed: int, step: int, shard: int, retake: Retake | None = None
) -> Batch:
    """Return a shard of labelled and good frames in the shares of the config; without labels more are planted."""
    labelled, planted = config.labelled_fraction, config.planted_fraction
    if frames.is_good_N.all():
        labelled, planted = 0.0, labelled + planted
    return planted_shard(frames, config.unet.training, seed, step, shard, planted, labelled, retake)
