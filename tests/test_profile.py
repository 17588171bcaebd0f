from dataclasses import replace
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest

from ssad_ray.config import RunConfig
from ssad_ray.core.calibration import calibrate
from ssad_ray.core.framing import FramePlan
from ssad_ray.core.images import encode_png
from ssad_ray.core.profile import NormalProfile, held_out_scores
from ssad_ray.core.records import Sample
from ssad_ray.methods.artifact import Artifact, load_artifact, save_artifact
from ssad_ray.methods.judging import judge
from ssad_ray.methods.pixel_reference import PixelReference

HEIGHT, WIDTH = 12, 20
EDGE = np.s_[:, 8:11]


def good_maps(num: int, seed: int = 0) -> np.ndarray:
    """Maps that are quiet on the surface, and high and restless along an edge."""
    maps = np.random.default_rng(seed).normal(0.0, 0.1, (num, HEIGHT, WIDTH))
    maps[(slice(None), *EDGE)] = np.random.default_rng(seed + 1).normal(5.0, 1.0, (num, HEIGHT, 3))
    return maps.astype(np.float32)


def test_a_faint_spot_on_quiet_ground_outranks_a_bright_edge() -> None:
    profile = NormalProfile.of(good_maps(200))
    unseen, faint = good_maps(1, seed=7), good_maps(1, seed=7)
    faint[0, 4, 3] = 1.5
    assert faint.max() == unseen.max()
    assert profile.excess(faint).max() > 2 * profile.excess(unseen).max()
    assert np.unravel_index(profile.excess(faint)[0].argmax(), (HEIGHT, WIDTH)) == (4, 3)


@pytest.mark.parametrize("num", [3, 10, 40])
def test_held_out_scores_are_those_of_a_profile_learnt_from_the_others(num: int) -> None:
    maps = good_maps(num)
    common = maps.var(axis=0, ddof=1, dtype=np.float64).mean()
    for index, score in enumerate(held_out_scores(maps)):
        others = np.delete(maps, index, axis=0).astype(np.float64)
        spread = np.sqrt(((num - 1) * others.var(axis=0) + 10 * common) / (num - 1 + 10))
        assert score == pytest.approx(((maps[index] - others.mean(axis=0)) / spread).max(), rel=1e-4)


def test_held_out_scores_predict_those_of_unseen_good_images() -> None:
    profile = NormalProfile.of(good_maps(20))
    unseen = profile.excess(good_maps(300, seed=9)).max(axis=(1, 2))
    promised = np.median(held_out_scores(good_maps(20)))
    assert abs(np.mean(unseen > promised) - 0.5) < 0.2


@pytest.mark.parametrize("maps", [np.zeros((4, 3, 5), np.float32), good_maps(1)])
def test_maps_that_do_not_vary_give_finite_scores(maps: np.ndarray) -> None:
    assert np.isfinite(held_out_scores(maps)).all()
    assert (NormalProfile.of(maps).spread_HW > 0).all()


class Brightness:
    """The picture is its own anomaly map."""

    def score(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = images_BHWC[..., 0].astype(np.float32)
        return maps.max(axis=(1, 2)), maps

    def state(self) -> dict[str, np.ndarray]:
        return {"nothing": np.zeros(1, np.float32)}


def test_the_place_that_makes_an_image_anomalous_is_outlined() -> None:
    rng = np.random.default_rng(0)
    good = rng.integers(10, 14, (30, 32, 48)).astype(np.float32)
    good[:, :, 20:28] = rng.integers(150, 200, (30, 32, 8))
    calibration = calibrate(held_out_scores(good), list(good), 0.1, 1e-3, 1e-2)
    plan, profile = FramePlan("resize", 32, 48), NormalProfile.of(good)
    artifact = Artifact("b-1", "b", plan, (Brightness(),), calibration, RunConfig(), {}, profile)  # type: ignore[arg-type]
    image = good[0].copy()
    image[5:9, 3:9] = 60  # far below the edge, far above its own place
    assert calibration.pixel_threshold_low > 60
    data = encode_png(cv2.merge([image.astype(np.uint8)] * 3))
    sample = Sample("a.png@0", "a.png", "plate", "g")
    verdict, _ = judge(artifact, sample, data, RunConfig().data, datetime.now(UTC))
    assert verdict.is_anomalous
    (region,) = verdict.regions
    assert region.box == (3, 5, 9, 9)
    without, _ = judge(replace(artifact, profile=None), sample, data, RunConfig().data, datetime.now(UTC))
    assert without.anomaly_score == image.max()


def test_an_artifact_keeps_its_profile(tmp_path) -> None:
    config = RunConfig()
    plan, profile = FramePlan("resize", HEIGHT, WIDTH), NormalProfile.of(good_maps(5))
    method = PixelReference.from_config(config)
    method.median_HWC = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    method.spread_HWC = np.ones((HEIGHT, WIDTH, 3), np.float32)
    artifact = Artifact("pixel_reference-1", "pixel_reference", plan, (method,), None, config, {}, profile)
    save_artifact(artifact, tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    image = np.random.default_rng(0).integers(0, 9, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert loaded.profile is not None
    assert loaded.score(image)[0] == artifact.score(image)[0] != replace(artifact, profile=None).score(image)[0]
