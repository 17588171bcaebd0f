"""How far the workers are, told to a callback in the driver."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

if TYPE_CHECKING:  # the board's process starts three seconds sooner without torch
    from ssad_ray.methods.training import StepProgress

BoardHandle = Any
"""A handle of a `_Board` actor; Ray's own type for it says less than nothing: calls on it never return."""

_INTERVAL_S = 0.5


class _Board:
    """The latest step and loss of every member; an actor of its own, so that it outlives any of them."""

    def __init__(self) -> None:
        self._latest: dict[int, tuple[int, float]] = {}

    def note(self, member: int, step: int, loss: float) -> None:
        self._latest[member] = (step, loss)

    def latest(self) -> dict[int, tuple[int, float]]:
        return self._latest


def reporter(board: BoardHandle, member: int) -> "StepProgress":
    """Return what a member calls after every step; it tells the board now and then, and never waits for it."""
    next_time = -math.inf

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal next_time
        if time.monotonic() >= next_time or step == steps:
            board.note.remote(member, step, loss)
            next_time = time.monotonic() + _INTERVAL_S

    return report


@contextmanager
def progress_board(done: int, total: int, progress: "StepProgress | None") -> Iterator[BoardHandle]:
    """Pass on to the driver's callback, from a thread of its own, what the members tell the board.

    Args:
        done: Steps that were done earlier, by members that do not report any more.
        total: Steps of all members.
        progress: Called with (steps done, steps in all, mean latest loss), at last when all are done;
            the loss is NaN where nothing was trained by gradient.
    """
    board: BoardHandle = ray.remote(num_cpus=0)(_Board).remote()
    finished = threading.Event()

    def tell(is_complete: bool = False) -> None:
        latest = ray.get(board.latest.remote()).values()
        if progress is not None and (latest or is_complete):
            loss = sum(loss for _, loss in latest) / len(latest) if latest else math.nan
            progress(total if is_complete else done + sum(step for step, _ in latest), total, loss)

    def watch() -> None:
        while not finished.wait(_INTERVAL_S):
            with suppress(RayError):
                tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield board
        finished.set()
        watcher.join()
        tell(is_complete=True)
    finally:
        finished.set()
        ray.kill(board)
