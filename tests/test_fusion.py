"""Several detectors as one: in this process, and through the pipeline."""

import numpy as np
import pytest

from ssad_ray.config import validate_config
from ssad_ray.core.framing import Frames
from ssad_ray.core.images import decode
from ssad_ray.core.rng import generator
from ssad_ray.core.storage import read_bytes
from ssad_ray.core.tails import NormalTail
from ssad_ray.datasets.synthetic import write_synthetic
from ssad_ray.errors import ConfigError, DataError
from ssad_ray.methods.artifact import load_artifact
from ssad_ray.methods.base import TrainingFrames, is_shown_template
from ssad_ray.methods.fusion import Fusion, agreed
from ssad_ray.pipelines.fit import fit
from ssad_ray.pipelines.folds import assign_folds
from ssad_ray.pipelines.prepare import prepare
from ssad_ray.pipelines.run import open_run
from ssad_ray.pipelines.session import session


def config(*parts: str, **shrunk: int):
    training = {"steps": 4, "batch_size": 4}
    options = {
        "fusion": {"parts": dict.fromkeys(parts, 1) | shrunk},
        "name": "fusion",
        "autoencoder": {"width": 8, "training": training},
    }
    return validate_config({"detector": options, "input": {"size_px": 48}, "resources": {"threads_per_worker": 1}})


def frames() -> TrainingFrames:
    return TrainingFrames.of_good(generator(0, "frames").integers(0, 255, (8, 48, 64, 3)).astype(np.uint8))


def test_a_map_is_the_harmonic_mean_of_what_the_parts_say():
    method = Fusion.from_config(config("pixel_reference", "autoencoder"))
    method.fit(frames(), 0)
    images = frames().images_NHWC[:2]
    maps = method.maps(images)
    one, other = (1 + method.tails[name].rarity(raw) for name, raw in method.part_maps(images).items())
    np.testing.assert_allclose(1 + maps, 2 * one * other / (one + other), rtol=1e-5)


def test_tails_are_learnt_from_frames_that_no_part_has_seen():
    method = Fusion.from_config(config("pixel_reference"))
    method.fit(frames(), 0)
    reference = method.parts["pixel_reference"]
    seen = TrainingFrames.of_good(frames().images_NHWC[[0, 1, 2, 4, 5, 6]])
    reference.fit(seen, 0)
    np.testing.assert_array_equal(reference.state()["median_HWC"], method.state()["pixel_reference.median_HWC"])
    held_out = NormalTail.of(reference.maps(frames().images_NHWC[[3, 7]]))
    np.testing.assert_array_equal(method.tails["pixel_reference"].values_T, held_out.values_T)


def test_too_few_frames_to_hold_one_out_are_refused():
    with pytest.raises(DataError, match="4 good frames at least; there are 3"):
        Fusion.from_config(config("pixel_reference")).fit(frames().only(np.arange(8) < 3), 0)


def test_a_shrunk_part_sees_smaller_frames_and_its_maps_have_the_size_of_the_others():
    method = Fusion.from_config(config("pixel_reference", autoencoder=2))
    frames = generator(0, "frames").integers(0, 255, (8, 96, 128, 3)).astype(np.uint8)
    method.fit(TrainingFrames.of_good(frames), 0)
    assert method.shown_to("pixel_reference", frames).shape == (8, 96, 128, 3)
    shrunk = method.shown_to("autoencoder", frames)
    np.testing.assert_allclose(shrunk, frames.reshape(8, 48, 2, 64, 2, 3).mean((2, 4)), atol=0.51)
    maps = method.part_maps(frames[:2])
    assert maps["autoencoder"].shape == maps["pixel_reference"].shape == (2, 96, 128)
    corners = method.parts["autoencoder"].maps(shrunk[:2])[:, ::47, ::63]
    np.testing.assert_allclose(maps["autoencoder"][:, ::95, ::127], corners, rtol=1e-5)


def test_only_a_part_that_compares_with_templates_is_shown_them():
    method = Fusion.from_config(config("pixel_reference", "template_difference"))
    assert is_shown_template(method)
    assert not is_shown_template(Fusion.from_config(config("pixel_reference")))
    template = generator(0, "templates").integers(20, 230, (8, 6, 8, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    pairs = np.concatenate([template + 2, template], axis=3)
    pairs[6, 10:20, 30:40, :3] = 255 - pairs[6, 10:20, 30:40, :3]
    method.fit(TrainingFrames.of_good(pairs[:6]), 0)
    assert [method.shown_to(name, pairs).shape[3] for name in method.parts] == [3, 6]
    maps = method.part_maps(pairs[6:])["template_difference"]
    assert maps[0, 15, 35] > 2 * maps[1].max()
    assert np.isfinite(method.maps(pairs[6:])).all()


def test_what_parts_agree_on_stands_and_what_one_says_alone_counts_little():
    rarity = np.array([[0, 3, 3, 3, 1e6], [0, 3, 1, 0, 0]], np.float32)
    together = agreed(rarity[:, np.newaxis, np.newaxis])[0, 0]
    np.testing.assert_allclose(together, [0, 3, 5 / 3, 0.6, 1], rtol=1e-5)


def test_parts_are_other_detectors_seen_at_a_stated_scale():
    with pytest.raises(ConfigError, match="no detector is called 'fusion'; known ones are pixel_reference"):
        Fusion.from_config(config("draem", "fusion"))
    with pytest.raises(ConfigError, match=r"parts\.draem: input should be less than or equal to 8"):
        config(draem=9)
    with pytest.raises(ConfigError, match="no detector is called 'nothing'"):
        Fusion.from_config(config("draem", "nothing"))


@pytest.mark.ray
def test_the_pipeline_trains_the_parts_and_learns_the_tails_from_held_out_images(tmp_path):
    data = write_synthetic(tmp_path / "data", 9, 2, 2, height=64, width=96)
    fused, alone = (
        open_run(tmp_path / name, config(*parts))
        for name, parts in (("fused", ("pixel_reference", "autoencoder")), ("alone", ("pixel_reference",)))
    )
    with session(fused.config.resources):
        for run in (fused, alone):
            prepare(run, str(data))
            fit(run, "fusion-1", "fusion", lambda _: lambda *_: None)
    artifact = load_artifact(fused.model_path("fusion-1"))
    rows = fused.rows("train")
    folds = assign_folds(rows, fused.config)
    maps = []
    for row in rows:
        image = decode(read_bytes(row.uri, 1 << 30), 1 << 30)
        maps.append(artifact.members[folds[row.sample_id]].part_maps(np.stack(list(Frames(image, artifact.plan)))))
    for name in ("pixel_reference", "autoencoder"):
        tail = NormalTail.of(np.stack([each[name] for each in maps]))
        for member in artifact.members:
            np.testing.assert_allclose(member.tails[name].values_T, tail.values_T, rtol=1e-6)
    part = load_artifact(alone.model_path("fusion-1")).members[1].tails["pixel_reference"]
    np.testing.assert_array_equal(part.values_T, artifact.members[1].tails["pixel_reference"].values_T)
    assert artifact.calibration is not None
