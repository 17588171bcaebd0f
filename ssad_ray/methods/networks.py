"""Network building blocks shared by the methods; GroupNorm throughout, because batches and data sets are small.

Shapes: B batch, C channels, H W frame height and width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK = 2
_COARSE_BLOCK = 4


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each followed by GroupNorm and leaky ReLU.

    Leaky, because a plain one can die at the few defective pixels and then never learns them.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.GroupNorm(max(1, out_channels // 8), out_channels),
                nn.LeakyReLU(0.1, inplace=True),
            ]
        super().__init__(*layers)


class Encoder(nn.Module):
    """Halves the frame between blocks; returns the output of every block, finest first."""

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        ins = [in_channels, *widths[:-1]]
        self.blocks = nn.ModuleList(ConvBlock(i, o) for i, o in zip(ins, widths, strict=True))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to features at strides 1, 2, 4, …"""
        features = []
        for index, block in enumerate(self.blocks):
            x_BCHW = block(functional.max_pool2d(x_BCHW, 2) if index else x_BCHW)
            features.append(x_BCHW)
        return features


class UNet(nn.Module):
    """Encoder, decoder with skips, linear output at the frame's own resolution (Ronneberger et al. 2015).

    Logits start at `prior`: defects are rare, and that need not be learnt. The network works on 2x2 pixel blocks as
    channels: a quarter of the cost, at no loss of output resolution.
    """

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], prior: float) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels * _BLOCK**2, widths)
        ups = list(widths)[::-1]
        self.decoder = nn.ModuleList(ConvBlock(low + high, high) for low, high in pairwise(ups))
        self.head = nn.Conv2d(widths[0], out_channels * _BLOCK**2, 1)
        self.prior = prior

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        *skips, x = self.encoder(_blocks_as_channels(x_BCHW, _BLOCK))
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return self.prior + functional.pixel_shuffle(self.head(x), _BLOCK)


class Reconstructor(nn.Module):
    """Autoencoder without skips: what passes its narrow bottleneck is what is normal.

    It works on 4x4 pixel blocks as channels: its output is smooth anyway.
    """

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels * _COARSE_BLOCK**2, widths)
        self.squeeze = nn.Conv2d(widths[-1], latent, 1)
        ups = list(widths)[::-1]
        self.decoder = nn.ModuleList(ConvBlock(i, o) for i, o in zip([latent, *ups[:-1]], ups, strict=True))
        self.head = nn.Conv2d(widths[0], out_channels * _COARSE_BLOCK**2, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, in, H, W) to a reconstruction (B, out, H, W), unbounded around [0, 1]."""
        x = self.squeeze(self.encoder(_blocks_as_channels(x_BCHW, _COARSE_BLOCK))[-1])
        for index, block in enumerate(self.decoder):
            x = block(functional.interpolate(x, scale_factor=2, mode="bilinear") if index else x)
        return functional.pixel_shuffle(self.head(x), _COARSE_BLOCK)


def _blocks_as_channels(x_BCHW: Tensor, block: int) -> Tensor:
    """Return (B, C * block², H / block, W / block), channels last before and after: else torch copies it at a crawl."""
    last = x_BCHW.contiguous(memory_format=torch.channels_last)
    return functional.pixel_unshuffle(last, block).contiguous(memory_format=torch.channels_last)


def doubling(width: int, levels: int, limit: int) -> list[int]:
    """Return block widths: doubled at every level up to a limit, or all of the first width where that is above it."""
    return [min(width << level, max(limit, width)) for level in range(levels)]


def coordinates(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return (B, 2, H, W) positions in [-1, 1], rows first: on aligned parts every place has its own normality."""
    rows = torch.linspace(-1.0, 1.0, height, device=device).view(1, 1, height, 1).expand(batch, 1, height, width)
    columns = torch.linspace(-1.0, 1.0, width, device=device).view(1, 1, 1, width).expand(batch, 1, height, width)
    return torch.cat([rows, columns], dim=1)
