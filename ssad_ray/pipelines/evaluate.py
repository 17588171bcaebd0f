"""An artifact against the ground truth of the test stage; for reports alone, nothing is chosen by it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssad_ray.config import RunConfig
from ssad_ray.core.metrics.evaluation import Evaluation, JudgedImage
from ssad_ray.core.records import EvaluationReport, Prediction, Sample
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.labels.rows import WORKER_SCHEMA, from_row, to_row
from ssad_ray.methods.artifact import load_artifact
from ssad_ray.methods.judging import judge
from ssad_ray.pipelines.run import Announce, Run, timed, write_json
from ssad_ray.pipelines.stream import Progress, Row, stream
from ssad_ray.pipelines.truth import true_mask

_SCHEMA = pa.schema([*WORKER_SCHEMA, pa.field("map", pa.binary())])


@timed("evaluate")
def evaluate_on_test(run: Run, name: str, announce: Announce) -> None:
    """Write the figures of an artifact on the test stage, unless they are there already."""
    if run.evaluation_path(name).exists():
        return
    report = evaluate(run.model_path(name), run.rows("test"), run.config, announce(f"{name}: evaluate"))
    write_json(run.evaluation_path(name), {"metrics": dict(report.metrics), "counts": dict(report.counts)})


def evaluate(
    artifact_path: Path, rows: Sequence[ManifestRow], config: RunConfig, progress: Progress | None = None
) -> EvaluationReport:
    """Judge images and compare with their ground truth.

    The workers see images and artifact; ground truth is read here.
    """
    results = stream(rows, partial(MapMaker, artifact_path, config), _SCHEMA, config, progress)
    evaluation = Evaluation()
    for row, result in zip(rows, results, strict=True):
        evaluation.update(_judged(row, result, config))
    return evaluation.report()


class MapMaker:
    """The worker: judges an image, and keeps its anomaly map."""

    def __init__(self, artifact_path: Path, config: RunConfig) -> None:
        self.artifact, self.config = load_artifact(artifact_path), config

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return verdict and map of an image."""
        verdict, anomaly_map = judge(self.artifact, sample, data, self.config.data, datetime.now(UTC))
        return {**to_row(verdict), "map": anomaly_map.tobytes()}


def _judged(row: ManifestRow, result: Row, config: RunConfig) -> JudgedImage:
    if result["error"] is not None:
        return JudgedImage(Prediction(row.sample_id, None, None, result["error"]), row.ground_truth)
    verdict = from_row({name: value for name, value in result.items() if name != "map"})
    anomaly_map = np.frombuffer(result["map"], np.float32).reshape(verdict.height, verdict.width)
    mask = true_mask(row, verdict.height, verdict.width, config.data.max_image_bytes)
    prediction = Prediction(row.sample_id, verdict.anomaly_score, anomaly_map)
    return JudgedImage(prediction, row.ground_truth, verdict.regions, mask)
