"""A fitted ensemble -> thresholds, from good images as they are and with planted defects.

Each image is scored by the member that did not see it, so that what is learnt holds for images that nobody has seen.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.calibration import calibrate, reaching_outlines
from ssad_ray.core.framing import Frames, joined_shape
from ssad_ray.core.images import decode, resize
from ssad_ray.core.profile import HeldOutProfiles
from ssad_ray.core.records import Sample
from ssad_ray.core.rng import generator
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods.artifact import Artifact, load_artifact
from ssad_ray.methods.batches import body, plant_several
from ssad_ray.pipelines.folds import assign_folds, refuse_one_fold
from ssad_ray.pipelines.stream import Progress, Row, stream

NUM_LEAST_NORMAL = 6
"""How many of the good images that score highest are named in an artifact's card."""

_MAX_PIXELS_PER_PLANT = 1 << 14
_SCHEMA = pa.schema(
    [
        ("score", pa.float64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("map", pa.binary()),
        ("planted_values", pa.binary()),
        ("is_planted", pa.binary()),
    ]
)


def calibrated(draft_path: Path, rows: Sequence[ManifestRow], config: RunConfig, progress: Progress) -> Artifact:
    """Return a saved artifact with thresholds from good images, each scored by the member that did not see it.

    Its card names those that scored highest: one that is defective after all raises the thresholds.
    """
    artifact = load_artifact(draft_path)
    folds = assign_folds(rows, config)
    worker = partial(HeldOutScorer, draft_path, folds, share_out(config.calibration.num_planted, rows), config)
    plan = artifact.plan
    results: Iterable[Row] = (
        row | {"map": np.frombuffer(row["map"], np.float32).reshape(joined_shape(plan, row["height"], row["width"]))}
        for row in stream(rows, worker, _SCHEMA, config, progress)
        if row["error"] is None
    )
    if plan.mode == "resize":
        results = list(results)
        refuse_one_fold((row["sample_id"] for row in results), folds)
        group_of = {row.sample_id: row.group for row in rows}
        groups = [group_of[row["sample_id"]] for row in results]
        profiles = HeldOutProfiles(np.stack([row["map"] for row in results]), groups)
        artifact = replace(artifact, profile=profiles.of_all())
        for row, group in zip(results, groups, strict=True):
            row["score"] = float(profiles.without(group).excess(row["map"]).max())
    scores: list[tuple[float, str]] = []
    planted: list[tuple[bytes, bytes]] = []

    def scored_maps() -> Iterator[tuple[float, NDArray[np.float32]]]:
        for row in results:
            scores.append((row["score"], row["sample_id"]))
            planted.append((row["planted_values"], row["is_planted"]))
            yield row["score"], resize(row["map"], row["height"], row["width"])

    options = config.calibration
    rates = options.false_alarm_level, options.pixel_fpr_high, options.pixel_fpr_low
    calibration = calibrate(scored_maps(), len(rows), *rates)
    values, is_planted = (b"".join(parts) for parts in zip(*planted, strict=True))
    calibration = reaching_outlines(calibration, np.frombuffer(values, np.float32), np.frombuffer(is_planted, bool))
    highest = [{"sample_id": name, "score": score} for score, name in sorted(scores, reverse=True)[:NUM_LEAST_NORMAL]]
    return replace(artifact, calibration=calibration, card={**artifact.card, "least_normal": highest})


class HeldOutScorer:
    """The worker: scores a good image, as it is and with planted defects, by the member that did not see it."""

    def __init__(
        self, artifact_path: Path, folds: Mapping[str, int], num_plants: Mapping[str, int], config: RunConfig
    ) -> None:
        self.artifact, self.config = load_artifact(artifact_path), config
        self.folds, self.num_plants = folds, num_plants

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return score and map of one image, the map at its frames' scale, and how maps see defects planted on them."""
        image = decode(data, self.config.data.max_image_px)
        shown = self.artifact.shown(image, sample, self.config.data)
        frames, fold = Frames(shown, self.artifact.plan), self.folds[sample.sample_id]
        score, joined_map = self.artifact.score_joined(frames, fold)
        values, is_planted = [], []
        for index in range(self.num_plants[sample.sample_id]):
            rng = generator(self.config.seed, "outline", sample.sample_id, index)
            frame = frames[int(rng.integers(len(frames)))]
            planted, change = plant_several(frame, frame, rng)
            (anomaly_map,) = self.artifact.members[fold].maps(planted[np.newaxis])
            step = int(np.ceil((anomaly_map.size / _MAX_PIXELS_PER_PLANT) ** 0.5))
            values.append(np.ascontiguousarray(anomaly_map[::step, ::step]).tobytes())
            is_planted.append(np.ascontiguousarray(body(change)[::step, ::step]).tobytes())
        return {
            "score": score,
            "height": image.shape[0],
            "width": image.shape[1],
            "map": joined_map.tobytes(),
            "planted_values": b"".join(values),
            "is_planted": b"".join(is_planted),
        }


def share_out(total: int, rows: Sequence[ManifestRow]) -> dict[str, int]:
    """Return how many of so many planted defects every image gets, by sample_id: as evenly as can be."""
    num = len(rows)
    return {row.sample_id: total * (at + 1) // num - total * at // num for at, row in enumerate(rows)}
