"""Train the members of an ensemble: as parallel Ray tasks, or each of them across the workers of Ray Train."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ssad_ray.config import NO_PART_OF_RESULTS, ResourcesConfig, RunConfig
from ssad_ray.errors import ConfigError, UnavailableError
from ssad_ray.methods.base import Method, State, TrainingFrames, TrainsByGradient
from ssad_ray.methods.training import StepProgress
from ssad_ray.pipelines.data_parallel import train_across_workers
from ssad_ray.pipelines.member import MAX_FAILURES, TrainingJob, train_member, worker_environment
from ssad_ray.pipelines.progress import BoardHandle, progress_board
from ssad_ray.pipelines.session import our_errors, room_for


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an ensemble: which frames it sees, the seed of every random choice, and weights to start from."""

    kept_N: NDArray[np.bool_]
    seed: int
    initial: State | None = None


def train_members(
    method: type[Method],
    config: RunConfig,
    frames: TrainingFrames,
    members: Sequence[Member],
    checkpoint_dir: Path,
    progress: StepProgress | None = None,
) -> list[State]:
    """Train members on the running Ray and return their states, in order.

    With `resources.train_workers` 0 every member is a Ray task of its own; with W workers the members are trained one
    after another, each by all workers. Both give the same weights to the last bit. Killed and called again, it goes
    on from the last checkpoints. Files are named by a digest of all that a result depends on, so a changed request
    never goes on from a stale one.

    Args:
        method: Its `from_config` makes every member. A method that is not trained by gradient is fitted in a task.
        config: The resolved config.
        frames: What any member learns from; each takes a copy of those it sees.
        members: What differs between them.
        checkpoint_dir: Checkpoints and final states; every node sees it at this path. The caller deletes it.
        progress: Called in a thread of the driver with (steps done, steps in all, loss) over all members.

    Raises:
        ConfigError: More workers than shards, or a learning rate at which training diverges.
        UnavailableError: More CPUs or GPUs are asked for than the cluster has.
    """
    folder = checkpoint_dir.absolute()
    prototype = method.from_config(config)
    training = prototype.training if isinstance(prototype, TrainsByGradient) else None
    steps, num_workers = (training.steps, config.resources.train_workers) if training else (1, 0)
    if training and num_workers > training.shards:
        raise ConfigError(
            f"resources.train_workers is {num_workers}, but a batch has only training.shards = {training.shards} parts "
            f"to share out; ask for at most {training.shards} workers, or raise training.shards (it changes the result)"
        )
    keys = _keys(method, config, frames, members)
    final_paths = [folder / f"{key}.safetensors" for key in keys]
    pending = [index for index, path in enumerate(final_paths) if not path.exists()]
    if pending:
        _refuse_too_few_cpus(config.resources, max(1, num_workers))
        gpus = _gpus(config.resources)
        done, total = steps * (len(members) - len(pending)), steps * len(members)
        with our_errors(), progress_board(done, total, progress) as board:
            shared = ray.put(frames)
            jobs = [
                TrainingJob(
                    at, shared, ray.put((members[at].kept_N, members[at].initial)), members[at].seed, final_paths[at]
                )
                for at in pending
            ]
            if num_workers:
                # Named by all members, also by those that are done: called again, it must find its checkpoints.
                run_dir = folder / f"workers-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}"
                train_across_workers(method, config, jobs, board, run_dir, use_gpu=gpus > 0)
            else:
                _train_in_tasks(method, config, jobs, board, gpus)
    return [load_file(path) for path in final_paths]


def _train_in_tasks(
    method: type[Method], config: RunConfig, jobs: Sequence[TrainingJob], board: BoardHandle, gpus: int
) -> None:
    share = 1 / math.ceil(len(jobs) / gpus) if gpus else 0
    task = ray.remote(train_member).options(
        num_cpus=config.resources.threads_per_worker,
        num_gpus=share,
        max_retries=MAX_FAILURES,
        runtime_env=worker_environment(share > 0),
    )
    running = [task.remote(method, config, job, job.frames, job.start, board) for job in jobs]
    try:
        ray.get(running)
    except BaseException:
        _, unfinished = ray.wait(running, num_returns=len(running), timeout=0)
        for each in unfinished:
            ray.cancel(each, force=True)
        raise


def _refuse_too_few_cpus(resources: ResourcesConfig, num_workers: int) -> None:
    """Raise where Ray would wait for CPUs, without a word, forever."""
    threads, room = resources.threads_per_worker, room_for(resources.threads_per_worker)
    if room < num_workers:
        raise UnavailableError(
            f"training needs {num_workers} workers of {threads} logical CPUs each (resources.train_workers, "
            f"resources.threads_per_worker), the nodes of the cluster have room for {room}; ask for fewer, or add nodes"
        )


def _gpus(resources: ResourcesConfig) -> int:
    available = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if resources.use_gpu and not available:
        raise UnavailableError(
            "resources.use_gpu is true, but the cluster has no GPU; set it to false, or to null to take what is there"
        )
    if resources.use_gpu is False:
        return 0
    if 0 < available < resources.train_workers:
        raise UnavailableError(
            f"resources.train_workers is {resources.train_workers}, but the cluster has {available} GPUs; ask for at "
            f"most {available} workers, or set resources.use_gpu to false"
        )
    return available


def _keys(method: type[Method], config: RunConfig, frames: TrainingFrames, members: Sequence[Member]) -> list[str]:
    """Return file names, each made of all that a member's result depends on."""
    common = hashlib.sha256(f"{method.__qualname__} {config.model_dump_json(exclude=NO_PART_OF_RESULTS)}".encode())
    _digest(common, [getattr(frames, field.name) for field in fields(frames)])
    keys = []
    for index, member in enumerate(members):
        own = common.copy()
        own.update(f" {member.seed} ".encode())
        _digest(own, [member.kept_N, *(value for _, value in sorted((member.initial or {}).items()))])
        keys.append(f"member-{index}-{own.hexdigest()[:16]}")
    return keys


def _digest(into: "hashlib._Hash", values: Sequence[NDArray[Any] | bool]) -> None:
    for array in map(np.asarray, values):
        into.update(f"{array.dtype} {array.shape} ".encode())
        into.update(np.ascontiguousarray(array).data)
