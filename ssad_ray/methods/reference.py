"""What a network sees besides the picture: how far each pixel is from the good images' median, and where it is.

On aligned parts the per-pixel median is a reconstruction that needs no training; a network that is given the deviation
from it learns which deviations are defects instead of learning the product by heart. On textures the median is flat
and the extra channels say little.

Shapes: B batch, H W height and width of a frame, 3 colour channels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ssad_ray.methods.base import State
from ssad_ray.methods.networks import coordinates
from ssad_ray.methods.pixel_reference import median_and_spread

NUM_CHANNELS = 12

_SATURATION = 8.0  # robust standard deviations; beyond, more deviation says nothing new
_POOL_PX = 9


class NormalReference(nn.Module):
    """Turns an image into the channels (picture, signed deviation, difference, pooled deviation, position)."""

    median: Tensor
    spread: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("median", torch.zeros(1, 3, height, width))
        self.register_buffer("spread", torch.ones(1, 3, height, width))

    def learn(self, images_NHWC: NDArray[np.uint8]) -> None:
        """Take the median and the spread of good frames (N, H, W, 3) uint8."""
        median, spread = median_and_spread(images_NHWC)
        self.median = torch.from_numpy(median).permute(2, 0, 1)[None] / 255.0
        self.spread = torch.from_numpy(spread).permute(2, 0, 1)[None] / 255.0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to (B, NUM_CHANNELS, H, W)."""
        difference = x_BCHW - self.median
        deviation = difference / self.spread
        strongest = deviation.abs().amax(1, keepdim=True).clamp(max=3 * _SATURATION)
        pooled = functional.avg_pool2d(strongest, _POOL_PX, 1, _POOL_PX // 2, count_include_pad=False)
        batch, _, height, width = x_BCHW.shape
        place = coordinates(batch, height, width, x_BCHW.device)
        return torch.cat(
            [x_BCHW, torch.tanh(deviation / _SATURATION), 3.0 * difference, pooled / _SATURATION, place], dim=1
        )


def frame_shape(state: State) -> tuple[int, int]:
    """Read the height and width of the frames that a saved network's reference was learnt from."""
    height, width = state["network.reference.median"].shape[2:]
    return height, width
