"""What two models see in a few images, as small pictures and outlines for the report."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ssad_ray.config import DataConfig, RunConfig
from ssad_ray.core.drawing import colour_map, outline, thumbnail_shape, to_jpeg
from ssad_ray.core.images import decode, resize
from ssad_ray.core.records import GOOD, Sample, Verdict
from ssad_ray.core.regions import label_mask
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods.artifact import Artifact, load_artifact
from ssad_ray.methods.judging import judge
from ssad_ray.pipelines.stream import Progress, Row, stream
from ssad_ray.pipelines.truth import true_mask

MAX_PICTURES = 60

_JUDGED = pa.struct(
    [
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("is_anomalous", pa.bool_()),
        ("num_regions", pa.int64()),
        ("outline", pa.string()),
    ]
)
_THUMBNAILS = pa.schema([("height", pa.int64()), ("width", pa.int64()), ("picture", pa.binary()), ("map", pa.binary())])
_SCHEMA = _THUMBNAILS.append(pa.field("detector", _JUDGED)).append(pa.field("segmenter", _JUDGED))


@dataclass(frozen=True, slots=True)
class Illustration:
    """One image of the report.

    Attributes:
        row: Its place in the manifest.
        seen: What the worker returned; only `error` is set where the image could not be judged.
        truth: SVG path data of the true mask or boxes; None where there is neither.
    """

    row: ManifestRow
    seen: Row
    truth: str | None

    def mistake(self, model: str) -> str | None:
        """Name what is wrong with the verdict of `detector` or `segmenter`; None where it is right or truth unknown."""
        if self.row.defect_type is None:
            return None
        is_anomalous = self.seen[model]["is_anomalous"]
        if is_anomalous == (self.row.defect_type != GOOD):
            return None
        return "false alarm" if is_anomalous else "missed"


def choose(rows: Sequence[ManifestRow], count: int) -> list[ManifestRow]:
    """Return up to `count` images, evenly over defect types and evenly spread inside each, ordered by type."""
    of_type: defaultdict[str, list[ManifestRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.sample_id):
        of_type[row.defect_type or ""].append(row)
    rounds = chain.from_iterable(zip_longest(*([name] * len(members) for name, members in sorted(of_type.items()))))
    names = [name for name in rounds if name is not None][:count]
    return [
        members[index * len(members) // names.count(name)]
        for name, members in sorted(of_type.items())
        for index in range(names.count(name))
    ]


def illustrate(
    detector_path: Path, segmenter_path: Path, rows: Sequence[ManifestRow], config: RunConfig, progress: Progress
) -> list[Illustration]:
    """Let two models judge images, and draw what they say; ground truth is read here, not in the workers."""
    results = stream(rows, partial(Illustrator, detector_path, segmenter_path, config), _SCHEMA, config, progress)
    return [
        Illustration(row, seen, true_outline(row, seen["height"], seen["width"], config.data))
        for row, seen in zip(rows, results, strict=True)
    ]


def illustrate_held_out(
    artifact_path: Path, rows: Sequence[ManifestRow], folds: Mapping[str, int], config: RunConfig, progress: Progress
) -> list[Illustration]:
    """Draw good images and what the member that did not see them makes of them."""
    results = stream(rows, partial(HeldOutIllustrator, artifact_path, folds, config), _THUMBNAILS, config, progress)
    return [Illustration(row, seen, None) for row, seen in zip(rows, results, strict=True)]


def true_outline(row: ManifestRow, height: int | None, width: int | None, limits: DataConfig) -> str | None:
    """Return the true mask, or else the true boxes, as SVG path data in a frame of this size.

    None without a frame (the image could not be judged) or without usable ground truth.
    """
    if not (row.height and row.width and height and width):
        return None
    if row.mask_uri is not None:
        mask = true_mask(row, row.height, row.width, limits.max_image_bytes)
        return None if mask is None else outline(mask, height, width)
    scale = np.array([width / row.width, height / row.height] * 2)
    boxes = [np.array(true.box) * scale for true in row.boxes]
    return "".join(f"M{x0:g} {y0:g}H{x1:g}V{y1:g}H{x0:g}Z" for x0, y0, x1, y1 in boxes) or None


class Illustrator:
    """The worker: judges an image with both models, and draws thumbnails."""

    def __init__(self, detector_path: Path, segmenter_path: Path, config: RunConfig) -> None:
        self.detector, self.segmenter = load_artifact(detector_path), load_artifact(segmenter_path)
        self.config = config

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return picture and map (of the segmenter) as JPEG, and what each model says."""
        now = datetime.now(UTC)
        image = decode(data, self.config.data.max_image_px)
        height, width = thumbnail_shape(*image.shape[:2])
        detector, _ = judge(self.detector, sample, data, self.config.data, now)
        segmenter, anomaly_map = judge(self.segmenter, sample, data, self.config.data, now)
        return {
            **_thumbnails(image, anomaly_map, self.segmenter),
            "detector": _judged(detector, height, width),
            "segmenter": _judged(segmenter, height, width),
        }


class HeldOutIllustrator:
    """The worker: draws a good image and the map of the member that did not see it."""

    def __init__(self, artifact_path: Path, folds: Mapping[str, int], config: RunConfig) -> None:
        self.artifact, self.folds, self.config = load_artifact(artifact_path), folds, config

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return picture and map as JPEG."""
        image = decode(data, self.config.data.max_image_px)
        shown = self.artifact.shown(image, sample, self.config.data)
        _, anomaly_map = self.artifact.score(shown, self.folds[sample.sample_id])
        return _thumbnails(image, anomaly_map, self.artifact)


def _thumbnails(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], artifact: Artifact) -> Row:
    assert artifact.calibration is not None, "an artifact that judges is calibrated"  # noqa: S101
    height, width = thumbnail_shape(*image.shape[:2])
    return {
        "height": height,
        "width": width,
        "picture": to_jpeg(resize(image, height, width)),
        "map": to_jpeg(colour_map(resize(anomaly_map, height, width), artifact.calibration)),
    }


def _judged(verdict: Verdict, height: int, width: int) -> dict[str, Any]:
    return {
        "score": verdict.anomaly_score,
        "p_value": verdict.p_value,
        "is_anomalous": verdict.is_anomalous,
        "num_regions": len(verdict.regions),
        "outline": outline(label_mask(verdict.regions, verdict.height, verdict.width), height, width),
    }
