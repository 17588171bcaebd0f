"""A fusion beside each of its parts, on test and online images, with the members it was fitted with.

.venv/bin/python benchmarks/fusion_parts.py runs/fusion-0 runs/fusion-1

A part's map is the mean of its members' maps, as an artifact of that part alone would have it; an image's score is the
highest value of its map, without thresholds and places.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from ssad_ray.core.framing import Frames
from ssad_ray.core.images import decode, resize
from ssad_ray.core.metrics.evaluation import Evaluation, JudgedImage
from ssad_ray.core.records import Prediction
from ssad_ray.core.storage import read_bytes
from ssad_ray.methods.artifact import Artifact, load_artifact
from ssad_ray.pipelines.run import Run
from ssad_ray.pipelines.truth import true_mask

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1_max")
STAGES = ("test", "online")
FUSED = "fused"


def main() -> None:
    """Print a table per stage of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for run in options.runs:
        (path,) = (run / "models").glob("fusion-*")
        artifact = load_artifact(path)
        for stage in STAGES:
            print(f"\n| {run.name}, {stage} | {' | '.join(METRICS)} |\n| --- |{' --- |' * len(METRICS)}")
            for name, evaluation in compared(Run(run, artifact.config), artifact, stage).items():
                values = [evaluation.report().metrics[metric] for metric in METRICS]
                cells = ["–" if value is None else f"{value:.3f}" for value in values]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compared(run: Run, artifact: Artifact, stage: str) -> dict[str, Evaluation]:
    """Judge a stage by the fusion and by its parts."""
    limits = artifact.config.data
    evaluations = {name: Evaluation() for name in (FUSED, *artifact.config.detector.fusion.parts)}
    for row in run.rows(stage):
        image = decode(read_bytes(row.uri, limits.max_image_bytes), limits.max_image_px)
        mask = true_mask(row, *image.shape[:2], limits.max_image_bytes)
        frames = Frames(artifact.shown(image, row.sample, limits), artifact.plan)
        maps = {name: [] for name in evaluations}
        for index in range(len(frames)):
            for name, anomaly_map in _maps(artifact, frames[index]).items():
                maps[name].append(anomaly_map)
        for name, evaluation in evaluations.items():
            joined_map = frames.join(maps[name])
            prediction = Prediction(row.sample_id, float(joined_map.max()), resize(joined_map, *image.shape[:2]))
            evaluation.update(JudgedImage(prediction, row.ground_truth, None, mask))
    return evaluations


def _maps(artifact: Artifact, frame: np.ndarray) -> dict[str, np.ndarray]:
    of_parts = [member.part_maps(frame[np.newaxis]) for member in artifact.members]
    return {
        FUSED: np.mean([member.maps(frame[np.newaxis])[0] for member in artifact.members], axis=0),
        **{name: np.mean([each[name][0] for each in of_parts], axis=0) for name in of_parts[0]},
    }


if __name__ == "__main__":
    main()
