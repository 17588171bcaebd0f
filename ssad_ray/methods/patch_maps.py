"""From values of overlapping patches to a value of every pixel.

Shapes: B batch, h w rows and columns of patches, K side of a patch, H W of a frame.
"""

import torch
from torch import Tensor
from torch.nn import functional


def spread_over_pixels(patches_Bhw: Tensor, kernel_KK: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Give every pixel (B, H, W) the mean value of the patches that it lies in, weighted by where in them it lies.

    Receptive-field upsampling (Liznerski et al., ICLR 2021), divided by that of a map of ones, so that values keep
    their unit up to the border.

    Args:
        patches_Bhw: A value per patch; the first lies in the top left corner.
        kernel_KK: Weight of each pixel of a patch, above 0.
        stride: Pixels between neighbouring patches.
        height: Of the frame, px; pixels beyond the last patch take the nearest value.
        width: Of the frame, px.
    """
    kernel = kernel_KK[None, None]
    sums = functional.conv_transpose2d(patches_Bhw[:, None], kernel, stride=stride)
    weights = functional.conv_transpose2d(torch.ones_like(patches_Bhw[:1, None]), kernel, stride=stride)
    means = sums / weights
    missing = (0, width - means.shape[3], 0, height - means.shape[2])
    return functional.pad(means, missing, mode="replicate")[:, 0]


def gaussian_kernel(height: int, width: int, sigma: float) -> Tensor:
    """Return a Gaussian (height, width), almost 1 in its centre; `sigma` is a share of each side."""
    down, across = (
        torch.exp(-((torch.arange(side) - (side - 1) / 2) ** 2) / (2 * (sigma * side) ** 2)) for side in (height, width)
    )
    return down[:, None] * across
