"""Downstream task: automatic labels, good images and planted defects -> a calibrated segmenter."""

from functools import partial

import numpy as np

from ssad_ray.errors import ConfigError
from ssad_ray.labels.versions import read_labels
from ssad_ray.method_config import ComparisonConfig
from ssad_ray.methods.base import Method, State, TrainingFrames, is_shown_template
from ssad_ray.methods.comparison import Comparison
from ssad_ray.methods.template_unet import TemplateUnet
from ssad_ray.pipelines.fit import SEEN_BY_ALL, fit_members
from ssad_ray.pipelines.folds import assign_folds
from ssad_ray.pipelines.frames import AutomaticTargets, MakeTargets, TrueTargets, collect_frames
from ssad_ray.pipelines.run import Announce, Run, timed

SEGMENTER, TEMPLATE_SEGMENTER = "unet", "template_unet"


@timed("train")
def train_on_labels(run: Run, name: str, label_version: str, labeller: str, announce: Announce) -> None:
    """Train a segmenter on a label version of the online stage, unless it is there already.

    Args:
        run: Whose data, labels and config.
        name: Of the segmenter.
        label_version: What it learns from.
        labeller: Name of the artifact that made the version; its frames and maps are used, and if it is shown
            templates, so is the segmenter.
        announce: Where progress is shown.

    Raises:
        ConfigError: The name belongs to a segmenter that learnt from another label version.
    """
    if run.model_path(name).exists():
        learnt_from = run.described(name).card["labels"]
        if learnt_from != label_version:
            raise ConfigError(
                f"{name} exists and learnt from the labels {learnt_from}; give the segmenter that is to learn from "
                f"{label_version} another --name"
            )
        return
    verdicts = {verdict.sample_id: verdict for verdict in read_labels(str(run.labels_path), label_version)}
    make_targets = partial(AutomaticTargets, run.model_path(labeller), verdicts)
    _train(run, name, label_version, labeller, make_targets, announce)


@timed("train")
def train_on_truth(run: Run, name: str, labeller: str, announce: Announce) -> None:
    """Train the same segmenter on the true masks of the online stage: the yardstick that hand labels would set."""
    if run.model_path(name).exists():
        return
    truths = {row.sample_id: row.ground_truth for row in run.rows("online")}
    make_targets = partial(TrueTargets, truths, run.config.data.max_image_bytes)
    _train(run, name, "ground truth", labeller, make_targets, announce)


def _train(run: Run, name: str, labels: str, labeller: str, make_targets: MakeTargets, announce: Announce) -> None:
    config, pretext = run.config, run.artifact(labeller)
    plan, with_templates = pretext.plan, is_shown_template(pretext.members[0])
    method = TEMPLATE_SEGMENTER if with_templates else SEGMENTER
    good_rows = run.rows("train")
    reading = announce(f"{name}: read good images")
    good, ids = collect_frames(good_rows, plan, None, config, reading, with_templates)
    reading = announce(f"{name}: read labelled images")
    labelled, _ = collect_frames(run.rows("online"), plan, make_targets, config, reading, with_templates)
    folds = assign_folds(good_rows, config)
    fold_N = np.array([folds[sample_id] for sample_id in ids] + [SEEN_BY_ALL] * len(labelled.images_NHWC))
    initial = [_weights_to_start_from(member, config.segmenter.unet) for member in pretext.members]
    fit_members(run, name, method, plan, _joined(good, labelled), fold_N, initial, announce, labels)


def _weights_to_start_from(pretext: Method, config: ComparisonConfig) -> State | None:
    """Return the pretext's weights if its network is the segmenter's: the downstream task then starts there."""
    is_same = isinstance(pretext, Comparison | TemplateUnet) and (pretext.config.width, pretext.config.latent) == (
        config.width,
        config.latent,
    )
    return pretext.state() if is_same else None


def _joined(good: TrainingFrames, labelled: TrainingFrames) -> TrainingFrames:
    return TrainingFrames(
        np.concatenate([good.images_NHWC, labelled.images_NHWC]),
        np.concatenate([good.is_good_N, labelled.is_good_N]),
        labelled.targets_LHW,
        labelled.weights_LHW,
        good.has_places,
    )
