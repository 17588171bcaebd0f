"""SCL-VI: features of patches, learnt by telling where two patches lie, compared with those of remembered good ones.

"Self-Supervised Context Learning for Visual Inspection of Industrial Defects" (Wang et al., 2023), on top of
Patch-SVDD (Yi, Yoon, ACCV 2020). Different from the paper: the default encoder is convolutional throughout, the grid
of a pair never leaves the picture, of the good patches those are remembered that are farthest apart, and on aligned
parts a patch is compared with those of its place.

Shapes: B batch, H W of a frame, K side of a patch, P patches of an example, D channels of a feature, h w of a map.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ssad_ray.config import RunConfig
from ssad_ray.core.rng import generator
from ssad_ray.errors import ConfigError
from ssad_ray.method_config import ContextSvddConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor
from ssad_ray.methods.batches import good_items
from ssad_ray.methods.devices import device
from ssad_ray.methods.encoders import FEATURES, STRIDES_PX, DenseEncoder, PaperEncoder, PatchEncoder
from ssad_ray.methods.memory import Memory, PlaceMemory, affinity_distance
from ssad_ray.methods.normal_patches import NormalPatches, frames_to_remember
from ssad_ray.methods.patch_maps import gaussian_kernel, spread_over_pixels
from ssad_ray.methods.pretexts import PRETEXTS, draw
from ssad_ray.methods.training import load_network_state, network_state, train

_HIDDEN = 128
_COLOUR_SHIFT = 0.02
_NOISE = 0.02
_NO_DISTANCE = 1e-12  # squared; a distance of zero has no gradient
_SPREAD = 0.2  # of a patch's side


class ContextNetwork(nn.Module):
    """The encoder, and per scale a classifier that is needed in training only."""

    mean_311: Tensor
    spread: Tensor

    def __init__(self, config: ContextSvddConfig, num_scales: int) -> None:
        super().__init__()
        main = (
            DenseEncoder(config.patch_px, config.width)
            if config.encoder == "dense"
            else PaperEncoder(normalises_responses=config.encoder == "published")
        )
        self.encoder = PatchEncoder(main, config.patch_px, num_scales)
        self.classifiers = nn.ModuleList(_classifier(PRETEXTS[config.pretext].num_classes) for _ in range(num_scales))
        self.register_buffer("mean_311", torch.zeros(3, 1, 1))
        self.register_buffer("spread", torch.ones(()))
        self.apply(_initialise)

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """Map frames (B, 3, H, W) in [0, 1] to feature maps (B, D, h, w), one per scale."""
        return self.encoder.of_frames((x_BCHW - self.mean_311) / self.spread)


class ContextSvdd:
    """The detector around the network; a map is the product over the scales of distances in units of usual ones.

    Of the large scale the root is taken: its patches cover twice as many pixels each way, and blur what the small ones
    outline.
    """

    def __init__(self, config: ContextSvddConfig) -> None:
        self.config = config
        self.training = config.training
        self.pretext = PRETEXTS[config.pretext]
        self.network = ContextNetwork(config, 1)
        self.normal: list[NormalPatches] = []

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.context_svdd)

    def initialise(self, frames: TrainingFrames, seed: int) -> None:
        """Draw initial weights and take mean and spread of the good frames' colours."""
        height, width = frames.images_NHWC.shape[1:3]
        smallest = 3 * self.config.patch_px
        if min(height, width) < smallest:
            raise ConfigError(
                f"context_svdd needs frames of at least {smallest} px a side, three of its patches; they are "
                f"{height}x{width} (HxW): raise input.size_px, or lower detector.context_svdd.patch_px"
            )
        torch.manual_seed(seed)
        self.network = ContextNetwork(self.config, 2 if min(height, width) >= 2 * smallest else 1)
        good = frames.images_NHWC[frames.is_good_N]
        mean = good.mean((0, 1, 2)) / 255.0
        squares = np.mean([np.square(image, dtype=np.float32).mean((0, 1)) for image in good], axis=0) / 255.0**2
        self.network.mean_311.copy_(torch.from_numpy(mean).view(3, 1, 1))
        self.network.spread.fill_(max(float((squares - mean**2).mean()) ** 0.5, 1 / 255))

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> dict[str, NDArray[Any]]:
        """Return examples of the pretext task for each scale s, B of P patches.

        `patches.<s>` is (B, P, K, K, 3) float32, normalised by the good frames, with K = `patch_px` * 2**s; `label.<s>`
        is (B,) int64, the class that the patches show.
        """
        mean = self.network.mean_311.view(3).cpu().numpy()
        spread = np.float32(self.network.spread.item())
        arrays: dict[str, list[Any]] = {}
        for rng, image in good_items(frames, self.training, shard, seed, "patches", step):
            for scale in range(self.network.encoder.num_scales):
                patches, label = draw(self.pretext, image, self.config.patch_px << scale, rng)
                varied = _varied(patches, rng)
                arrays.setdefault(f"patches.{scale}", []).append((varied - mean) / spread)
                arrays.setdefault(f"label.{scale}", []).append(np.int64(label))
        return {name: np.stack(each) for name, each in arrays.items()}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Add up over the scales: tell the class (eq. 1), and keep twins together (eq. 2), weighted (eq. 3)."""
        total = torch.zeros((), device=device())
        for scale, classifier in enumerate(self.network.classifiers):
            patches_BPKKC = batch[f"patches.{scale}"]
            features = self.network.encoder.of_patches(patches_BPKKC.flatten(0, 1).permute(0, 3, 1, 2))
            *cells, twin = features.view(*patches_BPKKC.shape[:2], FEATURES).unbind(1)
            told = cells[0] - cells[1] if len(cells) > 1 else cells[0]
            apart = ((cells[0] - twin).square().sum(1) + _NO_DISTANCE).sqrt().mean()
            total = total + functional.cross_entropy(classifier(told), batch[f"label.{scale}"])
            total = total + self.config.alpha * apart
        return total

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)

    @torch.inference_mode()
    def remember(self, frames: TrainingFrames, seed: int) -> None:
        """Keep features of good patches."""
        rng = generator(seed, "memory")
        images = frames_to_remember(frames, rng)
        maps = zip(*(self._features(image[np.newaxis]) for image in images), strict=True)
        self.normal = [
            NormalPatches.of(torch.cat(each), frames.has_places, self.config.memory, self._apart, rng) for each in maps
        ]

    @torch.inference_mode()
    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the joined ratios of both scales (B, H, W)."""
        batch, height, width = images_BHWC.shape[:3]
        maps = torch.ones(batch, height, width, device=device())
        for scale, (features, normal) in enumerate(zip(self._features(images_BHWC), self.normal, strict=True)):
            side, ratios = self.config.patch_px << scale, normal.ratios(features)
            kernel = gaussian_kernel(side, side, _SPREAD).to(device())
            spread = spread_over_pixels(ratios, kernel, STRIDES_PX[scale], height, width)
            maps *= spread ** (0.5**scale)
        return maps.cpu().numpy()

    def _features(self, images_BHWC: NDArray[np.uint8]) -> list[Tensor]:
        """Return the maps of features of frames, (B, h, w, D) per scale."""
        return [each.permute(0, 2, 3, 1) for each in self.network.features(to_tensor(images_BHWC, device()))]

    def _apart(self, features_hwD: Tensor, memory: Memory | PlaceMemory) -> Tensor:
        options = self.config
        return affinity_distance(
            features_hwD, memory, options.neighbours, options.sharpest, of_features=options.score == "feature"
        )

    def state(self) -> State:
        """Return weights, and what is normal at each scale."""
        remembered = {
            f"{scale}.{name}": value
            for scale, normal in enumerate(self.normal)
            for name, value in normal.state().items()
        }
        return network_state(self.network) | remembered

    def load_state(self, state: State) -> None:
        """Take over what `state` returned."""
        scales = range(2 if "1.memory" in state else 1)
        self.network = ContextNetwork(self.config, len(scales))
        load_network_state(self.network, state)
        self.normal = [
            NormalPatches.from_state({name: state[f"{scale}.{name}"] for name in ("memory", "usual")}, self._apart)
            for scale in scales
        ]


def _classifier(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, _HIDDEN),
        nn.LeakyReLU(0.1),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.LeakyReLU(0.1),
        nn.Linear(_HIDDEN, num_classes),
    )


def _initialise(layer: nn.Module) -> None:
    """Keep the scale of what passes through: the only norm comes last."""
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.kaiming_normal_(layer.weight, a=0.1)
        nn.init.zeros_(layer.bias)


def _varied(patches_PKKC: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return patches in [0, 1] with channels shifted and noise, so that colour and borders do not give classes away."""
    shift = rng.normal(0.0, _COLOUR_SHIFT, (len(patches_PKKC), 1, 1, 3))
    noise = rng.normal(0.0, _NOISE, patches_PKKC.shape)
    return (patches_PKKC / 255.0 + shift + noise).astype(np.float32)
