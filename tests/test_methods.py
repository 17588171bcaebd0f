"""Every method of the table goes through the same behaviours."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ssad_ray.config import ResourcesConfig, RunConfig, validate_config, with_override
from ssad_ray.core.framing import FramePlan
from ssad_ray.core.rng import generator
from ssad_ray.errors import ArtifactError, ConfigError
from ssad_ray.methods import METHODS, load_method
from ssad_ray.methods.artifact import Artifact, load_artifact, save_artifact
from ssad_ray.methods.base import ComparesWithTemplate, Method, TrainingFrames, TrainsByGradient
from ssad_ray.methods.devices import make_repeatable
from ssad_ray.methods.training import Trainer, compute_all, save_state, start_from
from ssad_ray.pipelines.session import session
from ssad_ray.pipelines.training import Member, train_members

HEIGHT, WIDTH = 48, 80
DEFECT = slice(20, 32), slice(50, 66)


SMALL = {
    "detector.draem": {"width": 8},
    "detector.autoencoder": {"width": 8},
    "detector.context_svdd": {"width": 16, "patch_px": 16, "memory": 256},
    "detector.cutpaste_sla": {"patch_px": 16, "stride_px": 4},
    "detector.gan_inversion": {"width": 8, "crop_px": 32, "refine_steps": 5},
    "segmenter.unet": {"width": 8},
}
"""Of each method that is trained by gradient, its section of the config and the options that make it small."""


def config(steps: int = 120) -> RunConfig:
    tree: dict = {}
    training = {"steps": steps, "batch_size": 4, "learning_rate": 0.004}
    for path, options in SMALL.items():
        tree = with_override(tree, path, {**options, "training": training})
    return validate_config(tree)


def plate() -> NDArray[np.float64]:
    """A plate with a groove and a light gradient."""
    image = np.full((HEIGHT, WIDTH, 3), 120.0) + np.linspace(0, 40, WIDTH)[:, None]
    image[10:14] -= 50
    return image


def good_image(index: int, seed: int = 0) -> NDArray[np.uint8]:
    """A plate with its own brightness and noise."""
    rng = generator(seed, "plate", index)
    image = plate()
    return np.clip(image + rng.uniform(-4, 4) + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def with_defect(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = image.copy()
    image[DEFECT] = (230, 60, 40)
    return image


def shown_to(method: Method, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images (..., H, W, 3) as the method wants them: as they are, or with the plate as their template."""
    if not isinstance(method, ComparesWithTemplate):
        return images
    return np.concatenate([images, np.broadcast_to(plate().astype(np.uint8), images.shape)], axis=-1)


BY_GRADIENT = [name for name in METHODS if hasattr(load_method(name), "batch")]
GOOD = np.stack([good_image(index) for index in range(12)])
UNSEEN = np.stack([good_image(index, seed=1) for index in range(4)])


def fitted(name: str, seed: int = 0, steps: int = 120) -> Method:
    torch.set_num_threads(1)
    method = load_method(name).from_config(config(steps))
    method.fit(TrainingFrames.of_good(shown_to(method, GOOD)), seed)
    return method


@pytest.fixture(scope="module", params=METHODS)
def method(request) -> Method:
    return fitted(request.param)


def test_it_detects_a_stamped_defect(method):
    normal = method.maps(shown_to(method, UNSEEN))
    anomalous = method.maps(shown_to(method, np.stack([with_defect(image) for image in UNSEEN])))
    assert anomalous.max((1, 2)).min() > normal.max()


def test_the_defect_lands_where_the_defect_is(method):
    maps = method.maps(shown_to(method, np.stack([with_defect(image) for image in UNSEEN])))
    assert maps.shape == (4, HEIGHT, WIDTH)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[DEFECT] = True
    inside = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # networks answer in blocks of 2 x 2
    for anomaly_map in maps:
        assert inside[np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)]
        assert anomaly_map[inside].mean() > np.quantile(anomaly_map[~inside], 0.9)


def test_batch_size_does_not_change_maps(method):
    maps = method.maps(shown_to(method, UNSEEN))
    for index, image in enumerate(shown_to(method, UNSEEN)):
        (anomaly_map,) = method.maps(image[np.newaxis])
        np.testing.assert_allclose(anomaly_map, maps[index], rtol=1e-4, atol=1e-4)


def test_a_constant_image_gives_finite_output(method):
    for level in (0, 255):
        maps = method.maps(shown_to(method, np.full((1, HEIGHT, WIDTH, 3), level, np.uint8)))
        assert np.isfinite(maps).all()
        assert maps.dtype == np.float32


