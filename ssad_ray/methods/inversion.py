"""Fitting a generator to frames: first latents, then, where asked for, a copy of the generator per frame.

What is fitted to a defect in the end shows it. Hence robust weights for the latent, and pixels that are kept out
before the generator itself may move; `relax_all`, the recipe of Pan et al. (2020), has neither.

Shapes: B batch, 3 colour channels, H W height and width of a frame, L channels of the latent, h w its height and width.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ssad_ray.methods.gan_networks import Discriminator, Generator

REACH_PX = 4
"""How far round a conspicuous pixel nothing is trusted."""

LEAST_TRUSTED = 0.3
"""Share of a frame below which too little is trusted to fit a generator to it."""

_LATENT_RATE = 2e-2
_PRIOR = 1e-3
_WEIGHT_RATE = 1e-3
_DGP_PRIOR = 0.02
_DGP_STAGES = (
    (1, 2e-3, 1e-3, 0.7),
    (2, 1e-3, 1e-3, 0.7),
    (3, 5e-4, 5e-4, 0.8),
    (4, 5e-5, 2e-4, 0.9),
)
"""Per stage: groups of the generator that move, rate of the latent, rate of the first group, ratio to the next one's.

The course is that of the paper, the rates are those of a small generator and of few steps.
"""


def refine(generator: Generator, x_BCHW: Tensor, z_BLhw: Tensor, usual: Tensor, steps: int) -> Tensor:
    """Improve latents (B, L, h, w) by robust steps, each frame by itself.

    Args:
        generator: Stays as it is.
        x_BCHW: The frames, in [-1, 1].
        z_BLhw: Where to start.
        usual: Residuals of good frames, broadcast over (B, 3, H, W); larger ones lose their influence (Cauchy's loss,
            whose weights are 1 / (1 + (r / usual)²)).
        steps: Of Adam.
    """
    z = z_BLhw.clone().requires_grad_()

    def loss() -> Tensor:
        y: Tensor = generator(z)
        residual = (x_BCHW - y) / usual
        misfit: Tensor = torch.log1p(residual.square()).mean((1, 2, 3)) + _PRIOR * z.square().mean((1, 2, 3))
        return misfit.sum()  # not the mean: no frame's gradient depends on how many there are

    _descend([{"params": [z], "lr": _LATENT_RATE}], loss, steps, (0.9, 0.999))
    return z.detach()


def trust(residual_BHW: Tensor, limit: float) -> Tensor:
    """Return where a residual is at most `limit` and nothing near is above it, (B, H, W), 0 or 1."""
    conspicuous = (residual_BHW > limit).float()
    return 1.0 - functional.max_pool2d(conspicuous, 2 * REACH_PX + 1, 1, REACH_PX)


def relax_trusted(generator: Generator, x_BCHW: Tensor, z_BLhw: Tensor, trusted_1HW: Tensor, steps: int) -> Tensor:
    """Fit latent and a copy of the generator to the trusted pixels of one frame, and return what it then shows."""
    generator, z = copy.deepcopy(generator), z_BLhw.clone().requires_grad_()
    share = trusted_1HW / trusted_1HW.mean()

    def loss() -> Tensor:
        y: Tensor = generator(z)
        return ((x_BCHW - y).abs() * share).mean()

    _descend([{"params": [z, *generator.parameters()], "lr": _WEIGHT_RATE}], loss, steps, (0.9, 0.999))
    shown: Tensor = generator(z)
    return shown.detach()


def relax_all(generator: Generator, discriminator: Discriminator, x_BCHW: Tensor, z_BLhw: Tensor, steps: int) -> Tensor:
    """Fit latent and a copy of the generator to all of one frame by progressive reconstruction (Pan et al. 2020).

    Stage by stage more groups of the generator move, those next to the latent first, its output layer never. The loss
    is the distance of the discriminator's features, the squared error and the latent's prior. Different from the
    paper: it starts from an encoder's latent and not from the best of 500 random ones, and the steps are fewer.
    """
    generator, z = copy.deepcopy(generator), z_BLhw.clone().requires_grad_()
    wanted, _ = discriminator(x_BCHW)

    def loss() -> Tensor:
        y = generator(z)
        found, _ = discriminator(y)
        apart = torch.stack([(a - b).abs().mean() for a, b in zip(found, wanted, strict=True)]).sum()
        return apart + functional.mse_loss(y, x_BCHW) + _DGP_PRIOR * z.square().mean() / 2

    for num_groups, latent_rate, rate, ratio in _DGP_STAGES:
        moving = [
            {"params": list(group.parameters()), "lr": rate * ratio**index}
            for index, group in enumerate(generator.groups[:num_groups])
        ]
        _descend([{"params": [z], "lr": latent_rate}, *moving], loss, steps // len(_DGP_STAGES), (0.0, 0.999))
    shown: Tensor = generator(z)
    return shown.detach()


@torch.enable_grad()
def _descend(
    groups: Sequence[Mapping[str, Any]], loss: Callable[[], Tensor], steps: int, betas: tuple[float, float]
) -> None:
    """Take Adam's steps on some tensors; nothing else collects a gradient."""
    optimizer = torch.optim.Adam([dict(group) for group in groups], betas=betas)
    moving = [tensor for group in groups for tensor in group["params"]]
    for _ in range(steps):
        for tensor, gradient in zip(moving, torch.autograd.grad(loss(), moving), strict=True):
            tensor.grad = gradient
        optimizer.step()
