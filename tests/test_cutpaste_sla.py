"""CPS-SLA: what its network is asked, what it learns from good frames, and how scores of patches become maps."""

import cv2
import numpy as np
import pytest
import torch

from ssad_ray.config import validate_config
from ssad_ray.core.rng import generator
from ssad_ray.errors import ConfigError
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.cutpaste_sla import CutPasteSla
from ssad_ray.methods.patch_maps import gaussian_kernel, spread_over_pixels


def detector(steps: int = 1, **options) -> CutPasteSla:
    training = {"steps": steps, "batch_size": 8}
    return CutPasteSla.from_config(validate_config({"detector": {"cutpaste_sla": {**options, "training": training}}}))


def frames(height: int = 48, width: int = 64, num: int = 6) -> TrainingFrames:
    rng = generator(0, "frames")
    return TrainingFrames.of_good(rng.integers(0, 255, (num, height, width, 3)).astype(np.uint8))


def batch(method: CutPasteSla, given: TrainingFrames, shard: int = 0) -> dict[str, np.ndarray]:
    method.initialise(given, 0)
    return method.batch(given, 0, 0, shard)


@pytest.mark.parametrize(("transformation", "num"), [("cutout", 2), ("cutpaste", 2), ("scar", 2), ("fusion", 3)])
def test_every_crop_is_seen_untouched_and_with_every_edit(transformation, num):
    made = batch(detector(transformation=transformation, labels="hard"), frames())
    assert made["images"].shape == (4, num, 32, 32, 3)
    np.testing.assert_array_equal(made["targets"], np.tile(np.eye(num), (4, 1, 1)))
    changed = (made["images"] != made["images"][:, :1]).any((2, 3, 4))
    np.testing.assert_array_equal(changed, [[False] + [True] * (num - 1)] * 4)


def test_a_soft_target_is_shared_between_untouched_and_its_edit():
    made = batch(detector(alpha=1.0), frames())
    np.testing.assert_allclose(made["targets"].sum(2), 1.0, rtol=1e-6)
    # On noise nearly all that is pasted changes: tanh(1 / 2).
    np.testing.assert_allclose(made["targets"][:, 1, 1], 0.462, atol=0.01)
    np.testing.assert_allclose(made["targets"][:, 2, 2], 0.462, atol=0.01)
    assert (made["targets"][:, 1, 2] == 0).all()


def test_an_edit_that_shows_nothing_is_labelled_untouched_only_by_soft_labels():
    white = TrainingFrames.of_good(np.full((2, 48, 64, 3), 255, np.uint8))
    soft = batch(detector(transformation="cutout"), white)["targets"]
    hard = batch(detector(transformation="cutout", labels="hard"), white)["targets"]
    np.testing.assert_array_equal(soft[:, 1], [[1.0, 0.0]] * 4)
    np.testing.assert_array_equal(hard[:, 1], [[0.0, 1.0]] * 4)


def test_the_loss_is_the_cross_entropy_with_the_targets():
    method = detector(alpha=1.0)
    made = {name: torch.from_numpy(each) for name, each in batch(method, frames()).items()}
    pictures = made["images"].flatten(0, 1).permute(0, 3, 1, 2) / 255
    shares = method.network(pictures).log_softmax(1).view(4, 3, 3)
    expected = -(made["targets"] * shares).sum(2).mean()
    torch.testing.assert_close(method.loss(made), expected, rtol=1e-4, atol=1e-5)


def test_patches_that_leave_gaps_are_refused():
    with pytest.raises(ConfigError, match="leave gaps at stride_px 17"):
        detector(patch_px=16, stride_px=17)


def test_shards_hold_different_crops_and_the_same_ones_each_time():
    first, second = (batch(detector(), frames(), shard)["images"] for shard in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, batch(detector(), frames())["images"])


def test_nothing_of_the_network_but_its_weights_is_learnt():
    assert not list(detector().network.buffers())


@pytest.mark.parametrize("density", ["places", "gaussian", "kernel"])
def test_a_smooth_frame_is_anomalous_among_rough_ones(density):
    given = frames()
    method = detector(density=density, patch_px=16, compared_stage=2)
    method.initialise(given, 0)
    method.remember(given, 0)
    own = method.maps(given.images_NHWC)
    assert own.shape == (6, 48, 64)
    assert method.maps(cv2.blur(given.images_NHWC[0], (9, 9))[np.newaxis]).max() > own.max()


def test_places_count_where_frames_are_aligned_and_nowhere_else():
    plate = np.full((48, 64, 3), 60.0)
    plate[:, 32:] = 200
    noise = generator(0, "noise").normal(0, 5, (12, 48, 64, 3))
    aligned = np.clip(plate + noise, 0, 255).astype(np.uint8)
    free = aligned.copy()
    free[::2] = free[::2, :, ::-1]
    mirrored = np.ascontiguousarray(aligned[:1, :, ::-1])
    ratios, stages = [], []
    for given in (aligned, free):
        method = detector(patch_px=16)
        method.initialise(TrainingFrames.of_good(given), 0)
        method.remember(TrainingFrames.of_good(given), 0)
        stages.append(method.compared_stage)
        ratios.append(float(method.maps(mirrored).max() / method.maps(given).max()))
    assert ratios[0] > 3
    assert ratios[1] < 1.5
    assert stages == [1, 2]


def test_whole_frames_have_one_value():
    given = frames(num=4)
    method = detector(level="image")
    made = batch(method, given)
    assert made["images"].shape == (4, 3, 48, 64, 3)
    method.remember(given, 0)
    maps = method.maps(given.images_NHWC)
    np.testing.assert_allclose(maps, np.broadcast_to(maps[:, :1, :1], (4, 48, 64)), rtol=1e-5)


def test_ten_good_frames_are_enough_for_whole_frames():
    given = frames(num=10)
    method = detector(level="image")
    method.initialise(given, 0)
    method.remember(given, 0)
    maps = method.maps(np.concatenate([given.images_NHWC, np.full((1, 48, 64, 3), 90, np.uint8)]))
    assert np.isfinite(maps).all()
    assert maps[-1].max() > maps[:-1].max()


def test_the_upsampling_kernel_has_the_golden_sums():
    # Unnormalised, the paper's upsampling of ones is 31.02 in the middle of 57 x 57 patches and 0.090 in the corner.
    kernel = gaussian_kernel(32, 32, 10 / 32)
    sums = torch.nn.functional.conv_transpose2d(torch.ones(1, 1, 57, 57), kernel[None, None], stride=4)[0, 0]
    assert sums.shape == (256, 256)
    assert float(sums[128, 128]) == pytest.approx(31.02, abs=0.01)
    assert float(sums[0, 0]) == pytest.approx(0.090, abs=0.001)


def test_a_constant_stays_constant_up_to_the_corners():
    for height, width in ((32, 40), (35, 46)):
        values = spread_over_pixels(torch.full((1, 5, 7), 3.0), gaussian_kernel(16, 16, 0.3), 4, height, width)
        assert values.shape == (1, height, width)
        torch.testing.assert_close(values, torch.full_like(values, 3.0))


def test_frames_smaller_than_a_patch_are_refused():
    with pytest.raises(ConfigError, match=r"at least 32 px a side.* are 24x64 \(HxW\)"):
        detector().fit(frames(height=24), 0)


def test_only_a_trained_stage_can_be_compared():
    with pytest.raises(ConfigError, match="compared_stage 3 is not one of the 2 stages"):
        detector(compared_stage=3)
    assert detector(stages=4, compared_stage=4).network.features(torch.zeros(1, 3, 32, 40), 4).shape == (1, 512)
