"""The segmenter where images have templates: it learns where a difference between the two is a defect.

The template is what `ssad_ray.methods.unet` has to reconstruct, so nothing is repaired and one network is enough.
Besides image and template it sees their difference, and what is outside the band that the template allows: edges that
are a little off are in the first and not in the second, and need not be learnt. Why, and what it is worth:
docs/decisions/0018-a-segmenter-shown-the-template.md.

Shapes: B batch, 6 channels of image and template, H W height and width of a frame.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ssad_ray.config import RunConfig, SegmenterConfig
from ssad_ray.method_config import ComparisonConfig, TrainingConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor, to_unit
from ssad_ray.methods.batches import Batch
from ssad_ray.methods.comparison import LEVELS, WIDEST
from ssad_ray.methods.losses import DEFECT_PRIOR, segmentation_loss
from ssad_ray.methods.networks import UNet, coordinates, doubling
from ssad_ray.methods.template_pairs import photographed_pair
from ssad_ray.methods.training import load_network_state, network_state, train
from ssad_ray.methods.unet import mixed_shard

_NUM_CHANNELS = 14
_TOLERANCE_PX = 1
_AMPLIFIED = 3.0
_RETAKEN = 0.5


class TemplateNetwork(nn.Module):
    """Image, template and what they differ by, to defect logits; knows no size of frames."""

    def __init__(self, config: ComparisonConfig) -> None:
        super().__init__()
        self.unet = UNet(_NUM_CHANNELS, 1, doubling(config.width, LEVELS, WIDEST), DEFECT_PRIOR)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images on top of their templates (B, 6, H, W) in [0, 1] to defect logits (B, H, W)."""
        image, template = x_BCHW[:, :3], x_BCHW[:, 3:]
        differences = _AMPLIFIED * torch.cat([image - template, beyond_band(image, template)], dim=1)
        batch, _, height, width = x_BCHW.shape
        place = coordinates(batch, height, width, x_BCHW.device)
        logits: Tensor = self.unet(torch.cat([x_BCHW, differences, place], dim=1))[:, 0]
        return logits


def beyond_band(image_BCHW: Tensor, template_BCHW: Tensor) -> Tensor:
    """Return how far an image is above the brightest (> 0) or below the darkest (< 0) pixel of its template near by."""
    side = 2 * _TOLERANCE_PX + 1
    high = functional.max_pool2d(template_BCHW, side, 1, _TOLERANCE_PX)
    low = -functional.max_pool2d(-template_BCHW, side, 1, _TOLERANCE_PX)
    return functional.relu(image_BCHW - high) - functional.relu(low - image_BCHW)


def _retaken(pair_HWC: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a good pair, or its template photographed anew.

    A template that is all there is of a design was photographed once before frames were cut. What a network has seen of
    that one photograph it knows by heart, and the next one would be an alarm.
    """
    if rng.random() > _RETAKEN:
        return pair_HWC
    return photographed_pair(np.ascontiguousarray(pair_HWC[..., 3:]), rng)


class TemplateUnet:
    """The segmenter; anomaly maps are defect logits."""

    compares_with_template: ClassVar[bool] = True

    def __init__(self, config: SegmenterConfig) -> None:
        self.mixture, self.config = config, config.unet
        self.network = TemplateNetwork(self.config)

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted segmenter."""
        return cls(config.segmenter)

    @property
    def training(self) -> TrainingConfig:
        """How long and how fast."""
        return self.config.training

    def initialise(self, frames: TrainingFrames, seed: int) -> None:  # noqa: ARG002
        """Draw initial weights."""
        torch.manual_seed(seed)
        self.network = TemplateNetwork(self.config)

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Batch:
        """Return labelled pairs, good pairs with defects planted in the image, and good pairs; half retaken."""
        return mixed_shard(frames, self.mixture, seed, step, shard, _retaken)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Find what is defective."""
        return segmentation_loss(self.network(to_unit(batch["image"])), batch["target"], batch["weight"])

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)

    @torch.inference_mode()
    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits (B, H, W)."""
        logits = self.network(to_tensor(images_BHWC, next(self.network.parameters()).device))
        numbers: NDArray[np.float32] = logits.cpu().numpy()
        return numbers

    def state(self) -> State:
        """Return the weights."""
        return network_state(self.network)

    def load_state(self, state: State) -> None:
        """Take over the weights."""
        self.network = TemplateNetwork(self.config)
        load_network_state(self.network, state)
