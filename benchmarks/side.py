"""What the two sides of beside_anomalib.py share: the task, and the word to begin. Needs torch alone."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def read_task() -> dict[str, Any]:
    """Return the task, the first line of the input, and take as many threads as it says."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    return task


def measured(work: Callable[[], object]) -> None:
    """Say that all is ready, wait for the word, work, and print when that began and ended, in seconds."""
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    work()
    print(json.dumps((begun, time.perf_counter())), flush=True)
