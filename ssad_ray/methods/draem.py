"""DRAEM: a network that repairs planted defects, and one that finds them by comparing before and after.

Zavrtanik, Kristan, Skocaj: DRAEM, ICCV 2021. As in the paper, defects are planted on good images, a reconstruction
network learns to remove them, and a discriminative network that sees the picture and its reconstruction learns their
masks. Different from it: several families of planted defects made from the product's own images (no external texture
set), GroupNorm, the per-pixel median of the good images as a second reconstruction that needs no training, and masks
closed to the defect's body. docs/decisions/0006-draem.md says why.

Shapes: B batch, 3 colour channels, H W height and width of a frame.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssad_ray.config import DraemConfig, RunConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor
from ssad_ray.methods.batches import Batch, planted_shard
from ssad_ray.methods.losses import DEFECT_PRIOR, reconstruction_loss, segmentation_loss
from ssad_ray.methods.networks import Reconstructor, UNet, doubling
from ssad_ray.methods.reference import NUM_CHANNELS, NormalReference, frame_shape
from ssad_ray.methods.training import load_network_state, network_state, train

PLANTED_FRACTION = 0.75
_LEVELS = 4
_RECONSTRUCTION_LEVELS = 3
_WIDEST = 128


class DraemNetwork(nn.Module):
    """Reference channels, reconstruction, discrimination."""

    def __init__(self, config: DraemConfig, height: int, width: int) -> None:
        super().__init__()
        widths = doubling(config.width, _LEVELS, max(_WIDEST, config.width))
        self.reference = NormalReference(height, width)
        self.reconstructor = Reconstructor(3, 3, widths[:_RECONSTRUCTION_LEVELS], config.latent)
        self.unet = UNet(NUM_CHANNELS + 6, 1, widths, DEFECT_PRIOR)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to reconstructions (B, 3, H, W) and defect logits (B, H, W)."""
        reconstruction = self.reconstructor(x_BCHW)
        # Detached: the reconstruction is to be good, not to be convenient for the discriminator.
        repaired = reconstruction.detach()
        seen = torch.cat([self.reference(x_BCHW), repaired, 3.0 * (x_BCHW - repaired)], dim=1)
        return reconstruction, self.unet(seen)[:, 0]


class Draem:
    """The detector around the network; anomaly maps are defect logits."""

    def __init__(self, config: DraemConfig) -> None:
        self.config = config
        self.training = config.training
        self.network = DraemNetwork(config, 1, 1)

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.draem)

    def initialise(self, frames: TrainingFrames, seed: int) -> None:
        """Draw initial weights and learn the reference from the good frames."""
        torch.manual_seed(seed)
        self.network = DraemNetwork(self.config, *frames.images_NHWC.shape[1:3])
        self.network.reference.learn(frames.images_NHWC[frames.is_good_N])

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Batch:
        """Return good frames, most of them with a planted defect."""
        return planted_shard(frames, self.training, seed, step, shard, PLANTED_FRACTION)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Reconstruct the clean frame and find the plant."""
        image, clean = (batch[name].permute(0, 3, 1, 2).float() / 255.0 for name in ("image", "clean"))
        reconstruction, logits = self.network(image)
        found = segmentation_loss(logits, batch["target"], batch["weight"])
        return reconstruction_loss(reconstruction, clean) + found

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)

    @torch.inference_mode()
    def score(self, images_BHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the largest logit (B,) and the logit maps (B, H, W)."""
        device = next(self.network.parameters()).device
        _, logits = self.network(to_tensor(images_BHWC, device))
        return logits.amax((1, 2)).cpu().numpy(), logits.cpu().numpy()

    def state(self) -> State:
        """Return weights and reference."""
        return network_state(self.network)

    def load_state(self, state: State) -> None:
        """Take over weights and reference."""
        self.network = DraemNetwork(self.config, *frame_shape(state))
        load_network_state(self.network, state)
