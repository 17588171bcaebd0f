import numpy as np
import pytest
import torch

from ssad_ray.methods.reference import NUM_CHANNELS, NormalReference

SIDE = 64
DEVIATION, DIFFERENCE = slice(3, 6), slice(6, 9)


def textures(num: int, seed: int = 0) -> np.ndarray:
    """Noise around a level that differs from image to image."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(60, 180, (num, 1, 1, 1))
    return np.clip(levels + rng.normal(0, 10, (num, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def parts(num: int, seed: int = 0) -> np.ndarray:
    """A bright square on dark ground, always at one place."""
    images = np.random.default_rng(seed).normal(40, 3, (num, SIDE, SIDE, 3))
    images[:, 16:48, 16:48] += 120
    return np.clip(images, 0, 255).astype(np.uint8)


def seen(learnt_from: np.ndarray, images: np.ndarray, *, has_places: bool) -> torch.Tensor:
    reference = NormalReference(SIDE, SIDE)
    reference.learn(learnt_from, has_places=has_places)
    channels = reference(torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0)
    assert channels.shape == (len(images), NUM_CHANNELS, SIDE, SIDE)
    return channels


def test_a_part_is_compared_with_the_median_at_its_place() -> None:
    missing_corner = parts(1, seed=1)
    missing_corner[0, 16:24, 16:24] = 40
    difference = seen(parts(9), missing_corner, has_places=True)[0, DIFFERENCE].abs().amax(0)
    assert difference[16:24, 16:24].min() > 1.0
    difference[16:24, 16:24] = 0
    assert difference.max() < 0.3


@pytest.mark.parametrize("level", [30, 210])
def test_a_texture_is_compared_with_its_own_level(level: int) -> None:
    image = np.full((1, SIDE, SIDE, 3), level, np.uint8)
    image[0, 30:34, 30:34] += 30
    difference = seen(textures(20), image, has_places=False)[0, DIFFERENCE]
    assert difference[:, 30:34, 30:34].min() == pytest.approx(3 * 30 / 255, abs=1e-5)
    difference[:, 30:34, 30:34] = 0
    assert difference.abs().max() < 1e-6


def test_the_spread_of_a_texture_is_that_around_its_levels() -> None:
    reference = NormalReference(SIDE, SIDE)
    reference.learn(textures(40), has_places=False)
    np.testing.assert_allclose(255 * reference.spread, 10, rtol=0.15)


def test_a_saved_reference_sees_the_same() -> None:
    for learnt_from, has_places in ((textures(9), False), (parts(9), True)):
        reference, again = NormalReference(SIDE, SIDE), NormalReference(SIDE, SIDE)
        reference.learn(learnt_from, has_places=has_places)
        again.load_state_dict(reference.state_dict())
        image = torch.from_numpy(textures(1, seed=2)).permute(0, 3, 1, 2) / 255.0
        torch.testing.assert_close(reference(image), again(image), rtol=0, atol=0)
