"""What a method is: something that learns from frames and scores frames.

Shapes: B frames of a batch, N training frames, H and W height and width of a frame, C = 3 channels (RGB).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssad_ray.config import RunConfig, TrainingConfig

State = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TrainingFrames:
    """Frames to learn from; a detector sees good ones only, a segmenter also labelled ones.

    Attributes:
        images_NHWC: uint8.
        targets_NHW: float32 in [0, 1], probability that a pixel is defective; all zero on good frames.
        weights_NHW: float32 in [0, 1], confidence of each target; 0 = ignore.
        is_good_N: Frames of anomaly-free images, on which defects may be planted.
    """

    images_NHWC: NDArray[np.uint8]
    targets_NHW: NDArray[np.float32]
    weights_NHW: NDArray[np.float32]
    is_good_N: NDArray[np.bool_]

    @classmethod
    def of_good(cls, images_NHWC: NDArray[np.uint8]) -> "TrainingFrames":
        """Wrap anomaly-free frames: every pixel is surely normal."""
        shape = images_NHWC.shape[:3]
        return cls(images_NHWC, np.zeros(shape, np.float32), np.ones(shape, np.float32), np.ones(shape[0], bool))

    def only(self, kept_N: NDArray[np.bool_]) -> "TrainingFrames":
        """Return some of the frames, copied."""
        return TrainingFrames(
            self.images_NHWC[kept_N], self.targets_NHW[kept_N], self.weights_NHW[kept_N], self.is_good_N[kept_N]
        )


class Method(Protocol):
    """A detector or a segmenter: it is fitted on frames, scores frames, and its state is a dict of arrays."""

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted method from the resolved config."""

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Learn from frames, in this process."""

    def score(self, images_BHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return raw scores (B,) and anomaly maps (B, H, W), float32; higher is more anomalous."""

    def state(self) -> State:
        """Everything that was learnt, as named arrays."""

    def load_state(self, state: State) -> None:
        """Take over what `state` returned."""


@runtime_checkable
class TrainsByGradient(Protocol):
    """The ability of a method whose fit is stochastic gradient descent; it can then be trained across workers.

    `batch` is a pure function of its arguments and of what `initialise` set: the frames of shard `shard` of step `step`
    are the same whichever worker computes them, so the number of workers cannot change a result.
    """

    @property
    def training(self) -> TrainingConfig:
        """How long and how fast."""

    @property
    def network(self) -> nn.Module:
        """What is trained; replaced by `initialise`."""

    def initialise(self, frames: TrainingFrames, seed: int) -> None:
        """Set what is not learnt by gradient (statistics, random initial weights); a pure function of its arguments."""

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Mapping[str, NDArray[Any]]:
        """Return shard `shard` (of `training.shards`) of the batch of a step, as named arrays; after `initialise`."""

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of a shard, a scalar."""


def to_tensor(images_BHWC: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return images as (B, C, H, W) float32 in [0, 1], channels last in memory."""
    return torch.from_numpy(images_BHWC).to(device).permute(0, 3, 1, 2).float().div_(255.0)
