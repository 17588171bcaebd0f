"""Where networks run, and what keeps their arithmetic repeatable."""

import cv2
import torch


def device() -> torch.device:
    """Return the GPU of this process if it can see one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_repeatable(threads: int) -> None:
    """Fix what lets equal computations of two processes differ: the number of threads and the choice of algorithms."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # Free of cost on the CPU; CUDA pays for it, and lacks some operators. use_deterministic_algorithms() would do the
    # same, but imports torch's compiler, for seconds.
    torch.set_deterministic_debug_mode("default" if torch.cuda.is_available() else "error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
