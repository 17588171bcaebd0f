"""What a network sees besides the picture: how far each pixel is from what is usual, and where it is.

On aligned parts the good images' per-pixel median is a reconstruction that needs no training; a network that is given
the deviation from it learns which deviations are defects instead of learning the product by heart. On textures and
free poses a place means nothing, and what is usual is the frame's own median level: surfaces differ in brightness from
image to image more than defects do from their surroundings.

Shapes: B batch, H W height and width of a frame, 3 colour channels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ssad_ray.methods.base import State
from ssad_ray.methods.networks import coordinates
from ssad_ray.methods.pixel_reference import SPREAD_FLOOR, TO_SIGMA, median_and_spread

NUM_CHANNELS = 12

_SATURATION = 8.0  # robust standard deviations; beyond, more deviation says nothing new
_POOL_PX = 9
_SAMPLED_EVERY = 4  # pixels down and across; enough for the level and the spread of a texture


class NormalReference(nn.Module):
    """Turns an image into the channels (picture, signed deviation, difference, pooled deviation, position)."""

    median: Tensor
    spread: Tensor
    has_places: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("median", torch.zeros(1, 3, height, width))
        self.register_buffer("spread", torch.ones(1, 3, height, width))
        self.register_buffer("has_places", torch.tensor(True))

    def learn(self, images_NHWC: NDArray[np.uint8], *, has_places: bool) -> None:
        """Learn from good frames (N, H, W, 3) uint8 what is usual, and how far they spread around it."""
        if has_places:
            median, spread = median_and_spread(images_NHWC)
            self.median.copy_(torch.from_numpy(median).permute(2, 0, 1) / 255.0)
        else:
            sample = images_NHWC[:, ::_SAMPLED_EVERY, ::_SAMPLED_EVERY].astype(np.float32)
            deviation = np.abs(sample - np.median(sample, axis=(1, 2), keepdims=True))
            spread = np.maximum(TO_SIGMA * np.median(deviation, axis=(0, 1, 2), keepdims=True)[0], SPREAD_FLOOR)
            self.has_places.fill_(False)
        self.spread.copy_(torch.from_numpy(spread).permute(2, 0, 1) / 255.0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to (B, NUM_CHANNELS, H, W)."""
        own_level = x_BCHW[..., ::_SAMPLED_EVERY, ::_SAMPLED_EVERY].flatten(2).median(2).values[..., None, None]
        difference = x_BCHW - torch.where(self.has_places, self.median, own_level)
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
