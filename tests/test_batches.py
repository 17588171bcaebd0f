import numpy as np
import pytest
import torch

from ssad_ray.method_config import TrainingConfig
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.batches import body, planted_shard
from ssad_ray.methods.losses import segmentation_loss

HEIGHT, WIDTH = 128, 128
OPTIONS = TrainingConfig(batch_size=4, shards=2)


def good_frames(num: int = 8) -> TrainingFrames:
    rng = np.random.default_rng(0)
    slope = np.linspace(20, 200, HEIGHT)[:, None, None] + np.zeros((num, HEIGHT, WIDTH, 3))
    return TrainingFrames.of_good(np.clip(slope + rng.normal(0, 2, slope.shape), 0, 255).astype(np.uint8))


def mask_of(*places):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for place in places:
        mask[place] = True
    return mask


def test_a_ring_is_closed_to_a_disc() -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot(y - 60, x - 60)
    closed = body((radius < 9) & (radius > 4))
    assert closed[radius < 9].all()
    assert not closed[radius > 10].any()


def test_what_lies_far_apart_is_not_joined() -> None:
    halves = mask_of(np.s_[20:80, 10:50], np.s_[20:80, 65:105])
    np.testing.assert_array_equal(body(halves), halves)


def test_a_body_at_the_edge_stays_inside() -> None:
    corner = mask_of(np.s_[:12, :12])
    np.testing.assert_array_equal(body(corner), corner)


def test_an_empty_mask_has_no_body() -> None:
    assert not body(mask_of()).any()


@pytest.mark.parametrize("shard", [0, 1])
def test_targets_hold_what_was_planted_and_nothing_else(shard: int) -> None:
    batch = planted_shard(good_frames(), OPTIONS, 0, 3, shard, planted_fraction=1.0)
    is_changed = (batch["image"] != batch["clean"]).any(axis=3)
    is_defect = batch["target"] == 1
    assert is_changed.any(axis=(1, 2)).all()
    for changed, defect in zip(is_changed, is_defect, strict=True):
        assert (changed & defect).any()
        assert (body(changed) | ~defect).all()
    assert (batch["weight"] == 1).all()


def test_a_batch_of_one_shard_is_that_of_several_joined() -> None:
    whole = planted_shard(good_frames(), TrainingConfig(batch_size=4, shards=1), 0, 3, 0, planted_fraction=0.5)
    parts = [planted_shard(good_frames(), OPTIONS, 0, 3, shard, planted_fraction=0.5) for shard in (0, 1)]
    for name, planes in whole.items():
        np.testing.assert_array_equal(planes, np.concatenate([part[name] for part in parts]))


def test_seed_and_step_change_a_batch() -> None:
    first, other_seed, other_step = (
        planted_shard(good_frames(), OPTIONS, seed, step, 0, planted_fraction=0.5)["image"]
        for seed, step in ((0, 3), (1, 3), (0, 4))
    )
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, other_step)


def test_labelled_frames_come_in_their_share_with_their_targets_and_weights() -> None:
    good = good_frames(4)
    images = np.concatenate([good.images_NHWC, np.full((1, HEIGHT, WIDTH, 3), 250, np.uint8)])
    target = np.full((1, HEIGHT, WIDTH), 0.75, np.float32)
    frames = TrainingFrames(images, np.arange(5) < 4, target, target / 3, has_places=False)
    options = TrainingConfig(batch_size=8, shards=1)
    batch = planted_shard(frames, options, 0, 3, 0, planted_fraction=0.5, labelled_fraction=0.25)
    assert batch["is_good"].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert (batch["image"][:2] > 200).all()
    np.testing.assert_allclose(batch["target"][:2], 0.75, atol=1e-6)
    np.testing.assert_allclose(batch["weight"][:2], 0.25, atol=1e-6)


def test_what_has_no_weight_is_not_learnt_from() -> None:
    logits = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.ones(2, 6, 8)
    weight[:, 2:4] = 0
    target = (torch.arange(8) > 4).float().expand(2, 6, 8)
    segmentation_loss(logits, target, weight).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2:4] == 0).all()
    assert (logits.grad[:, 4:] != 0).all()


def test_frames_without_plants_have_empty_targets() -> None:
    batch = planted_shard(good_frames(), OPTIONS, 0, 3, 0, planted_fraction=0.0)
    np.testing.assert_array_equal(batch["image"], batch["clean"])
    assert not batch["target"].any()
