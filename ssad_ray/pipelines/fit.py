"""Pretext task: good images -> a calibrated detector, cross-fitted."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssad_ray import __version__
from ssad_ray.config import RunConfig
from ssad_ray.core.framing import FramePlan
from ssad_ray.core.rng import generator
from ssad_ray.datasets.splits import digest
from ssad_ray.errors import ArtifactError, ConfigError
from ssad_ray.methods import load_method
from ssad_ray.methods.artifact import Artifact, load_artifact, save_artifact
from ssad_ray.methods.base import Combines, Method, State, TrainingFrames, TrainsByGradient, is_shown_template
from ssad_ray.pipelines.calibrate import calibrated
from ssad_ray.pipelines.folds import assign_folds, refuse_one_fold
from ssad_ray.pipelines.frames import collect_frames, plan_frames
from ssad_ray.pipelines.fuse import train_parts, with_tails
from ssad_ray.pipelines.run import Announce, Run, timed
from ssad_ray.pipelines.training import Member, train_members

SEEN_BY_ALL = -1
"""Fold of a frame that no member leaves out."""


@timed("fit")
def fit(run: Run, name: str, method: str, announce: Announce) -> None:
    """Fit a detector on the run's good images, unless it is there already.

    Args:
        run: Whose data and config.
        name: Of the artifact.
        method: A name of the table of detectors.
        announce: Where progress is shown.

    Raises:
        DataError: Too few good images could be read.
    """
    if run.model_path(name).exists():
        return
    rows = run.rows("train")
    folds = assign_folds(rows, run.config)
    plan = plan_frames(rows, run.config)
    with_templates = is_shown_template(load_method(method).from_config(run.config))
    progress = announce(f"{name}: read good images")
    frames, ids = collect_frames(rows, plan, None, run.config, progress, with_templates=with_templates)
    refuse_one_fold(ids, folds)
    fold_N = np.array([folds[sample_id] for sample_id in ids])
    fit_members(run, name, method, plan, frames, fold_N, _initial_states(run, method), announce)


def fit_members(
    run: Run,
    name: str,
    method: str,
    plan: FramePlan,
    frames: TrainingFrames,
    fold_N: NDArray[np.int64],
    initial: Sequence[State | None],
    announce: Announce,
    labels: str | None = None,
) -> None:
    """Train one ensemble member per fold, calibrate on the good images that each did not see, and save.

    `fold_N` says which member does not see a frame; `SEEN_BY_ALL` is none of them.

    Where `initial` has weights they are those of a member that did not see the fold either. The card says which
    `labels` the frames carry besides good ones.
    """
    config = run.config
    seeds = [int(generator(config.seed, "member", name, fold).integers(2**31)) for fold in range(len(initial))]
    members = [Member(fold_N != fold, seeds[fold], start) for fold, start in enumerate(initial)]
    work = run.work_path(name)
    prototype = load_method(method).from_config(config)
    if isinstance(prototype, Combines):
        states = train_parts(name, prototype, config, frames, members, work, announce)
    else:
        states = train_members(load_method(method), config, frames, members, work, announce(f"{name}: train"))
    rows = run.rows("train")
    artifact = Artifact(
        name=name,
        method=method,
        plan=plan,
        members=tuple(_fitted(method, config, state) for state in states),
        calibration=None,
        config=config,
        card={
            "ssad_ray": __version__,
            "seed": config.seed,
            "labels": labels,
            "num_good_images": len(rows),
            "num_frames": [int(member.kept_N.sum()) for member in members],
            "data_digest": digest(row.sample_id for row in rows),
        },
    )
    publish(run, name, artifact, announce)


def publish(run: Run, name: str, artifact: Artifact, announce: Announce) -> None:
    """Calibrate an artifact on the run's good images and put it among the models; its checkpoints are not needed more.

    Workers find it in a draft on disk, which is always written anew: an old one may be of other weights.
    """
    rows = run.rows("train")
    if isinstance(artifact.members[0], Combines):
        artifact = with_tails(_draft(run, artifact), rows, run.config, announce(f"{name}: compare its parts"))
    finished = calibrated(_draft(run, artifact), rows, run.config, announce(f"{name}: calibrate"))
    save_artifact(finished, run.model_path(name))
    shutil.rmtree(run.work_path(name), ignore_errors=True)


def _draft(run: Run, artifact: Artifact) -> Path:
    path = run.work_path(artifact.name) / "uncalibrated"
    shutil.rmtree(path, ignore_errors=True)
    save_artifact(artifact, path)
    return path


def load_source(run: Run) -> Artifact:
    """Return the detector of another product that `detector.init_from` names.

    Raises:
        ArtifactError: It is of another method than this run's, or has another number of members.
        ConfigError: This run's method takes no weights to start from.
    """
    path, method, folds = run.config.detector.init_from, run.detector, run.config.calibration.folds
    prototype = load_method(method).from_config(run.config)
    parts = prototype.parts.values() if isinstance(prototype, Combines) else [prototype]
    if not any(isinstance(part, TrainsByGradient) for part in parts):
        raise ConfigError(f"--init-from has no meaning for {method}, which is not trained by gradient; leave it out")
    source = load_artifact(Path(str(path)))
    if source.method != method:
        raise ArtifactError(
            f"--init-from {path} is a {source.method}, the run's detector is {method}; name an artifact of the same "
            f"method, or set detector.name={source.method}"
        )
    if len(source.members) != folds:
        raise ArtifactError(
            f"--init-from {path} has {len(source.members)} members, the run's detector {folds}; set "
            f"calibration.folds={len(source.members)}"
        )
    return source


def _initial_states(run: Run, method: str) -> Sequence[State | None]:
    """Return the weights that each fold's member starts from: none, or those of another product's detector."""
    if run.config.detector.init_from is None or method != run.detector:
        return [None] * run.config.calibration.folds
    return [member.state() for member in load_source(run).members]


def _fitted(method: str, config: RunConfig, state: State) -> Method:
    fitted = load_method(method).from_config(config)
    fitted.load_state(state)
    return fitted
