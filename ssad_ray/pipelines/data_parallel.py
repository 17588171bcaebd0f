"""Train one network after another across the workers of Ray Train, each worker computing a part of every batch.

The result has the same bits for any number of workers, and as in one process, because no sum depends on who computes
it: the gradient of a shard is computed whole by one worker, and every worker adds the gradients of all shards in
shard order and takes the same optimizer step. An all-reduce, as in DistributedDataParallel, would add in an order
that follows the number of workers, and so round differently.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import ray
import torch
from ray import train as ray_train
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from safetensors.numpy import load_file
from torch import Tensor, distributed

from ssad_ray.config import RunConfig
from ssad_ray.methods.base import Method, TrainsByGradient
from ssad_ray.methods.devices import make_repeatable
from ssad_ray.methods.training import Trainer, save_state
from ssad_ray.pipelines.member import MAX_FAILURES, TrainingJob, worker_environment
from ssad_ray.pipelines.progress import BoardHandle, reporter


@dataclass(frozen=True, slots=True)
class _Work:
    method: type[Method]
    config: RunConfig
    # Frames come through the object store and not as a dataset of Ray Data, for they are small, whole and in order:
    # 300 frames of 128 px reach a worker in 0.1 s and not in 3 s, and take no CPU for reading tasks.
    jobs: tuple[TrainingJob, ...]
    board: BoardHandle


def train_across_workers(
    method: type[Method],
    config: RunConfig,
    jobs: Sequence[TrainingJob],
    board: BoardHandle,
    run_dir: Path,
    *,
    use_gpu: bool,
) -> None:
    """Write the final state of every job; Ray Train keeps the checkpoints in `run_dir` and goes on from them."""
    # A report waits for the controller's next look at its workers, by default up to 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    resources = config.resources
    trainer = TorchTrainer(
        _work,
        train_loop_config={"work": _Work(method, config, tuple(jobs), board)},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=resources.train_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": resources.threads_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=ray_train.RunConfig(
            name=run_dir.name,
            storage_path=str(run_dir.parent),
            failure_config=ray_train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
            worker_runtime_env=worker_environment(use_gpu),  # type: ignore[call-arg]
        ),
    )
    with _keep_interrupt_handler():
        trainer.fit()


def _work(options: dict[str, _Work]) -> None:
    work = options["work"]
    make_repeatable(work.config.resources.threads_per_worker)
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    for job in work.jobs:
        if not _rank_zero_says(job.final_path.exists()):
            _train_job(work, job)


def _train_job(work: _Work, job: TrainingJob) -> None:
    method = work.method.from_config(work.config)
    kept_N, initial = ray.get(job.start)
    frames = ray.get(job.frames).only(kept_N)
    trainer = Trainer(cast("TrainsByGradient", method), frames, job.seed, initial)
    checkpoint = ray_train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = Path(folder, job.final_path.name)
            if saved.exists():
                trainer.load_state(load_file(saved))
    is_first = ray_train.get_context().get_world_rank() == 0
    trainer.run(
        compute_together,
        lambda it: _report(it, job.final_path.name if is_first else None),
        reporter(work.board, job.index) if is_first else None,
    )
    if is_first:
        trainer.finish()
        save_state(method.state(), job.final_path)


def compute_together(trainer: Trainer) -> list[tuple[Tensor, float]]:
    """Return gradient and loss of every shard of the current step, in shard order, each computed by one worker."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    shards = trainer.method.training.shards
    mine = [trainer.shard_gradient(shard) for shard in range(rank, shards, world)]
    # One row per shard, the loss at its end; a worker with a shard less than others fills up with zeros.
    rows = mine[0][0].new_zeros(-(-shards // world), len(mine[0][0]) + 1)
    for row, (gradient, loss) in zip(rows, mine, strict=False):
        row[:-1], row[-1] = gradient, loss
    gathered = [torch.empty_like(rows) for _ in range(world)]
    distributed.all_gather(gathered, rows)
    ordered = [gathered[shard % world][shard // world] for shard in range(shards)]
    return [(row[:-1], float(row[-1])) for row in ordered]


def _rank_zero_says(is_true: bool) -> bool:
    """Return the first worker's answer, so that all workers take the same way."""
    answer = torch.tensor([int(is_true)], device=get_device())
    distributed.broadcast(answer, src=0)
    return bool(answer.item())


def _report(trainer: Trainer, name: str | None) -> None:
    """Hand a checkpoint to Ray Train; every worker takes part, the one that gives a file name writes it."""
    if name is None:
        ray_train.report({"step": trainer.step})
        return
    with tempfile.TemporaryDirectory() as folder:
        save_state(trainer.state(), Path(folder, name))
        ray_train.report({"step": trainer.step}, checkpoint=ray_train.Checkpoint.from_directory(folder))


@contextmanager
def _keep_interrupt_handler() -> Iterator[None]:
    """Give Ctrl-C back to the driver; Ray Train takes it over and keeps it after its run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
