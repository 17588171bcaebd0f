"""All of it: good images -> detector -> automatic labels -> segmenter -> gate -> champion, and again.

round 1   the detector labels the online stage, a segmenter learns from it, the gate decides
round r   the champion of the round before labels the online stage anew
at last   so does the last champion: these are the labels to take away
"""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from ssad_ray.errors import DataError
from ssad_ray.pipelines.evaluate import evaluate_on_test
from ssad_ray.pipelines.fit import fit
from ssad_ray.pipelines.gate import run_gate
from ssad_ray.pipelines.label import label_online
from ssad_ray.pipelines.report import Models, write_report
from ssad_ray.pipelines.run import Announce, Run
from ssad_ray.pipelines.train import train_on_labels, train_on_truth
from ssad_ray.pipelines.transfer import fit_beside

FLOOR = "pixel_reference"
YARDSTICK = "unet-true-labels"


def run_loop(run: Run, announce: Announce, *, with_yardstick: bool = False) -> Path:
    """Turn the loop `config.rounds` times and write the report; what is done already is not done again.

    Args:
        run: With its data prepared.
        announce: Where progress is shown.
        with_yardstick: Also train the segmenter on the true masks of the online stage, for comparison.

    Returns:
        Where report.html is.

    Raises:
        DataError: The online stage has no image that can be used.
    """
    if not run.rows("online"):
        raise DataError(
            f"{run.path} has no image to label: all that can be used are in the stages train and test; add images of "
            "the stream, unlabelled or not"
        )
    method = run.detector
    detector = f"{method}-1"
    fit(run, FLOOR, FLOOR, announce)
    fit(run, detector, method, announce)
    transfers = fit_beside(run, announce) if run.config.detector.init_from is not None else {}
    if not run.champion_path.exists():
        run.promote(detector)
    segmenters: list[str] = []
    labeller = detector
    for number in range(1, run.config.rounds + 1):
        version = label_online(run, labeller, announce)
        segmenter = _segmenter(run, version, number, segmenters)
        train_on_labels(run, segmenter, version, labeller, announce)
        decision = run_gate(run, segmenter, announce)
        segmenters.append(segmenter)
        labeller = segmenter if decision.is_promoted else labeller
    label_online(run, run.champion, announce)
    if with_yardstick:
        train_on_truth(run, YARDSTICK, detector, announce)
    models = Models(FLOOR, detector, tuple(segmenters), YARDSTICK if with_yardstick else None, transfers)
    for name in models.names:
        evaluate_on_test(run, name, announce)
    return write_report(run, models, announce)


def _segmenter(run: Run, version: str, number: int, used: Sequence[str]) -> str:
    """Return the name of a round's segmenter: its number, or a later one where a segmenter learnt from other labels."""
    names = (f"unet-{at}" for at in count(number) if f"unet-{at}" not in used)
    return next(
        name for name in names if not run.model_path(name).exists() or run.described(name).card["labels"] == version
    )
