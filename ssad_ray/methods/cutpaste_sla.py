"""CPS-SLA: features learnt by telling edited crops from untouched ones, with labels that say how much of an edit shows.

Hu, Wang: "An Anomaly Detection Method Based on Self-Supervised Learning with Soft Label Assignment for Defect Visual
Inspection", on top of CutPaste (Li et al., CVPR 2021). docs/decisions/0013-cutpaste-sla.md says what differs.

Shapes: B batch, N good frames, H W of a frame, K side of a patch, V versions of a crop, D channels of a feature, h w
rows and columns of patches.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from ssad_ray.config import RunConfig
from ssad_ray.core.rng import generator
from ssad_ray.core.synthesis.edits import EDITS, changed_share, soft_label
from ssad_ray.errors import ConfigError
from ssad_ray.method_config import CutPasteSlaConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor, to_unit
from ssad_ray.methods.batches import good_items
from ssad_ray.methods.density import Density, Gaussian, Kernel
from ssad_ray.methods.devices import device
from ssad_ray.methods.patch_maps import gaussian_kernel, spread_over_pixels
from ssad_ray.methods.training import load_network_state, network_state, train

_GROUPS = 32
_HIDDEN = 128
_SIGMA = 10 / 32  # of a patch's side; receptive-field upsampling (Liznerski et al., ICLR 2021)
_MAX_PATCHES = 250_000
_PATCHES_AT_ONCE = 256  # more of them take memory that is fetched from the system anew each time
_DENSITY = "density."


class EditNetwork(nn.Module):
    """The first stages of a ResNet-18, and a head that is needed in training only."""

    def __init__(self, num_stages: int, num_classes: int) -> None:
        super().__init__()
        resnet = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(_GROUPS, channels))
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4][:num_stages])
        width = 64 << (num_stages - 1)
        self.head = nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, num_classes))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W) in [0, 1] to logits, the first for untouched."""
        return self.head(self.features(x_BCHW, len(self.stages)))  # type: ignore[no-any-return]

    def features(self, x_BCHW: Tensor, num_stages: int) -> Tensor:
        """Map pictures (B, 3, H, W) in [0, 1] to what leaves a stage, its mean over the picture (B, D)."""
        x_BCHW = self.stem[:-1](4.0 * x_BCHW - 2.0)
        # Ten times faster on channels last; group norm, which all else waits for, is so on channels first.
        x_BCHW = self.stem[-1](x_BCHW.contiguous(memory_format=torch.channels_last)).contiguous()
        for stage in self.stages[:num_stages]:
            x_BCHW = stage(x_BCHW)
        return x_BCHW.mean((2, 3))


