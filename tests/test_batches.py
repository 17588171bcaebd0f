import numpy as np
import pytest

from ssad_ray.config import TrainingConfig
from ssad_ray.methods import batches
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.batches import body, natural_variation, planted_shard

HEIGHT, WIDTH = 64, 96
OPTIONS = TrainingConfig(batch_size=2, shards=1)
FLICKER = np.s_[:, 60:90]


def good_frames(num: int = 40) -> TrainingFrames:
    """A slope of light with a stripe that flickers from image to image."""
    rng = np.random.default_rng(0)
    frames = np.zeros((num, HEIGHT, WIDTH, 3)) + np.linspace(20, 200, HEIGHT)[:, None, None]
    frames[:, *FLICKER] += rng.normal(0, 20, (num, 1, 1, 1))
    return TrainingFrames.of_good(np.clip(frames + rng.normal(0, 2, frames.shape), 0, 255).astype(np.uint8))


class Coin:
    """Plant a second time, and no third time."""

    def __init__(self) -> None:
        self.throws = [0.0, 1.0]

    def random(self) -> float:
        return self.throws.pop(0)


def planted(monkeypatch, image, changes, variation):
    """Plant given (place, grey levels) one after the other."""
    left = list(changes)

    def plant(image, rng, families, other):
        place, levels = left.pop(0)
        result, mask = image.copy(), np.zeros(image.shape[:2], bool)
        result[place] += levels
        mask[place] = True
        return result, mask

    monkeypatch.setattr(batches, "plant", plant)
    return batches._planted(image, image, variation, Coin())


def mask_of(*places):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for place in places:
        mask[place] = True
    return mask


def test_variation_is_that_of_the_images_and_reaches_as_far_as_poses() -> None:
    variation = natural_variation(good_frames().images_NHWC)
    assert variation[30, 75].max() == pytest.approx(20, abs=5)
    assert variation[30, 20].max() < 6
    assert variation[30, 59].max() > 10 > variation[30, 58].max()


def test_textures_have_no_variation_by_place() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert natural_variation(noise) == 0.0


def test_a_plant_no_stronger_than_the_variation_is_neither_defect_nor_normal(monkeypatch) -> None:
    images = good_frames().images_NHWC
    weak, strong = np.s_[10:20, 65:80], np.s_[40:50, 10:25]
    _, is_defect, is_unsure = planted(monkeypatch, images[0], [(weak, 20), (strong, 20)], natural_variation(images))
    np.testing.assert_array_equal(is_defect, mask_of(strong))
    np.testing.assert_array_equal(is_unsure, mask_of(weak))


def test_plants_beside_each_other_keep_their_own_bodies(monkeypatch) -> None:
    left, right = np.s_[20:40, 10:30], np.s_[20:40, 36:56]
    image = good_frames().images_NHWC[0]
    _, is_defect, is_unsure = planted(monkeypatch, image, [(left, 30), (right, 30)], 0.0)
    np.testing.assert_array_equal(is_defect, mask_of(left, right))
    assert not is_unsure.any()
    assert body(is_defect).sum() > is_defect.sum()  # closed as one they would run together


def test_what_is_unsure_has_no_weight() -> None:
    frames = good_frames(8)
    batches_of = [planted_shard(frames, OPTIONS, 0, step, 0, 1.0, variation_HWC=1e6) for step in range(3)]
    assert all((batch["target"] == 0).all() for batch in batches_of)
    for batch in batches_of:
        is_changed, is_unsure = (batch["image"] != batch["clean"]).any(axis=3), batch["weight"] == 0
        assert is_unsure.any()
        assert is_changed[is_unsure].all()
