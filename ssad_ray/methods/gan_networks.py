"""The three networks of `gan_inversion`: an encoder, a generator with a spatial latent, a discriminator of patches.

All are convolutional throughout and work on frames of any size divisible by 16. No norm looks beyond its place, so
that a pixel's reconstruction depends on what is near it alone, whatever the frame's size.

Shapes: B batch, 3 colour channels, H W height and width of a frame, L channels of the latent, h w its height and
width (an eighth of H and W), F channels of a feature map.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssad_ray.methods.encoders import ChannelNorm

STRIDE_PX = 8
"""Pixels between neighbouring places of the latent."""

_SLOPE = 0.2


class GanNetwork(nn.Module):
    """What is trained together."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(width, latent)
        self.generator = Generator(width, latent)
        self.discriminator = Discriminator(width)


class Encoder(nn.Sequential):
    """Maps frames (B, 3, H, W) to latents (B, L, h, w); the generator's mirror image."""

    def __init__(self, width: int, latent: int) -> None:
        layers: list[nn.Module] = []
        for channels_in, channels_out in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(channels_in, channels_out, 4, 2, 1), ChannelNorm(channels_out), nn.LeakyReLU(_SLOPE)]
        layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1), ChannelNorm(4 * width), nn.LeakyReLU(_SLOPE)]
        super().__init__(*layers, nn.Conv2d(4 * width, latent, 3, padding=1))


class Generator(nn.Module):
    """Maps latents (B, L, h, w) to frames (B, 3, H, W) in [-1, 1]."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        widths = (latent, 4 * width, 4 * width, 2 * width, width)
        self.groups = nn.ModuleList(
            nn.Sequential(
                *([nn.Upsample(scale_factor=2, mode="nearest")] if index else []),
                nn.Conv2d(channels_in, channels_out, 3, padding=1),
                ChannelNorm(channels_out),
                nn.LeakyReLU(_SLOPE),
            )
            for index, (channels_in, channels_out) in enumerate(pairwise(widths))
        )
        self.output = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z_BLhw: Tensor) -> Tensor:
        """Generate."""
        x = z_BLhw
        for group in self.groups:
            x = group(x)
        return torch.tanh(self.output(x))


class Discriminator(nn.Module):
    """Maps frames (B, 3, H, W) in [-1, 1] to feature maps (B, F, H / s, W / s), s = 2, 4, 8, 16, and patch logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 8 * width)
        self.layers = nn.ModuleList(
            SpectralConv(channels_in, channels_out, 4, 2, 1) for channels_in, channels_out in pairwise(widths)
        )
        self.output = SpectralConv(8 * width, 1, 3, 1, 1)

    def forward(self, x_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the feature maps, finest first, and the logits (B, 1, H / 16, W / 16), high where it looks real."""
        features = list(self.features(x_BCHW))
        return features, self.output(features[-1])

    def features(self, x_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield the feature maps, finest first; none is made before it is asked for."""
        x = x_BCHW
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), _SLOPE)
            yield x


class SpectralConv(nn.Conv2d):
    """A convolution whose weight is divided by its largest singular value (Miyato et al. 2018), exactly.

    The usual estimate by power iteration is a buffer that changes in training. The exact value costs little at these
    widths: the eigenvalues of a matrix of out x out channels.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Convolve."""
        matrix = self.weight.flatten(1)
        largest = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp(min=1e-12).sqrt()
        convolved: Tensor = self._conv_forward(input, self.weight / largest, self.bias)
        return convolved
