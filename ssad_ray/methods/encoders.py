"""Encoders of patches: a patch becomes one feature, a frame a map of features, one every few pixels.

Shapes: B batch, H W of a frame, h w of the map, K side of a patch, D channels of a feature.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 64
STRIDES_PX = (4, 16)
"""Pixels between neighbouring patches of the maps of both scales."""

_SLOPE = 0.1
_PATCHES_AT_ONCE = 1024


class ChannelNorm(nn.LayerNorm):
    """Normalises the channels of every place by itself, so that a place does not depend on what is around it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (B, C, h, w) to the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DenseEncoder(nn.Sequential):
    """Convolutions without padding: the map of a frame holds exactly the features of its patches.

    What neighbouring patches share is computed once, and a patch's feature does not depend on what is around it.
    """

    def __init__(self, side_px: int, width: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2), nn.LeakyReLU(_SLOPE)]
        layers += [nn.Conv2d(width, 2 * width, 3, 2), nn.LeakyReLU(_SLOPE)]
        # Here a feature sees 8 px, and each further convolution adds 8.
        for index in range((side_px - 8) // 8):
            layers += [nn.Conv2d((2 if index == 0 else 4) * width, 4 * width, 3), nn.LeakyReLU(_SLOPE)]
        # The only norm stands before the tanh: without it training may drive all features into saturation, for good.
        super().__init__(*layers, nn.Conv2d(4 * width, FEATURES, 1), ChannelNorm(FEATURES), nn.Tanh())


class PaperEncoder(nn.Module):
    """SCL-VI's main encoder (Table 5) for patches of 32 px, with the paddings that its sizes imply.

    Its padding and its norms, of one patch each, forbid to share work: every patch of a frame is encoded by itself. The
    authors' code normalises responses after two of the pools, of which the paper says nothing.
    """

    def __init__(self, normalises_responses: bool = False) -> None:
        super().__init__()

        def conv(in_channels: int, out_channels: int, kernel: int, padding: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_channels, out_channels, kernel, 1, padding),
                nn.GroupNorm(out_channels // 8, out_channels),
            ]

        def pool(padding: int) -> nn.Module:
            return nn.MaxPool2d(3, 2, padding)

        def response() -> nn.Module:
            return nn.LocalResponseNorm(5, 1e-4, 0.75) if normalises_responses else nn.Identity()

        self.layers = nn.Sequential(
            *conv(3, 96, 5, 0), nn.ReLU(), pool(1), response(),
            *conv(96, 256, 5, 2), nn.ReLU(), pool(0), response(),
            *conv(256, 384, 3, 1), nn.ReLU(),
            *conv(384, 384, 3, 1), nn.ReLU(),
            *conv(384, 256, 3, 1), nn.ReLU(), pool(1),
            *conv(256, 128, 2, 0),
            *conv(128, FEATURES, 2, 0), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, D, h, w)."""
        batch, _, height, width = x_BCHW.shape
        stride = STRIDES_PX[0]
        patches = x_BCHW.unfold(2, 32, stride).unfold(3, 32, stride).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        features = torch.cat([self.layers(part) for part in torch.split(patches, _PATCHES_AT_ONCE)])
        rows, columns = ((size - 32) // stride + 1 for size in (height, width))
        return features.view(batch, rows, columns, FEATURES).permute(0, 3, 1, 2)


class PatchEncoder(nn.Module):
    """Features of patches of K px, and at a second scale of 2 K px from those of their quarters (SCL-VI, Table 6)."""

    def __init__(self, main: nn.Module, side_px: int, num_scales: int) -> None:
        super().__init__()
        norm = ChannelNorm(FEATURES) if isinstance(main, DenseEncoder) else nn.Identity()
        self.main = main
        self.side_px = side_px
        self.num_scales = num_scales
        if num_scales > 1:
            self.join = nn.Conv2d(FEATURES, 128, 2)
            self.out = nn.Sequential(nn.Conv2d(128, FEATURES, 1), norm, nn.Tanh())

    def of_patches(self, x_BCHW: Tensor) -> Tensor:
        """Map patches (B, 3, K, K) or (B, 3, 2 K, 2 K) to features (B, D)."""
        side = self.side_px
        if x_BCHW.shape[2] == side:
            return self.main(x_BCHW)[:, :, 0, 0]  # type: ignore[no-any-return]
        quarters = x_BCHW.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        features = self.main(quarters).view(-1, 2, 2, FEATURES).permute(0, 3, 1, 2)
        return self._joined(features, 1)[:, :, 0, 0]

    def of_frames(self, x_BCHW: Tensor) -> list[Tensor]:
        """Map frames (B, 3, H, W) to maps (B, D, h, w) of patches of K px, 4 px apart, and of 2 K px, 16 px apart."""
        small: Tensor = self.main(x_BCHW)
        if self.num_scales == 1:
            return [small]
        every = STRIDES_PX[1] // STRIDES_PX[0]
        return [small, self._joined(small, self.side_px // STRIDES_PX[0])[:, :, ::every, ::every]]

    def _joined(self, features_BDhw: Tensor, apart: int) -> Tensor:
        joined = functional.conv2d(features_BDhw, self.join.weight, self.join.bias, dilation=apart)
        return self.out(functional.leaky_relu(joined, _SLOPE))  # type: ignore[no-any-return]
