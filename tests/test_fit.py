"""Each good image is judged by the member that did not see it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ssad_ray.config import DataConfig, DetectorConfig, RunConfig
from ssad_ray.core.framing import FramePlan
from ssad_ray.core.images import encode_png
from ssad_ray.core.records import Sample
from ssad_ray.datasets.synthetic import write_synthetic
from ssad_ray.errors import ConfigError, DataError
from ssad_ray.methods.artifact import Artifact
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.pipelines import calibrate as calibrate_module
from ssad_ray.pipelines import fit as fit_module
from ssad_ray.pipelines import frames as frames_module
from ssad_ray.pipelines.fit import SEEN_BY_ALL, fit, fit_members
from ssad_ray.pipelines.folds import assign_folds
from ssad_ray.pipelines.frames import collect_frames, plan_frames
from ssad_ray.pipelines.prepare import prepare
from ssad_ray.pipelines.run import open_run

PLAN = FramePlan("resize", 32, 48)


class Captured(Exception):  # noqa: N818
    pass


def silent(_title):
    return lambda *_: None


@pytest.fixture
def run(tmp_path):
    run = open_run(tmp_path / "run", RunConfig())
    prepare(run, str(write_synthetic(tmp_path / "data", 9, 2, 2, height=64, width=96)))
    return run


@pytest.fixture
def members(monkeypatch):
    """What is asked of training; nothing is trained."""
    asked = []

    def capture(method, config, frames, members, *rest):
        asked.extend(members)
        raise Captured

    monkeypatch.setattr(fit_module, "train_members", capture)
    return asked


def test_a_member_learns_from_all_frames_but_those_of_its_fold(run, members):
    with pytest.raises(Captured):
        fit(run, "draem-1", "draem", silent)
    folds = [fold for _, fold in sorted(assign_folds(run.rows("train"), run.config).items())]
    assert [member.kept_N.tolist() for member in members] == [[at != fold for at in folds] for fold in range(3)]
    assert len({member.seed for member in members}) == 3


def test_what_takes_no_weights_is_given_none(run, tmp_path):
    foreign = run.config.model_copy(update={"detector": DetectorConfig(name="memory_bank", init_from=str(tmp_path))})
    with pytest.raises(ConfigError, match="no meaning for memory_bank, which is not trained by gradient"):
        fit(replace(run, config=foreign), "memory_bank-1", "memory_bank", silent)


def test_the_floor_does_not_start_from_the_detectors_weights(run, tmp_path, members):
    foreign = run.config.model_copy(update={"detector": DetectorConfig(init_from=str(tmp_path))})
    with pytest.raises(Captured):
        fit(replace(run, config=foreign), "pixel_reference", "pixel_reference", silent)
    assert [member.initial for member in members] == [None] * 3


def test_good_images_that_fail_but_for_one_fold_are_too_few(run, members):
    rows = run.rows("train")
    folds = assign_folds(rows, run.config)
    for row in rows:
        if folds[row.sample_id] != 1:
            (run.path / "../data" / "plate" / row.path).unlink()
    few = run.config.model_copy(update={"data": DataConfig(max_error_fraction=1.0)})
    with pytest.raises(DataError, match=r"of 9 good images only 3 are left that did not fail, too few to learn"):
        fit(replace(run, config=few), "draem-1", "draem", silent)
    assert not members


def test_frames_of_no_fold_are_learnt_by_every_member(run, members):
    frames = TrainingFrames.of_good(np.zeros((4, 32, 48, 3), np.uint8))
    with pytest.raises(Captured):
        fit_members(run, "unet-1", "unet", PLAN, frames, np.array([1, 0, SEEN_BY_ALL, 2]), [None] * 3, silent)
    kept = [member.kept_N.astype(int).tolist() for member in members]
    assert kept == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]]


def test_places_mean_something_where_an_aligned_part_is_seen_whole(run):
    rows, plan = run.rows("train"), plan_frames(run.rows("train"), run.config)
    assert plan.mode == "resize"
    assert collect_frames(rows, plan, None, run.config)[0].has_places
    tiles = FramePlan("tile", 64, 96)  # as large as an image, so that they look as much alike as the images do
    assert not collect_frames(rows, tiles, None, run.config)[0].has_places


def test_a_good_image_is_calibrated_with_the_member_of_its_fold(monkeypatch):
    def member(value):
        return SimpleNamespace(maps=lambda images: np.full(images.shape[:3], value, np.float32))

    artifact = Artifact("a", "draem", PLAN, None, RunConfig(), {}, (member(0.0), member(1.0), member(2.0)))
    monkeypatch.setattr(calibrate_module, "load_artifact", lambda _: artifact)
    folds = {"a": 2, "b": 0, "c": 1}
    scorer = calibrate_module.HeldOutScorer("artifact", folds, dict.fromkeys(folds, 1), RunConfig())
    data = encode_png(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    for name, fold in folds.items():
        row = scorer(Sample(name, name, "part", name), data)
        assert row["score"] == fold
        assert set(np.frombuffer(row["map"], np.float32)) == set(np.frombuffer(row["planted_values"], np.float32))
        assert set(np.frombuffer(row["map"], np.float32)) == {fold}


def test_good_images_that_vanished_are_no_obstacle_unless_all_did(run, monkeypatch):
    rows = run.rows("train")
    plan = plan_frames(rows, run.config)
    for row in rows[:3]:
        (run.path / "../data" / "plate" / row.path).unlink()
    monkeypatch.setattr(frames_module, "_PLAN_IMAGES", 3)
    assert plan_frames(rows, run.config) == plan
    with pytest.raises(DataError, match="no readable good image to learn from"):
        plan_frames(rows[:3], run.config)
