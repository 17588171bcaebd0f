"""GAN inversion: what a generator that was trained on good frames alone cannot show is anomalous.

Routine 2 of the SsaA and SIAD papers. Different from the inversion they cite (Pan et al., "Exploiting Deep Generative
Prior", ECCV 2020): the latent is spatial, an encoder finds it in one pass, and the generator itself moves for no frame
unless `relax` asks for it. docs/decisions/0014-gan-inversion.md says why.

Shapes: B batch, N good frames, 3 colour channels, H W height and width of a frame, K side of a crop,
L channels of the latent, h w its height and width.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from ssad_ray.config import RunConfig
from ssad_ray.core.rng import generator
from ssad_ray.method_config import GanInversionConfig
from ssad_ray.methods.base import State, TrainingFrames, to_tensor, to_unit
from ssad_ray.methods.batches import good_items
from ssad_ray.methods.devices import device
from ssad_ray.methods.gan_networks import STRIDE_PX, GanNetwork
from ssad_ray.methods.inversion import LEAST_TRUSTED, refine, relax_all, relax_trusted, trust
from ssad_ray.methods.losses import ssim
from ssad_ray.methods.normal_patches import frames_to_remember
from ssad_ray.methods.training import load_network_state, network_state, train
from ssad_ray.methods.usual import Usual, smoothed

_RECONSTRUCTION = 10.0
_ADVERSARIAL = 0.02
_PRIOR = 0.01
_TRUSTED = 0.995  # quantile of a good frame's residuals
_FEATURE_MAPS = 3  # of the discriminator's; later ones say little about where
_PIXELS_AT_ONCE = 1 << 18


class GanInversion:
    """The detector around the networks; a map is how far frame and generated frame differ, in units of usual."""

    def __init__(self, config: GanInversionConfig) -> None:
        self.config = config
        self.training = config.training
        self.network = GanNetwork(config.width, config.latent)
        self.usual = Usual(*torch.ones(3, 1, 1, 1))
        self.trusted_below = 0.0
        self.suspicious_above = 0.0

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.gan_inversion)

    def initialise(self, frames: TrainingFrames, seed: int) -> None:  # noqa: ARG002
        """Draw initial weights."""
        torch.manual_seed(seed)
        self.network = GanNetwork(self.config.width, self.config.latent)

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> dict[str, NDArray[Any]]:
        """Return crops of good frames, `image` (B, K, K, 3) uint8, and `noise` (B, L, h, w) for their latents."""
        height, width = frames.images_NHWC.shape[1:3]
        side = min(self.config.crop_px, height, width)
        crops, noises = [], []
        for rng, image in good_items(frames, self.training, shard, seed, "crops", step):
            y, x = (int(rng.integers(length - side + 1)) for length in (height, width))
            crops.append(image[y : y + side, x : x + side])
            noises.append(rng.normal(0.0, self.config.noise, (self.config.latent, *2 * (side // STRIDE_PX,))))
        return {"image": np.stack(crops), "noise": np.stack(noises).astype(np.float32)}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Add up the losses of both players, so that their gradients come out in one pass (hinge loss).

        Encoder and generator are judged by a discriminator whose weights are constants, and the discriminator is shown
        generated crops that are constants: neither loss moves the other player. Only the
        limit of the gradient's norm, as for every method, is one for both.
        """
        encoder, generator_, discriminator = self.network.encoder, self.network.generator, self.network.discriminator
        real = 2.0 * to_unit(batch["image"]) - 1.0
        z = encoder(real)
        fake = generator_(z + batch["noise"])
        wanted, logits_real = discriminator(real)
        _, logits_fake = discriminator(fake.detach())
        judging = functional.relu(1.0 - logits_real).mean() + functional.relu(1.0 + logits_fake).mean()

        constants = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        features, logits = functional_call(discriminator, constants, (fake,))
        alike = [functional.l1_loss(found, aim.detach()) for found, aim in zip(features, wanted, strict=True)]
        likeness = _RECONSTRUCTION * functional.l1_loss(fake, real) + torch.stack(alike).sum()
        total: Tensor = judging + likeness - _ADVERSARIAL * logits.mean() + _PRIOR * z.square().mean()
        return total

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Train in this process."""
        train(self, frames, seed)

    @torch.no_grad()
    def remember(self, frames: TrainingFrames, seed: int) -> None:
        """Learn from some good frames how much they usually differ, and from which residual and which score on to act.

        That the networks were trained on them does no harm: unseen good frames differ hardly more.
        """
        images = frames_to_remember(frames, generator(seed, "remember"))
        shown = ((y, self._parts(x, y)) for x, _, y in self._shown(images))
        self.usual = Usual.of_good(shown, has_places=frames.has_places)
        limits, scores = [], []
        for x, _, y in self._shown(images):
            ratios = self._parts(x, y) / self.usual.at(y)
            limits += [np.quantile(each, _TRUSTED) for each in smoothed(ratios[:, 0]).cpu().numpy()]
            scores += smoothed(ratios.mean(1)).amax((1, 2)).tolist()
        self.trusted_below = float(np.mean(limits))
        self.suspicious_above = float(np.quantile(scores, self.config.refine_above))

    @torch.no_grad()
    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the mean of ratios to what is usual (B, H, W), at least 0."""
        maps = []
        for x, z, y in self._shown(images_BHWC):
            chunk = self._maps(x, y)
            for index in self._to_be_fitted(chunk):
                one = slice(index, index + 1)
                chunk[one] = self._maps(x[one], self._inverted(x[one], z[one], y[one]))
            maps.append(chunk)
        return torch.cat(maps).cpu().numpy()

    def _shown(self, images_BHWC: NDArray[np.uint8]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield frames in [-1, 1], their latents by the encoder and what is generated from those, a few at a time."""
        height, width = images_BHWC.shape[1:3]
        at_once = max(1, _PIXELS_AT_ONCE // (height * width))
        for at in range(0, len(images_BHWC), at_once):
            x = 2.0 * to_tensor(images_BHWC[at : at + at_once], device()) - 1.0
            z = self.network.encoder(x)
            yield x, z, self.network.generator(z)

    def _to_be_fitted(self, maps_BHW: Tensor) -> list[int]:
        """Return which frames are suspicious; none if nothing is to be fitted to them."""
        if self.config.refine_steps == 0 and self.config.relax == "none":
            return []
        suspicious: list[int] = (maps_BHW.amax((1, 2)) > self.suspicious_above).nonzero()[:, 0].tolist()
        return suspicious

    def _inverted(self, x_1CHW: Tensor, z_1Lhw: Tensor, y_1CHW: Tensor) -> Tensor:
        """Return what is generated for one suspicious frame when the latent, or the generator too, is fitted to it."""
        generator_, discriminator = self.network.generator, self.network.discriminator
        z = refine(generator_, x_1CHW, z_1Lhw, self.usual.at(y_1CHW)[:, :1], self.config.refine_steps)
        if self.config.relax == "dgp":
            return relax_all(generator_, discriminator, x_1CHW, z, self.config.relax_steps)
        y: Tensor = generator_(z)
        if self.config.relax == "masked":
            ratio = self._parts(x_1CHW, y)[:, 0] / self.usual.at(y)[:, 0]
            trusted = trust(smoothed(ratio), self.trusted_below)
            if trusted.mean() >= LEAST_TRUSTED:
                return relax_trusted(generator_, x_1CHW, z, trusted, self.config.relax_steps)
        return y

    def _parts(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Return how frames and generated ones differ in colour, in structure and to the discriminator (B, 3, H, W)."""
        colour = (x_BCHW - y_BCHW).abs().mean(1)
        structure = 1.0 - ssim((x_BCHW + 1.0) / 2.0, (y_BCHW + 1.0) / 2.0).mean(1)
        features = islice(self.network.discriminator.features(torch.cat([x_BCHW, y_BCHW])), _FEATURE_MAPS)
        apart = [(a - b).abs().mean(1, keepdim=True) for a, b in (each.chunk(2) for each in features)]
        at_full_size = [functional.interpolate(each, size=x_BCHW.shape[2:], mode="bilinear") for each in apart]
        return torch.stack([colour, structure, torch.cat(at_full_size, dim=1).mean(1)], dim=1)

    def _maps(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Return anomaly maps (B, H, W)."""
        return smoothed((self._parts(x_BCHW, y_BCHW) / self.usual.at(y_BCHW)).mean(1))

    def state(self) -> State:
        """Return weights and what was learnt besides."""
        limits = {"trusted_below": np.array(self.trusted_below), "suspicious_above": np.array(self.suspicious_above)}
        return network_state(self.network) | self.usual.state() | limits

    def load_state(self, state: State) -> None:
        """Take over what `state` returned."""
        self.network = GanNetwork(self.config.width, self.config.latent)
        load_network_state(self.network, state)
        self.usual = Usual.from_state(state, device())
        self.trusted_below = float(state["trusted_below"])
        self.suspicious_above = float(state["suspicious_above"])
