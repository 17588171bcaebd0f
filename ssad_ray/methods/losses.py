"""Losses shared by the methods, each the mean over a batch, and the map of SSIM that one of them is made of.

Shapes: B batch, C channels, H W frame height and width.
"""

import torch
from torch import Tensor
from torch.nn import functional

DEFECT_PRIOR = -3.0
"""Logit that a network starts from: about one pixel in twenty is defective in training."""

_SSIM_WINDOW_PX = 11
_SSIM_SIGMA_PX = 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def segmentation_loss(logits_BHW: Tensor, target_BHW: Tensor, weight_BHW: Tensor) -> Tensor:
    """Weighted cross-entropy, its focal form (Lin et al. 2017) and soft Dice, on soft targets in [0, 1].

    Cross-entropy keeps probabilities honest, the focal term looks at what is still wrong, Dice sees small defects.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits_BHW, target_BHW, reduction="none")
    probability = torch.sigmoid(logits_BHW)
    miss = (probability - target_BHW).abs()
    pixelwise = ((1.0 + 2.0 * miss) * entropy * weight_BHW).sum() / weight_BHW.sum().clamp(min=1.0)
    overlap = (probability * target_BHW * weight_BHW).sum((1, 2))
    size = ((probability + target_BHW) * weight_BHW).sum((1, 2))
    dice = 1.0 - (2.0 * overlap + 1.0) / (size + 1.0)
    return pixelwise + 0.5 * dice.mean()


def ssim(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Structural similarity map (B, C, H, W) in [-1, 1] of images in [0, 1] (Wang et al. 2004, 11x11 Gaussian)."""
    channels = a_BCHW.shape[1]
    offset = torch.arange(_SSIM_WINDOW_PX, device=a_BCHW.device, dtype=a_BCHW.dtype) - _SSIM_WINDOW_PX // 2
    gauss = torch.exp(-(offset**2) / (2 * _SSIM_SIGMA_PX**2))
    gauss = gauss / gauss.sum()

    def local_mean(x: Tensor) -> Tensor:
        pad = _SSIM_WINDOW_PX // 2
        x = functional.pad(x, (pad, pad, pad, pad), mode="reflect")
        x = functional.conv2d(x, gauss.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return functional.conv2d(x, gauss.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = local_mean(a_BCHW), local_mean(b_BCHW)
    variance_a = local_mean(a_BCHW**2) - mean_a**2
    variance_b = local_mean(b_BCHW**2) - mean_b**2
    covariance = local_mean(a_BCHW * b_BCHW) - mean_a * mean_b
    light = (2 * mean_a * mean_b + _SSIM_C1) / (mean_a**2 + mean_b**2 + _SSIM_C1)
    return light * (2 * covariance + _SSIM_C2) / (variance_a + variance_b + _SSIM_C2)


def reconstruction_loss(reconstruction_BCHW: Tensor, clean_BCHW: Tensor, counts_B: Tensor) -> Tensor:
    """Half L1, half 1 - SSIM, over the images that count (1; the others 0)."""
    l1 = (reconstruction_BCHW - clean_BCHW).abs().mean((1, 2, 3))
    unlike = 1.0 - ssim(reconstruction_BCHW, clean_BCHW).mean((1, 2, 3))
    return ((0.5 * l1 + 0.5 * unlike) * counts_B).sum() / counts_B.sum().clamp(min=1.0)
