from dataclasses import replace
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest

from ssad_ray.config import RunConfig
from ssad_ray.core.calibration import calibrate
from ssad_ray.core.framing import FramePlan
from ssad_ray.core.images import encode_png
from ssad_ray.core.profile import HeldOutProfiles, NormalProfile
from ssad_ray.core.records import Calibration, Sample
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
    profile = profile_of(good_maps(200))
    unseen, faint = good_maps(1, seed=7), good_maps(1, seed=7)
    faint[0, 4, 3] = 1.5
    assert faint.max() == unseen.max()
    assert profile.excess(faint).max() > 2 * profile.excess(unseen).max()
    assert np.unravel_index(profile.excess(faint)[0].argmax(), (HEIGHT, WIDTH)) == (4, 3)


def profile_of(maps: np.ndarray) -> NormalProfile:
    return HeldOutProfiles(maps, [str(index) for index in range(len(maps))]).of_all()


def held_out_scores(maps: np.ndarray, groups: list[str] | None = None) -> list[float]:
    groups = groups or [str(index) for index in range(len(maps))]
    profiles = HeldOutProfiles(maps, groups)
    return [float(profiles.without(group).excess(each).max()) for each, group in zip(maps, groups, strict=True)]


@pytest.mark.parametrize("num", [3, 10, 40])
def test_a_group_is_judged_by_what_is_outside_it_and_the_spread_common_to_all(num: int) -> None:
    maps, groups = good_maps(num), [str(index // 2) for index in range(num)]
    common = maps.var(axis=0, ddof=1, dtype=np.float64).mean()
    profile = HeldOutProfiles(maps, groups).without("0")
    others = maps[2:].astype(np.float64)
    spread = np.sqrt((len(others) * others.var(axis=0) + 10 * common) / (len(others) + 10))
    assert profile.mean_HW == pytest.approx(others.mean(axis=0), rel=1e-4)
    assert profile.spread_HW == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize("copies", [1, 3])
def test_held_out_scores_predict_those_of_unseen_good_images_even_where_they_come_in_copies(copies: int) -> None:
    maps, groups = np.repeat(good_maps(20), copies, axis=0), [str(index // copies) for index in range(20 * copies)]
    unseen = profile_of(maps).excess(good_maps(300, seed=9)).max(axis=(1, 2))
    promised = np.median(held_out_scores(maps, groups))
    assert abs(np.mean(unseen > promised) - 0.5) < 0.2


@pytest.mark.parametrize("maps", [np.zeros((4, 3, 5), np.float32), good_maps(2)])
def test_maps_that_do_not_vary_give_finite_scores(maps: np.ndarray) -> None:
    assert np.isfinite(held_out_scores(maps)).all()
    assert (profile_of(maps[:1]).spread_HW > 0).all()


class Brightness:
    """The picture is its own anomaly map."""

    def maps(self, images_BHWC: np.ndarray) -> np.ndarray:
        return images_BHWC[..., 0].astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        return {"nothing": np.zeros(1, np.float32)}


def test_the_place_that_makes_an_image_anomalous_is_outlined() -> None:
    rng = np.random.default_rng(0)
    good = rng.integers(10, 14, (30, 32, 48)).astype(np.float32)
    good[:, :, 20:28] = rng.integers(150, 200, (30, 32, 8))
    calibration = calibrate(zip(held_out_scores(good), good, strict=True), 30, 0.1, 1e-3, 1e-2)
    plan, profile = FramePlan("resize", 32, 48), profile_of(good)
    artifact = Artifact("b-1", "b", plan, calibration, RunConfig(), {}, (Brightness(),), profile)  # type: ignore[arg-type]
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


def test_without_places_a_pixel_above_the_image_threshold_is_a_region() -> None:
    scores = tuple(float(score) for score in range(9))
    calibration = Calibration("by hand", 0.1, 9, 60.0, 80.0, 30.0, 4, 1.0, 2.0, scores)
    artifact = Artifact("b-1", "b", FramePlan("resize", 32, 48), calibration, RunConfig(), {}, (Brightness(),))  # type: ignore[arg-type]
    image = np.zeros((32, 48), np.uint8)
    image[5, 5], image[20, 20:24], image[28, 40] = 90, 70, 61
    sample = Sample("a.png@0", "a.png", "plate", "g")
    verdict, _ = judge(artifact, sample, encode_png(cv2.merge([image] * 3)), RunConfig().data, datetime.now(UTC))
    assert [region.score for region in verdict.regions] == [90, 70, 61]


@pytest.mark.parametrize("image_threshold", [50.625, 60.0])
def test_a_peak_that_sinks_when_its_map_is_enlarged_is_outlined_all_the_same(image_threshold: float) -> None:
    calibration = Calibration(
        "by hand", 0.1, 9, image_threshold, 80.0, 30.0, 4, 1.0, 2.0, tuple(float(score) for score in range(9))
    )
    plan = FramePlan("tile", 32, 32, 0.5, 0.25)
    artifact = Artifact("b-1", "b", plan, calibration, RunConfig(), {}, (Brightness(),))  # type: ignore[arg-type]
    image = np.zeros((64, 96), np.uint8)
    image[30:32, 40:42] = 90
    sample = Sample("a.png@0", "a.png", "plate", "g")
    verdict, anomaly_map = judge(
        artifact, sample, encode_png(cv2.merge([image] * 3)), RunConfig().data, datetime.now(UTC)
    )
    assert verdict.anomaly_score == 90 > image_threshold >= anomaly_map.max()
    (region,) = verdict.regions
    assert region.box == (40, 30, 42, 32)


def test_tiles_are_judged_by_their_joined_map() -> None:
    class Corner:
        """A network that is wrong in a corner of every frame, where it sees least."""

        def maps(self, images_BHWC: np.ndarray) -> np.ndarray:
            maps = images_BHWC[..., 0].astype(np.float32)
            maps[:, 0, 0] += 500
            return maps

    image = np.zeros((70, 90, 3), np.uint8)
    image[40:44, 50:54] = 90
    artifact = Artifact("c-1", "c", FramePlan("tile", 32, 32, 1.0, 0.25), None, RunConfig(), {}, (Corner(),))  # type: ignore[arg-type]
    image[0, 0] = 7  # no other tile sees this corner
    score, anomaly_map = artifact.score(image)
    assert score == anomaly_map.max() == anomaly_map[0, 0] == 507
    assert anomaly_map[1:, 1:].max() < 100


@pytest.mark.parametrize("mode", ["resize", "tile"])
def test_the_score_is_the_mean_of_the_members_and_so_is_the_map(mode: str) -> None:
    class Bright:
        """A member that sees one place."""

        def __init__(self, row: int, value: float) -> None:
            self.row, self.value = row, value

        def maps(self, images_BHWC: np.ndarray) -> np.ndarray:
            maps = images_BHWC[..., 0].astype(np.float32)
            maps[:, self.row] *= self.value
            return maps

    plan = FramePlan(mode, 32, 48, 1.0, 0.25)  # type: ignore[arg-type]
    artifact = Artifact("b-1", "b", plan, None, RunConfig(), {}, (Bright(3, 4.0), Bright(20, 8.0)))  # type: ignore[arg-type]
    score, anomaly_map = artifact.score(np.ones((32, 48, 3), np.uint8))
    assert score == 6.0
    assert (anomaly_map[3, 0], anomaly_map[20, 0], anomaly_map[0, 0]) == (2.5, 4.5, 1.0)
    assert [artifact.score(np.ones((32, 48, 3), np.uint8), fold)[0] for fold in (0, 1)] == [4.0, 8.0]


def test_an_artifact_keeps_its_profile(tmp_path) -> None:
    config = RunConfig()
    plan, profile = FramePlan("resize", HEIGHT, WIDTH), profile_of(good_maps(5))
    method = PixelReference.from_config(config)
    method.median_HWC = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    method.spread_HWC = np.ones((HEIGHT, WIDTH, 3), np.float32)
    artifact = Artifact("pixel_reference-1", "pixel_reference", plan, None, config, {}, (method, method), profile)
    save_artifact(artifact, tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    image = np.random.default_rng(0).integers(0, 9, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert loaded.score(image)[0] == artifact.score(image)[0] != replace(artifact, profile=None).score(image)[0]
    assert loaded.score(image, fold=1)[0] == method.maps(image[np.newaxis]).max()
