"""One member of an ensemble, trained in a process of its own.

The drivers of Ray Train and Ray Data are not imported here: a task would load them for nothing, for seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.methods.base import Method, State, TrainingFrames, TrainsByGradient
from ssad_ray.methods.devices import make_repeatable
from ssad_ray.methods.training import save_state, train
from ssad_ray.pipelines.progress import BoardHandle, reporter

Start = tuple[NDArray[np.bool_], State | None]

MAX_FAILURES = 3
"""How often a worker that died is started again."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One member that is still to be trained.

    Attributes:
        index: Its place in the ensemble.
        frames: Reference to the frames of all members in the object store.
        start: Reference to which of them it sees, and its initial weights.
        seed: The seed of every random choice.
        final_path: Where its final state goes.
    """

    index: int
    frames: "ray.ObjectRef[TrainingFrames]"
    start: "ray.ObjectRef[Start]"
    seed: int
    final_path: Path


def train_member(
    method: type[Method], config: RunConfig, job: TrainingJob, frames: TrainingFrames, start: Start, board: BoardHandle
) -> None:
    """Train or fit, go on from a checkpoint if there is one, and write the final state."""
    make_repeatable(config.resources.threads_per_worker)
    member = method.from_config(config)
    kept_N, initial = start
    seen = frames.only(kept_N)
    if isinstance(member, TrainsByGradient):
        checkpoint_path = job.final_path.with_suffix(".checkpoint")
        train(member, seen, job.seed, checkpoint_path, reporter(board, job.index), initial)
    else:
        member.fit(seen, job.seed)
    save_state(member.state(), job.final_path)


def worker_environment(has_gpu: bool) -> dict[str, Any]:
    """Return the runtime environment of a worker; Ray does not hide the GPUs from one that was given none."""
    return {} if has_gpu else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
