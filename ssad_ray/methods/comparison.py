"""The network behind detector and segmenter: repair the picture, then compare it with what it should be.

A reconstruction network learns to remove planted defects; a UNet sees the picture, its repaired version and how the
picture differs from what is usual, and learns where the defects are. This is DRAEM's division of work (Zavrtanik,
Kristan, Skocaj, ICCV 2021). Detector and segmenter differ in what they learn from, not in what they are, so the
downstream task can start from the weights of the pretext task.

Shapes: B batch, 3 colour channels, H W height and width of a frame.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssad_ray.method_config import ComparisonConfig, TrainingConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor, to_unit
from ssad_ray.methods.losses import DEFECT_PRIOR, reconstruction_loss, segmentation_loss
from ssad_ray.methods.networks import Reconstructor, UNet, doubling
from ssad_ray.methods.reference import NUM_CHANNELS, NormalReference, frame_shape
from ssad_ray.methods.training import load_network_state, network_state

LEVELS = 4
_RECONSTRUCTION_LEVELS = 3
WIDEST = 128


class ComparisonNetwork(nn.Module):
    """Reference channels, reconstruction, comparison."""

    def __init__(self, config: ComparisonConfig, height: int, width: int) -> None:
        super().__init__()
        widths = doubling(config.width, LEVELS, WIDEST)
        self.reference = NormalReference(height, width)
        self.reconstructor = Reconstructor(3, 3, widths[:_RECONSTRUCTION_LEVELS], config.latent)
        self.unet = UNet(NUM_CHANNELS + 6, 1, widths, DEFECT_PRIOR)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to reconstructions (B, 3, H, W) and defect logits (B, H, W)."""
        reconstruction = self.reconstructor(x_BCHW)
        # Detached: the reconstruction is to be good, not to be convenient for the comparison.
        repaired = reconstruction.detach()
        seen = torch.cat([self.reference(x_BCHW), repaired, 3.0 * (x_BCHW - repaired)], dim=1)
        return reconstruction, self.unet(seen)[:, 0]


class Comparison:
    """What detector and segmenter share; anomaly maps are defect logits."""

    def __init__(self, config: ComparisonConfig) -> None:
        self.config = config
        self.network = ComparisonNetwork(config, 1, 1)

    @property
    def training(self) -> TrainingConfig:
        """How long and how fast."""
        return self.config.training

    def initialise(self, frames: TrainingFrames, seed: int) -> None:
        """Draw initial weights and learn from the good frames what is usual."""
        torch.manual_seed(seed)
        self.network = ComparisonNetwork(self.config, *frames.images_NHWC.shape[1:3])
        self.network.reference.learn(frames.images_NHWC[frames.is_good_N], has_places=frames.has_places)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Reconstruct the good frames as they were before planting, and find what is defective."""
        image, clean = (to_unit(batch[name]) for name in ("image", "clean"))
        reconstruction, logits = self.network(image)
        found = segmentation_loss(logits, batch["target"], batch["weight"])
        return found + reconstruction_loss(reconstruction, clean, batch["is_good"])

    @torch.inference_mode()
    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits (B, H, W)."""
        _, logits = self.network(to_tensor(images_BHWC, next(self.network.parameters()).device))
        numbers: NDArray[np.float32] = logits.cpu().numpy()
        return numbers

    def state(self) -> State:
        """Return weights and reference."""
        return network_state(self.network)

    def load_state(self, state: State) -> None:
        """Take over weights and reference."""
        self.network = ComparisonNetwork(self.config, *frame_shape(state))
        load_network_state(self.network, state)