def test_an_artifact_reloads_to_the_same_scores(method, request, tmp_path):
    name = request.node.callspec.params["method"]
    plan = FramePlan("resize", HEIGHT, WIDTH)
    artifact = Artifact(f"{name}-1", name, plan, None, config(), {"seed": 0}, (method, method))
    image = np.repeat(np.repeat(shown_to(method, with_defect(good_image(0))), 2, axis=0), 3, axis=1)
    save_artifact(artifact, tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    score, anomaly_map = artifact.score(image)
    assert anomaly_map.shape == image.shape[:2]
    for again in (loaded.score(image), loaded.score(image, fold=1)):
        np.testing.assert_allclose(again[0], score, rtol=1e-5)
        np.testing.assert_allclose(again[1], anomaly_map, rtol=1e-4, atol=1e-4)
    assert loaded.plan == plan
    assert loaded.config == artifact.config


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_reaches_every_random_stream(name):
    first, again, other = (fitted(name, seed, steps=4).state() for seed in (0, 0, 1))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    method = load_method(name).from_config(config())
    is_random = name not in ("pixel_reference", "template_difference")
    assert is_random == any(not np.array_equal(first[key], other[key]) for key in first)
    if isinstance(method, TrainsByGradient):
        frames = TrainingFrames.of_good(shown_to(method, GOOD))
        method.initialise(frames, 0)
        one, another = (method.batch(frames, seed, 0, 0) for seed in (0, 1))
        assert any(not np.array_equal(one[key], another[key]) for key in one)


@pytest.mark.ray
def test_two_workers_train_to_the_bits_of_one_process(tmp_path):
    few = config(2).model_copy(update={"resources": ResourcesConfig(train_workers=2, threads_per_worker=1)})
    make_repeatable(1)
    with session(few.resources):
        for name in ("cutpaste_sla", "gan_inversion"):  # another is in test_loop.py, the mechanics in test_training.py
            frames = TrainingFrames.of_good(shown_to(load_method(name).from_config(few), GOOD))
            member = Member(np.ones(len(GOOD), bool), seed=0)
            (state,) = train_members(load_method(name), few, frames, [member], tmp_path / name)
            expected = fitted(name, steps=2).state()
            assert [key for key in expected if not np.array_equal(state[key], expected[key])] == [], name


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_training_goes_on_from_a_state_as_if_it_had_not_stopped(name):
    methods = [load_method(name).from_config(config(4)) for _ in range(3)]
    frames = TrainingFrames.of_good(shown_to(methods[0], GOOD))
    whole, stopped, resumed = (Trainer(method, frames, 0) for method in methods)
    assert isinstance(whole.method, TrainsByGradient)
    for trainer in (whole, whole, stopped, stopped):
        trainer.apply([gradient for gradient, _ in compute_all(trainer)])
    resumed.load_state(stopped.state())
    for trainer in (whole, resumed):
        trainer.run(compute_all)
        trainer.finish()
    ends = [trainer.method.state() for trainer in (whole, resumed)]
    assert all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'no-such-method'; known methods are pixel_reference"):
        load_method("no-such-method")


def test_an_artifact_is_never_overwritten_and_never_half_read(tmp_path):
    plan = FramePlan("resize", HEIGHT, WIDTH)
    artifact = Artifact("a", "pixel_reference", plan, None, config(), {}, (fitted("pixel_reference"),))
    save_artifact(artifact, tmp_path / "a")
    with pytest.raises(ArtifactError, match="never overwritten"):
        save_artifact(artifact, tmp_path / "a")
    with pytest.raises(ArtifactError, match="not a readable artifact folder"):
        load_artifact(tmp_path / "missing")
    for name in ("weights.safetensors", "config.yaml", "artifact.json"):
        (tmp_path / "a" / name).write_bytes(b"broken: [")
        with pytest.raises(ArtifactError, match="not a readable artifact folder"):
            load_artifact(tmp_path / "a")
    save_artifact(artifact, tmp_path / "b")
    for text in ("[]", '{"format": 2}', '{"format": 2, "method": "pixel_reference", "num_members": "many"}'):
        (tmp_path / "b" / "artifact.json").write_text(text)
        with pytest.raises(ArtifactError, match=r"b/artifact.json lacks a field, or has one of another kind"):
            load_artifact(tmp_path / "b")
    (tmp_path / "a" / "artifact.json").write_text('{"format": 1}')
    with pytest.raises(ArtifactError, match="artifact format 1; this version reads 2"):
        load_artifact(tmp_path / "a")


def test_arrays_in_any_memory_order_are_stored_as_they_seem(tmp_path):
    transposed = np.arange(6.0).reshape(2, 3).T
    save_state({"covariance": transposed, "step": np.array(7)}, tmp_path / "state.safetensors")
    stored = load_file(tmp_path / "state.safetensors")
    np.testing.assert_array_equal(stored["covariance"], transposed)
    assert stored["step"].shape == ()


def test_the_downstream_task_starts_from_the_weights_of_the_pretext():
    pretext, segmenter = fitted("draem", steps=4), load_method("unet").from_config(config(1))
    segmenter.initialise(TrainingFrames.of_good(GOOD), 0)
    start_from(segmenter.network, pretext.state())
    given, taken = pretext.state(), segmenter.state()
    assert all(np.array_equal(taken[name], given[name]) for name in given)
    with pytest.raises(ArtifactError, match="same method and widths"):
        start_from(segmenter.network, fitted("autoencoder", steps=1).state())
