"""PatchCore: features of a pretrained network, compared with remembered ones of good frames.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022. The network is one of torchvision's
residual networks up to its third stage; its weights come from a file that the user names, or are random. Different from
the paper: on aligned parts a patch is compared with those of its place, the memory is thinned exactly, without random
projection, and the score of an image is the maximum of its map, as in the authors' code.

Shapes: B batch, C channels, H W of a frame, h w of a map of features.
"""

from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model

from ssad_ray.config import RunConfig
from ssad_ray.core.images import blurred
from ssad_ray.core.rng import generator
from ssad_ray.errors import ConfigError
from ssad_ray.method_config import MemoryBankConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor
from ssad_ray.methods.devices import device
from ssad_ray.methods.memory import Memory, PlaceMemory, affinity_distance
from ssad_ray.methods.normal_patches import NormalPatches, frames_to_remember
from ssad_ray.methods.training import load_network_state, network_state

_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, which torchvision's weights expect."""
_SMOOTHING = 1 / 64  # sigma, of the frame's side: 4 px of 256


class Backbone(nn.Module):
    """A residual network up to its third stage; a feature joins the second stage's and the third's, 8 px apart.

    It is never trained: what batch norm does to a channel is part of the convolution before it.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, name: str, weights: Path | None = None) -> None:
        super().__init__()
        whole = get_model(name, weights=None).eval()
        whole.layer4, whole.fc = nn.Identity(), nn.Identity()
        if weights is not None:
            _load_weights(whole, weights, name)
        _fold_norms(whole)
        self.conv1, self.relu, self.maxpool = whole.conv1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(_SPREAD).view(3, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map frames (B, 3, H, W) in [0, 1] to features (B, C, h, w), each the mean of 3x3 cells."""
        x = self.maxpool(self.relu(self.conv1((x_BCHW - self.mean) / self.spread)))
        fine = self.layer2(self.layer1(x))
        coarse = self.layer3(fine)
        fine, coarse = (functional.avg_pool2d(each, 3, 1, 1) for each in (fine, coarse))
        return torch.cat([fine, functional.interpolate(coarse, fine.shape[2:], mode="bilinear")], dim=1)


class MemoryBank:
    """The detector; a map holds the distances to the nearest remembered feature, in units of usual ones."""

    def __init__(self, config: MemoryBankConfig) -> None:
        self.config = config
        self.network = Backbone(config.backbone)
        self.normal: NormalPatches | None = None

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.memory_bank)

    @torch.inference_mode()
    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Take the weights and remember features of the good frames.

        Raises:
            ConfigError: The file of weights cannot be read, or is of another network.
        """
        torch.manual_seed(seed)
        weights = None if self.config.weights is None else Path(self.config.weights)
        self.network = Backbone(self.config.backbone, weights)
        self.network.to(device()).to(memory_format=torch.channels_last)
        rng = generator(seed, "memory")
        images = frames_to_remember(frames, rng)
        maps = torch.cat([self._features(image[np.newaxis]) for image in images])
        self.normal = NormalPatches.of(maps, frames.has_places, self.config.memory, self._apart, rng)

    @torch.inference_mode()
    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the smoothed ratios (B, H, W)."""
        assert self.normal is not None, "a detector is fitted before it scores"  # noqa: S101
        height, width = images_BHWC.shape[1:3]
        ratios = self.normal.ratios(self._features(images_BHWC))[:, None]
        enlarged = functional.interpolate(ratios, (height, width), mode="bilinear")[:, 0].cpu().numpy()
        return blurred(enlarged, _SMOOTHING * (height * width) ** 0.5)

    def _features(self, images_BHWC: NDArray[np.uint8]) -> Tensor:
        features: Tensor = self.network(to_tensor(images_BHWC, device()))
        return features.permute(0, 2, 3, 1)

    def _apart(self, features_hwD: Tensor, memory: Memory | PlaceMemory) -> Tensor:
        return affinity_distance(features_hwD, memory, num=1, sharpest=1.0, of_features=False)

    def state(self) -> State:
        """Return the network's weights, and what is normal."""
        return network_state(self.network) | (self.normal.state() if self.normal else {})

    def load_state(self, state: State) -> None:
        """Take over what `state` returned."""
        load_network_state(self.network, state)
        self.normal = NormalPatches.from_state(state, self._apart)


def _fold_norms(module: nn.Module) -> None:
    children = list(module.named_children())
    for (name, child), (name_of_next, following) in pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, following))
            setattr(module, name_of_next, nn.Identity())
    for _, child in children:
        _fold_norms(child)


def _load_weights(network: nn.Module, path: Path, name: str) -> None:
    accepted = f"needed are the weights of torchvision's {name} as safetensors"
    try:
        given = load_file(path)
        needed = {key: given[key] for key in network.state_dict() if not key.endswith("num_batches_tracked")}
        network.load_state_dict(needed, strict=False)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"detector.memory_bank.weights: {path} cannot be read ({error}); {accepted}") from error
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"detector.memory_bank.weights: {path} is of another network ({error}); {accepted}"
        ) from error
