"""The segmenter of the downstream task: a UNet on automatic labels, good images and planted defects.

Automatic labels are wrong in places. What keeps them from being learnt as truth: pixels in doubt carry no weight,
good images are clean negatives, and planted defects have exact masks.

Shapes: B batch, 3 colour channels, H W height and width of a frame.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssad_ray.config import RunConfig, SegmenterConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor
from ssad_ray.methods.batches import Batch, planted_shard
from ssad_ray.methods.losses import DEFECT_PRIOR, segmentation_loss
from ssad_ray.methods.networks import UNet, doubling
from ssad_ray.methods.reference import NUM_CHANNELS, NormalReference, frame_shape
from ssad_ray.methods.training import load_network_state, network_state, train

_LEVELS = 4
_WIDEST = 128


class UnetNetwork(nn.Module):
    """Reference channels and a UNet."""

    def __init__(self, width_channels: int, height: int, width: int) -> None:
        super().__init__()
        self.reference = NormalReference(height, width)
        self.unet = UNet(NUM_CHANNELS, 1, doubling(width_channels, _LEVELS, max(_WIDEST, width_channels)), DEFECT_PRIOR)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to defect logits (B, H, W)."""
        logits: Tensor = self.unet(self.reference(x_BCHW))
        return logits[:, 0]


class UnetSegmenter:
    """The segmenter around the network; anomaly maps are defect logits."""

    def __init__(self, config: SegmenterConfig) -> None:
        self.config = config
        self.training = config.unet.training
        self.network = UnetNetwork(config.unet.width, 1, 1)

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted segmenter."""
        return cls(config.segmenter)

    def initialise(self, frames: TrainingFrames, seed: int) -> None:
        """Draw initial weights and learn the reference from the good frames."""
        torch.manual_seed(seed)
        self.network = UnetNetwork(self.config.unet.width, *frames.images_NHWC.shape[1:3])
        self.network.reference.learn(frames.images_NHWC[frames.is_good_N])

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Batch:
        """Return labelled frames, good frames with planted defects, and good frames as they are."""
        labelled, planted = self.config.labelled_fraction, self.config.planted_fraction
        if frames.is_good_N.all():
            labelled, planted = 0.0, labelled + planted
        return planted_shard(frames, self.training, seed, step, shard, planted, labelled)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Find what the labels say is defective."""
        image = batch["image"].permute(0, 3, 1, 2).float() / 255.0
        return segmentation_loss(self.network(image), batch["target"], batch["weight"])

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)

    @torch.inference_mode()
    def score(self, images_BHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the largest logit (B,) and the logit maps (B, H, W)."""
        logits = self.network(to_tensor(images_BHWC, next(self.network.parameters()).device))
        return logits.amax((1, 2)).cpu().numpy(), logits.cpu().numpy()

    def state(self) -> State:
        """Return weights and reference."""
        return network_state(self.network)

    def load_state(self, state: State) -> None:
        """Take over weights and reference."""
        self.network = UnetNetwork(self.config.unet.width, *frame_shape(state))
        load_network_state(self.network, state)
