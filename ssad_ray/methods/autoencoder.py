"""Reconstruction pretext: an autoencoder trained on good images repairs what it has not seen; the residual is the map.

L1 and SSIM in equal parts (Bergmann et al. 2019). Trained without planted defects: what it misses is its bottleneck's
doing alone.

Shapes: B batch, 3 colour channels, H W height and width of a frame.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssad_ray.config import RunConfig
from ssad_ray.core.images import blurred
from ssad_ray.method_config import AutoencoderConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor, to_unit
from ssad_ray.methods.batches import Batch, planted_shard
from ssad_ray.methods.losses import reconstruction_loss, ssim
from ssad_ray.methods.networks import Reconstructor, doubling
from ssad_ray.methods.training import load_network_state, network_state, train

_LEVELS = 3
_WIDEST = 128
_SMOOTHING_PX = 1.5


class Autoencoder:
    """The detector around the network; anomaly maps are smoothed residuals, at least 0."""

    def __init__(self, config: AutoencoderConfig) -> None:
        self.config = config
        self.training = config.training
        self.network = self._build()

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.autoencoder)

    def _build(self) -> Reconstructor:
        widths = doubling(self.config.width, _LEVELS, _WIDEST)
        return Reconstructor(3, 3, widths, self.config.latent)

    def initialise(self, frames: TrainingFrames, seed: int) -> None:  # noqa: ARG002
        """Draw initial weights."""
        torch.manual_seed(seed)
        self.network = self._build()

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Batch:
        """Return good frames."""
        return planted_shard(frames, self.training, seed, step, shard, planted_fraction=0.0)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Reconstruct the frame."""
        image = to_unit(batch["image"])
        return reconstruction_loss(self.network(image), image, batch["is_good"])

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)

    @torch.inference_mode()
    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the smoothed residuals (B, H, W)."""
        image = to_tensor(images_BHWC, next(self.network.parameters()).device)
        reconstruction = self.network(image)
        residual = (reconstruction - image).abs().mean(1) + 0.5 * (1.0 - ssim(reconstruction, image)).mean(1)
        return blurred(residual.cpu().numpy(), _SMOOTHING_PX)

    def state(self) -> State:
        """Return the weights."""
        return network_state(self.network)

    def load_state(self, state: State) -> None:
        """Take over the weights."""
        self.network = self._build()
        load_network_state(self.network, state)
