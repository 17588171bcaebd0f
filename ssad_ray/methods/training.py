"""Stochastic gradient descent whose result does not depend on how many workers compute it.

A batch is cut into a fixed number of shards. The gradient of every shard is computed by itself, and the gradients are
summed in shard order, so one process and several give the same weights to the last bit (on CPUs of one kind, with
equal thread counts).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from ssad_ray.errors import ArtifactError, ConfigError
from ssad_ray.method_config import TrainingConfig
from ssad_ray.methods.base import Remembers, State, TrainingFrames, TrainsByGradient
from ssad_ray.methods.devices import device
from ssad_ray.methods.saving import writing

StepProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss)."""
ComputeShards = Callable[["Trainer"], Sequence[tuple[Tensor, float]]]
"""Returns flat gradient and loss of every shard of the current step, in shard order."""
Save = Callable[["Trainer"], None]

_WARMUP_FRACTION = 0.05
_PREFIX = "network."
_GRADIENT_NORM_LIMIT = 1.0


class Trainer:
    """The state of one training run: weights, their average, the optimizer, the step."""

    def __init__(
        self, method: TrainsByGradient, frames: TrainingFrames, seed: int, initial: State | None = None
    ) -> None:
        self.method, self.frames, self.seed = method, frames, seed
        method.initialise(frames, seed)
        if initial is not None:
            start_from(method.network, initial)
        # Channels last is the faster layout on GPUs, and by an eighth on CPUs too (U-Net, 128 px).
        method.network.to(device()).to(memory_format=torch.channels_last).train()
        self.step = 0
        self.weights = list(method.network.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        options = method.training
        self.optimizer = torch.optim.AdamW(
            self.weights, options.learning_rate, (options.beta1, options.beta2), weight_decay=options.weight_decay
        )

    def shard_gradient(self, shard: int) -> tuple[Tensor, float]:
        """Return the flat gradient and the loss of one shard of the current step's batch."""
        batch = self.method.batch(self.frames, self.seed, self.step, shard)
        loss = self.method.loss({name: torch.from_numpy(array).to(device()) for name, array in batch.items()})
        gradients = torch.autograd.grad(loss, self.weights)
        return torch.cat([gradient.reshape(-1) for gradient in gradients]), float(loss.detach())

    def apply(self, gradients: Sequence[Tensor]) -> None:
        """Take one optimizer step on the mean of the shards' flat gradients, summed in the given order.

        Raises:
            ConfigError: The gradient is not finite.
        """
        total = gradients[0].clone()
        for gradient in gradients[1:]:
            total += gradient
        total /= len(gradients)
        norm = float(total.norm())
        if not math.isfinite(norm):
            rate = self.method.training.learning_rate
            raise ConfigError(f"training diverged at step {self.step}; lower training.learning_rate (now {rate})")
        total *= min(1.0, _GRADIENT_NORM_LIMIT / (norm + 1e-12))
        sizes = [weight.numel() for weight in self.weights]
        for weight, gradient in zip(self.weights, torch.split(total, sizes), strict=True):
            weight.grad = gradient.view_as(weight)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.method.training, self.step)
        self.optimizer.step()
        self.step += 1
        # The average begins with a short memory, so that short runs are not held back by their initial weights.
        decay = min(self.method.training.ema_decay, self.step / (self.step + 10))
        torch._foreach_mul_(self.average, decay)
        torch._foreach_add_(self.average, [weight.detach() for weight in self.weights], alpha=1.0 - decay)

    def run(self, compute: ComputeShards, save: Save | None = None, progress: StepProgress | None = None) -> None:
        """Take the steps that are left.

        Args:
            compute: Where the gradients come from: `compute_all`, or an exchange between workers.
            save: Called every `checkpoint_every` steps.
            progress: Called after every step.
        """
        options = self.method.training
        while self.step < options.steps:
            gradients, losses = zip(*compute(self), strict=True)
            self.apply(gradients)
            if progress is not None:
                progress(self.step, options.steps, sum(losses) / len(losses))
            if save is not None and self.step % options.checkpoint_every == 0:
                save(self)

    def finish(self) -> None:
        """Put the averaged weights into the network, and let the method remember what it has to."""
        with torch.no_grad():
            for weight, average in zip(self.weights, self.average, strict=True):
                weight.copy_(average)
        self.method.network.eval()
        if isinstance(self.method, Remembers):
            self.method.remember(self.frames, self.seed)

    def state(self) -> State:
        """Everything needed to go on from here, as named arrays."""
        arrays: dict[str, Tensor] = {"step": torch.tensor(self.step)}
        for index, (weight, average) in enumerate(zip(self.weights, self.average, strict=True)):
            arrays |= {f"weight.{index}": weight.detach(), f"average.{index}": average}
            for name, value in self.optimizer.state.get(weight, {}).items():
                arrays[f"optimizer.{index}.{name}"] = value
        return {name: value.cpu().numpy().copy() for name, value in arrays.items()}

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned."""
        self.step = int(state["step"])
        with torch.no_grad():
            for index, (weight, average) in enumerate(zip(self.weights, self.average, strict=True)):
                weight.copy_(torch.from_numpy(state[f"weight.{index}"]))
                average.copy_(torch.from_numpy(state[f"average.{index}"]))
                prefix = f"optimizer.{index}."
                self.optimizer.state[weight] = {
                    name.removeprefix(prefix): torch.tensor(value) if name.endswith("step") else _like(weight, value)
                    for name, value in state.items()
                    if name.startswith(prefix)
                }


def _like(weight: Tensor, value: NDArray[Any]) -> Tensor:
    """Return an array on the device and in the memory layout of a weight, which is how the optimizer made it."""
    return torch.empty_like(weight).copy_(torch.from_numpy(value))


def compute_all(trainer: Trainer) -> list[tuple[Tensor, float]]:
    """Return gradient and loss of every shard of the current step, in shard order."""
    return [trainer.shard_gradient(shard) for shard in range(trainer.method.training.shards)]


def train(
    method: TrainsByGradient,
    frames: TrainingFrames,
    seed: int,
    checkpoint_path: Path | None = None,
    progress: StepProgress | None = None,
    initial: State | None = None,
) -> None:
    """Train in this process; with a checkpoint path a killed run goes on where it was last saved."""
    trainer = Trainer(method, frames, seed, initial)
    if checkpoint_path is None:
        trainer.run(compute_all, progress=progress)
    else:
        if checkpoint_path.exists():
            trainer.load_state(load_file(checkpoint_path))
        trainer.run(compute_all, lambda it: save_state(it.state(), checkpoint_path), progress)
    trainer.finish()


def save_state(state: State, path: Path) -> None:
    """Write a checkpoint or a final state so that a reader sees the old one or the new one, never half of it."""
    # The worker of a driver that was killed may still be writing.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of an array that is not in C order safetensors would write the bytes as they lie, under the shape as it seems.
        save_file({name: np.asarray(value, order="C") for name, value in state.items()}, partial)
        partial.replace(path)


def learning_rate(options: TrainingConfig, step: int) -> float:
    """Linear warm-up over the first twentieth of the steps, then a cosine down to 1 % of the peak."""
    warmup = max(1, round(_WARMUP_FRACTION * options.steps))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    phase = (step - warmup) / max(1, options.steps - warmup)
    return options.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + float(np.cos(np.pi * phase))))


def start_from(network: nn.Module, initial: State) -> None:
    """Copy trained weights into a network of the same shape; what is learnt otherwise (buffers) stays as it is.

    Raises:
        ArtifactError: The weights are of another network.
    """
    try:
        weights = {
            name: torch.from_numpy(np.array(initial[f"{_PREFIX}{name}"])) for name, _ in network.named_parameters()
        }
        network.load_state_dict(weights, strict=False)
    except (KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"training cannot start from these weights: {error}; needed are those of the same method and widths"
        ) from error


def network_state(network: nn.Module) -> State:
    """Return a network's parameters and buffers as named arrays."""
    return {_PREFIX + name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def load_network_state(network: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Load what `network_state` returned, ready to score; torch refuses missing or misshapen arrays by name."""
    tensors = {
        name.removeprefix(_PREFIX): torch.from_numpy(np.array(value))
        for name, value in state.items()
        if name.startswith(_PREFIX)
    }
    network.load_state_dict(tensors)
    network.to(device()).to(memory_format=torch.channels_last).eval()