class CutPasteSla:
    """The detector around the network."""

    def __init__(self, config: CutPasteSlaConfig) -> None:
        self.config = config
        self.training = config.training
        self.edits = ("cutpaste", "scar") if config.transformation == "fusion" else (config.transformation,)
        self.network = EditNetwork(config.stages, 1 + len(self.edits))
        self.compared_stage = config.stages
        self.density: Density | None = None

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.cutpaste_sla)

    def _patch_sides(self, image_HWC: NDArray[np.uint8]) -> tuple[int, int]:
        """Return height and width of a patch; on the level of images the only patch is the frame."""
        if self.config.level == "image":
            return image_HWC.shape[0], image_HWC.shape[1]
        return self.config.patch_px, self.config.patch_px

    def initialise(self, frames: TrainingFrames, seed: int) -> None:
        """Draw initial weights."""
        height, width = frames.images_NHWC.shape[1:3]
        if self.config.level == "patch" and min(height, width) < self.config.patch_px:
            raise ConfigError(
                f"cutpaste_sla needs frames of at least {self.config.patch_px} px a side, its patch; they are "
                f"{height}x{width} (HxW): raise input.size_px, or lower detector.cutpaste_sla.patch_px"
            )
        torch.manual_seed(seed)
        self.network = EditNetwork(self.config.stages, 1 + len(self.edits))

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> dict[str, NDArray[Any]]:
        """Return crops, each untouched and with every edit, `images` (B, V, K, K, 3), and `targets` (B, V, V)."""
        height, width = self._patch_sides(frames.images_NHWC[0])
        images, targets = [], []
        for rng, image in good_items(frames, self.training, shard, seed, "edits", step):
            top, left = (int(rng.integers(a - b + 1)) for a, b in zip(image.shape, (height, width), strict=False))
            versions, labels = self._edited(image[top : top + height, left : left + width], rng)
            images.append(versions)
            targets.append(labels)
        return {"images": np.stack(images), "targets": np.stack(targets)}

    def _edited(
        self, crop_KKC: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return all versions of a crop (V, K, K, 3), and what each counts as (V, V)."""
        versions, labels = [crop_KKC], np.zeros((1 + len(self.edits),) * 2, np.float32)
        for index, name in enumerate(self.edits, start=1):
            edited, pasted = EDITS[name](crop_KKC, rng)
            is_soft = self.config.labels == "soft"
            versions.append(edited)
            labels[index, index] = (
                soft_label(changed_share(crop_KKC, edited, pasted), self.config.alpha) if is_soft else 1.0
            )
        labels[:, 0] = 1.0 - labels.sum(axis=1)
        return np.stack(versions), labels

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Tell which edit was made, if any."""
        logits = self.network(to_unit(batch["images"].flatten(0, 1)))
        return functional.cross_entropy(logits, batch["targets"].flatten(0, 1))

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)

    @torch.inference_mode()
    def remember(self, frames: TrainingFrames, seed: int) -> None:
        """Learn what the features of untouched good patches look like, from some frames if there are very many."""
        self.network.to(memory_format=torch.contiguous_format)
        images = frames.images_NHWC[frames.is_good_N]
        options = self.config
        is_by_place = options.density == "places" and options.level == "patch" and frames.has_places
        self.compared_stage = options.compared_stage or (1 if is_by_place else options.stages)
        first = self._features(images[0])
        chosen = generator(seed, "density").permutation(len(images))[: max(1, _MAX_PATCHES // first[..., 0].numel())]
        features_NhwD = torch.stack([self._features(images[index]) for index in sorted(chosen)])
        if options.density == "kernel":
            self.density = Kernel.fitted(features_NhwD)
        else:
            self.density = (Gaussian.by_place if is_by_place else Gaussian.everywhere)(features_NhwD)

    @torch.inference_mode()
    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return how unlikely the patches over each pixel are (B, H, W)."""
        assert self.density is not None, "a detector is fitted before it scores"  # noqa: S101
        # Frame by frame, so that a score does not depend on what it is computed beside.
        scores_Bhw = torch.cat([self.density.score(self._features(image)[None]) for image in images_BHWC])
        kernel = gaussian_kernel(*self._patch_sides(images_BHWC[0]), _SIGMA).to(device())
        maps = spread_over_pixels(scores_Bhw, kernel, self.config.stride_px, *images_BHWC.shape[1:3])
        return maps.cpu().numpy()

    def _features(self, image_HWC: NDArray[np.uint8]) -> Tensor:
        """Return the features of all patches of a frame (h, w, D), of unit length."""
        stride, (high, wide) = self.config.stride_px, self._patch_sides(image_HWC)
        image_CHW = to_tensor(image_HWC[np.newaxis], device())[0]
        patches_hwCKK = image_CHW.unfold(1, high, stride).unfold(2, wide, stride).permute(1, 2, 0, 3, 4)
        rows, columns = patches_hwCKK.shape[:2]
        rows_at_once = max(1, _PATCHES_AT_ONCE // columns)
        parts = [
            self.network.features(part.flatten(0, 1), self.compared_stage)
            for part in torch.split(patches_hwCKK, rows_at_once)
        ]
        return functional.normalize(torch.cat(parts), dim=1).view(rows, columns, -1)

    def state(self) -> State:
        """Return weights, density, and the stage whose features it is of."""
        density = self.density.state() if self.density is not None else {}
        learnt = {_DENSITY + name: value for name, value in density.items()}
        return {**network_state(self.network), **learnt, "compared_stage": np.array(self.compared_stage)}

    def load_state(self, state: State) -> None:
        """Take over what `state` returned."""
        self.network = EditNetwork(self.config.stages, 1 + len(self.edits))
        load_network_state(self.network, state)
        self.network.to(memory_format=torch.contiguous_format)
        self.compared_stage = int(state["compared_stage"])
        learnt = {name.removeprefix(_DENSITY): value for name, value in state.items() if name.startswith(_DENSITY)}
        kind = Kernel if self.config.density == "kernel" else Gaussian
        self.density = kind.from_state(learnt, device())
