"""Randomness as a pure function: the same names give the same stream in every process and on every machine."""

import hashlib
import operator

import numpy as np


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """Return the random stream of one purpose, for example `generator(seed, sample_id, epoch, "plant")`.

    The stream depends on nothing but the arguments: not on the process, its hash seed, the platform, or on how many
    streams were made before. `1` and `"1"` are different keys; NumPy and Python integers are the same.

    Args:
        seed: The run's seed; any integer.
        keys: What the stream is for, in a fixed order: sample, epoch or step, purpose.

    Raises:
        TypeError: A key that is neither text nor an integer.
    """
    names = [str(key) if isinstance(key, str) else operator.index(key) for key in keys]
    # ascii() of a list is unambiguous (lengths, quotes and types are kept) and the same under every Python and locale.
    digest = hashlib.blake2b(ascii([operator.index(seed), *names]).encode("ascii"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
