"""CutPaste's edits of crops, and soft labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad_ray.core.rng import generator
from ssad_ray.core.synthesis.edits import EDITS, changed_share, soft_label


def crop(height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    return generator(seed, "crop").integers(0, 256, (height, width, 3)).astype(np.uint8)


def box(mask: np.ndarray) -> tuple[int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(EDITS)),
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    seed=st.integers(0, 999),
)
def test_only_what_was_pasted_changes(name, height, width, seed):
    image = crop(height, width, seed)
    before = image.copy()
    edited, pasted = EDITS[name](image, generator(seed, name))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(edited[~pasted], image[~pasted])
    assert edited.shape == image.shape
    assert edited.dtype == np.uint8
    assert pasted.any()
    again, _ = EDITS[name](image, generator(seed, name))
    np.testing.assert_array_equal(again, edited)


@pytest.mark.parametrize("name", ["cutout", "cutpaste"])
def test_rectangles_have_the_papers_sizes(name):
    aspects = []
    for i in range(300):
        pasted = EDITS[name](crop(64, 96), generator(i, "size"))[1]
        high, wide = box(pasted)
        assert pasted.sum() == high * wide
        assert 0.9 * 0.02 <= high * wide / (64 * 96) <= 1.1 * 0.15
        assert 0.25 <= high / wide <= 3.8
        aspects.append(high > wide)
    assert 0.4 < np.mean(aspects) < 0.6


def test_scars_have_the_papers_sizes_and_lie_inside_whole():
    for i in range(300):
        pasted = EDITS["scar"](crop(32, 40), generator(i, "size"))[1]
        assert 0.9 * 2 * 10 - 6 <= pasted.sum() <= 1.1 * 16 * 25
        high, wide = box(pasted)
        assert max(high, wide) <= 30


def test_in_small_crops_scars_are_small():
    assert max(EDITS["scar"](crop(16, 16), generator(i, "small"))[1].sum() for i in range(100)) <= 0.3 * 16 * 25


def test_cutout_is_the_mean_colour():
    image = crop()
    edited, pasted = EDITS["cutout"](image, generator(0, "mean"))
    assert (edited[pasted] == np.rint(image.mean((0, 1)))).all()


@pytest.mark.parametrize("name", ["cutpaste", "scar"])
def test_what_is_pasted_comes_from_the_same_image(name):
    rows, columns = np.mgrid[:64, :96]
    image = np.stack([rows, columns, np.full_like(rows, 128)], axis=2).astype(np.uint8)
    for i in range(20):
        edited, pasted = EDITS[name](image, generator(i, name))
        taken = edited[pasted].astype(float)
        assert np.ptp(taken[:, 0]) <= 1.3 * box(pasted)[0] + 2
        assert np.ptp(taken[:, 1]) <= 1.3 * box(pasted)[1] + 2
        # Jitter moves a level of this picture by some tens at most.
        assert taken[:, 0].max() <= 64 + 30
        assert taken[:, 1].max() <= 96 + 30


@pytest.mark.parametrize("name", EDITS)
def test_a_grey_crop_stays_grey(name):
    grey = np.repeat(crop()[:, :, :1], 3, axis=2)
    for i in range(10):
        edited, _ = EDITS[name](grey, generator(i, name))
        assert (np.ptp(edited, axis=2) == 0).all()


def test_soft_labels_have_the_golden_values():
    assert soft_label(0.0, 10.0) == 0.0
    assert soft_label(0.1, 10.0) == pytest.approx(0.4621, abs=1e-4)
    assert soft_label(1.0, 10.0) == pytest.approx(0.99991, abs=1e-5)
    assert soft_label(1.0, 1.0) == pytest.approx(0.4621, abs=1e-4)
    assert soft_label(0.3, 2.0) == pytest.approx(2 / (1 + np.exp(-0.6)) - 1)


def test_a_pixel_counts_from_a_change_of_a_fiftieth_over_all_channels():
    before = np.full((4, 6, 3), 100, np.uint8)
    after, pasted = before.copy(), np.zeros((4, 6), bool)
    pasted[1:3, 1:5] = True
    after[1, 1] += np.array([2, 2, 1], np.uint8)  # 5 of 255 levels: 0.0196
    after[1, 2] += np.array([2, 2, 2], np.uint8)  # 6: 0.0235
    after[1, 3] -= np.array([0, 50, 0], np.uint8)
    assert changed_share(before, after, pasted) == pytest.approx(2 / 8)


def test_a_scar_that_shows_is_fully_anomalous_at_every_angle_and_an_invisible_one_is_not():
    texture = crop(seed=3)
    for i in range(50):
        edited, pasted = EDITS["scar"](texture, generator(i, "seen"))
        assert soft_label(changed_share(texture, edited, pasted), 10.0) > 0.99
    flat = np.full((32, 32, 3), 120, np.uint8)
    assert soft_label(changed_share(flat, flat, np.ones((32, 32), bool)), 10.0) == 0.0
