"""SCL-VI: its pretext tasks, its encoders, and how distances become maps."""

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
import torch
from torch import nn

from ssad_ray.config import validate_config
from ssad_ray.core.rng import generator
from ssad_ray.errors import ConfigError
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.context_svdd import ContextSvdd
from ssad_ray.methods.encoders import ChannelNorm, DenseEncoder, PaperEncoder, PatchEncoder
from ssad_ray.methods.pretexts import PRETEXTS, draw, relative_positions


def positions(height: int, width: int) -> np.ndarray:
    """A picture whose every pixel says where it is."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)


def svdd(**options) -> ContextSvdd:
    return ContextSvdd.from_config(validate_config({"detector": {"context_svdd": options}}))


def frames(height: int = 96, width: int = 112, num: int = 6) -> TrainingFrames:
    rng = generator(0, "frames")
    return TrainingFrames.of_good(rng.integers(0, 255, (num, height, width, 3)).astype(np.uint8))


def test_thirty_six_pairs_are_twelve_classes():
    classes = relative_positions()
    assert sorted((len(pairs) for pairs in classes), reverse=True) == [6, 6, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1]
    assert any({(1, 3), (2, 4), (4, 6), (5, 7)} == set(pairs) for pairs in classes)


@pytest.mark.parametrize("side", [16, 32])
def test_a_pair_lies_where_its_class_says(side):
    displacement = [
        (pairs[0][1] // 3 - pairs[0][0] // 3, pairs[0][1] % 3 - pairs[0][0] % 3) for pairs in relative_positions()
    ]
    rng = generator(0, "pairs")
    seen: Counter[int] = Counter()
    for _ in range(600):
        patches, label = draw(PRETEXTS["context"], positions(3 * side, 4 * side), side, rng)
        (y0, x0), (y1, x1), (y2, x2) = patches[:, 0, 0, :2].astype(int)
        for apart, steps in zip((y1 - y0, x1 - x0), displacement[label], strict=True):
            assert abs(apart - 7 / 8 * side * steps) <= side / 4
        assert max(abs(y2 - y0), abs(x2 - x0)) == 1
        assert patches.shape == (3, side, side, 3)
        seen[label] += 1
    assert set(seen) == set(range(12))
    assert max(seen.values()) < 2 * min(seen.values())


@pytest.mark.parametrize(("name", "num_classes"), [("jigsaw", 8), ("rotation", 4), ("permutation", 6), ("none", 1)])
def test_the_other_tasks_have_their_classes(name, num_classes):
    rng = generator(0, name)
    picture = rng.integers(0, 255, (48, 60, 3)).astype(np.uint8)
    labels = {draw(PRETEXTS[name], picture, 16, rng)[1] for _ in range(200)}
    assert labels == set(range(num_classes))


@pytest.mark.parametrize("published", [False, True])
def test_the_papers_encoder_has_its_parameters_and_sizes(published):
    encoder = PaperEncoder(published)
    assert sum(weight.numel() for weight in encoder.parameters()) == 3_886_720
    assert encoder(torch.zeros(1, 3, 40, 36)).shape == (1, 64, 3, 2)
    sides, x = [], torch.zeros(1, 3, 32, 32)
    for layer in encoder.layers:
        x = layer(x)
        sides.append(x.shape[-1])
    assert [side for side, _ in groupby(sides)] == [28, 14, 6, 3, 2, 1]
    assert sum(isinstance(layer, nn.LocalResponseNorm) for layer in encoder.modules()) == 2 * published
    assert [layer.num_groups for layer in encoder.modules() if isinstance(layer, nn.GroupNorm)] == [
        12, 32, 48, 48, 32, 16, 8
    ]  # fmt: skip


def test_only_the_dense_encoder_has_norms_of_channels():
    for main, num in ((PaperEncoder(), 0), (DenseEncoder(32, 8), 2)):
        modules = PatchEncoder(main, 32, 2).modules()
        assert sum(isinstance(layer, ChannelNorm) for layer in modules) == num


@pytest.mark.parametrize("encoder", ["paper", "published"])
def test_the_papers_encoders_learn_and_judge(encoder):
    method = svdd(encoder=encoder, memory=16, training={"steps": 1, "batch_size": 2, "shards": 1})
    method.fit(frames(96, 96, 2), 0)
    assert np.isfinite(method.maps(frames(96, 96, 2).images_NHWC[:1])).all()


@pytest.mark.parametrize("pretext", PRETEXTS)
@torch.no_grad()
def test_the_loss_is_that_of_the_task_and_of_twins(pretext):
    given = frames(192, 192, 2)
    method = svdd(pretext=pretext, width=8, alpha=0.5, training={"batch_size": 4, "shards": 1})
    method.initialise(given, 0)
    batch = {name: torch.from_numpy(each) for name, each in method.batch(given, 0, 0, 0).items()}
    expected = 0.0
    for scale in range(2):
        cells = [
            method.network.encoder.of_patches(patch.permute(0, 3, 1, 2))
            for patch in batch[f"patches.{scale}"].unbind(1)
        ]
        told = cells[0] - cells[1] if pretext in ("context", "jigsaw") else cells[0]
        logits = method.network.classifiers[scale](told)
        of_label = logits.gather(1, batch[f"label.{scale}"][:, None])[:, 0]
        expected += float((logits.logsumexp(1) - of_label).mean() + 0.5 * (cells[0] - cells[-1]).norm(dim=1).mean())
    assert float(method.loss(batch)) == pytest.approx(expected, rel=1e-4)


def test_a_map_is_that_of_small_patches_times_the_root_of_that_of_large_ones():
    given = frames(192, 192, 3)
    method = svdd(width=8, memory=16, training={"steps": 1, "batch_size": 4, "shards": 1})
    method.fit(given, 0)
    image = given.images_NHWC[:1]
    both, normal = method.maps(image), method.normal
    method.normal = [normal[0], _AlwaysOne(normal[1])]
    small = method.maps(image)
    method.normal = [_AlwaysOne(normal[0]), normal[1]]
    root_of_large = method.maps(image)
    assert np.ptp(small) > 0
    assert np.ptp(root_of_large) > 0
    np.testing.assert_allclose(both, small * root_of_large, rtol=1e-4)


class _AlwaysOne:
    """What is normal at a scale that has no say."""

    def __init__(self, normal):
        self.normal = normal

    def ratios(self, maps_BhwD):
        return torch.ones_like(self.normal.ratios(maps_BhwD))


@pytest.mark.parametrize(("side", "main"), [(32, PaperEncoder()), (32, DenseEncoder(32, 8)), (16, DenseEncoder(16, 8))])
@torch.inference_mode()
def test_the_map_of_a_frame_holds_the_features_of_its_patches(side, main):
    encoder = PatchEncoder(main, side, 2).double()
    frame = torch.rand(1, 3, 2 * side + 16, 2 * side + 32, dtype=torch.float64)
    for scale, (maps, stride) in enumerate(zip(encoder.of_frames(frame), (4, 16), strict=True)):
        assert maps.shape[2] == (frame.shape[2] - (scale + 1) * side) // stride + 1
        for row, column in ((0, 0), (1, 1), (maps.shape[2] - 1, maps.shape[3] - 1)):
            y, x, size = row * stride, column * stride, (scale + 1) * side
            alone = encoder.of_patches(frame[:, :, y : y + size, x : x + size])
            torch.testing.assert_close(maps[:, :, row, column], alone)


def test_aligned_parts_are_remembered_by_place_and_surfaces_are_not():
    rng = generator(0, "parts")
    part = rng.integers(0, 255, (96, 112, 3))
    parts = np.clip(part + rng.normal(0, 4, (6, 96, 112, 3)), 0, 255).astype(np.uint8)
    for images, shape in ((parts, (17, 21)), (frames().images_NHWC, ())):
        method = svdd(width=8, memory=1000, training={"steps": 1, "batch_size": 4, "shards": 1})
        method.fit(TrainingFrames.of_good(images), 0)
        state = method.state()
        assert state["0.usual"].shape == shape
        assert state["0.memory"].shape == ((*shape, 2, 64) if shape else (1000, 64))
        again = svdd(width=8)
        again.load_state(state)
        np.testing.assert_array_equal(again.maps(images), method.maps(images))


def test_a_patch_of_another_place_is_anomalous_on_aligned_parts():
    rng = generator(0, "parts")
    coarse = rng.integers(0, 255, (6, 7, 3)).repeat(16, 0).repeat(16, 1)
    parts = np.clip(coarse + rng.normal(0, 4, (9, 96, 112, 3)), 0, 255).astype(np.uint8)
    method = svdd(width=8, patch_px=16, training={"steps": 20, "batch_size": 4, "shards": 1})
    method.fit(TrainingFrames.of_good(parts[:8]), 0)
    moved = parts[8].copy()
    moved[16:48, 64:96] = parts[8, 48:80, 16:48]
    maps = method.maps(np.stack([parts[8], moved]))
    assert maps[1].max() > 1.5 * maps[0].max()
    row, column = np.unravel_index(maps[1].argmax(), maps[1].shape)
    assert 16 <= row < 48
    assert 64 <= column < 96


def test_large_patches_are_used_where_they_fit():
    for height, num_scales in ((96, 1), (192, 2)):
        method = svdd(width=8, memory=16, training={"steps": 1, "batch_size": 4, "shards": 1})
        method.fit(frames(height, 192, 3), 0)
        assert len(method.normal) == num_scales
        assert method.maps(frames(height, 192, 3).images_NHWC).shape == (3, height, 192)


def test_feature_scores_are_never_above_distance_scores():
    method = svdd(width=8, memory=64, training={"steps": 1, "batch_size": 4, "shards": 1})
    method.fit(frames(), 0)
    images = frames(num=8).images_NHWC[6:]
    by_feature = method.maps(images)
    method.config = method.config.model_copy(update={"score": "distance"})
    by_distance = method.maps(images)
    assert (by_feature <= by_distance * (1 + 1e-5)).all()
    assert (by_feature < 0.99 * by_distance).any()
    config = method.config
    for option, value in (("neighbours", 1), ("sharpest", 1.0)):
        method.config = config.model_copy(update={option: value})
        assert not np.allclose(method.maps(images), by_distance)


def test_frames_without_room_for_a_grid_are_refused():
    with pytest.raises(ConfigError, match=r"at least 96 px a side.* are 80x112 \(HxW\)"):
        svdd().fit(frames(height=80), 0)


def test_the_papers_encoder_has_one_size():
    with pytest.raises(ConfigError, match="patches of 32 px, not patch_px 16"):
        svdd(encoder="paper", patch_px=16)
