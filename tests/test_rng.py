import os
import subprocess
import sys
import timeit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssad_ray.core.rng import generator

KEYS = st.lists(st.one_of(st.integers(), st.text(max_size=8)), max_size=4)
PROGRAM = (
    "from ssad_ray.core.rng import generator; print(generator(7, 'bottle/000.png@ab', 3, 'plant').integers(2**62))"
)


def first_numbers(seed: int, *keys: str | int) -> list[int]:
    return generator(seed, *keys).integers(2**62, size=4).tolist()


def test_a_stream_is_the_same_in_other_processes_and_under_other_hash_seeds():
    expected = int(generator(7, "bottle/000.png@ab", 3, "plant").integers(2**62))
    for hash_seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        )
        assert int(done.stdout) == expected


def test_the_first_numbers_never_change_between_versions():
    assert first_numbers(0, "sample", 1, "purpose") == [
        3104058350402503958,
        3227132863562184615,
        1252254728926395195,
        1207689112423696524,
    ]


@given(st.integers(), KEYS, st.integers(), KEYS)
def test_streams_are_equal_exactly_when_all_keys_are(seed, keys, other_seed, other_keys):
    same = (seed, *keys) == (other_seed, *other_keys)
    assert (first_numbers(seed, *keys) == first_numbers(other_seed, *other_keys)) == same
    assert first_numbers(seed, *keys) == first_numbers(seed, *keys)


def test_keys_cannot_run_into_each_other():
    streams = [("ab", "c"), ("a", "bc"), ("abc",), ("a', 'bc",), (1,), ("1",), (11,), (1, 1), ()]
    assert len({tuple(first_numbers(0, *keys)) for keys in streams}) == len(streams)


def test_numpy_values_name_the_same_stream_as_python_values():
    assert first_numbers(np.int32(3), np.str_("x"), np.int64(5)) == first_numbers(3, "x", 5)


@pytest.mark.parametrize("key", [1.0, None, b"x", ("a",)])
def test_keys_that_are_neither_text_nor_integers_are_refused(key):
    with pytest.raises(TypeError):
        generator(0, key)


def test_a_stream_is_cheap_to_make():
    seconds = min(timeit.repeat(lambda: generator(0, "sample", 3, "plant"), number=500, repeat=5)) / 500
    assert seconds < 100e-6
