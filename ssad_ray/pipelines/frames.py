"""Training frames from images: read, decoded, labelled and cut inside the workers; only small frames travel."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ssad_ray.config import DataConfig, RunConfig
from ssad_ray.core.framing import FramePlan, is_aligned, make_plan, random_frames
from ssad_ray.core.images import decode, decode_mask
from ssad_ray.core.records import GOOD, GroundTruth, Sample, Verdict
from ssad_ray.core.regions import training_target
from ssad_ray.core.rng import generator
from ssad_ray.core.storage import read_bytes
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import DataError
from ssad_ray.methods.artifact import load_artifact
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.showing import with_template
from ssad_ray.pipelines.stream import Progress, Row, stream

SCHEMA = pa.schema([("images", pa.binary()), ("targets", pa.binary()), ("weights", pa.binary())])

_PLAN_IMAGES, _PLAN_TRIES = 16, 256

Plane = NDArray[np.float32]
Targets = Callable[[Sample, NDArray[np.uint8]], tuple[Plane, Plane]]
MakeTargets = Callable[[], Targets]


def plan_frames(rows: Sequence[ManifestRow], config: RunConfig) -> FramePlan:
    """Choose how images become frames, from the first few good images that can be read."""
    images = islice(_readable(rows[:_PLAN_TRIES], config.data), _PLAN_IMAGES)
    first = next(images, None)
    if first is None:
        raise DataError("there is no readable good image to learn from; put good images into the train stage")
    return make_plan(chain([first], images), config.input)


def _readable(rows: Iterable[ManifestRow], limits: DataConfig) -> Iterator[NDArray[np.uint8]]:
    for row in rows:
        with suppress(DataError):  # the row of whoever reads all of them will say so
            data = read_bytes(row.uri, limits.max_image_bytes)
            if row.sample.is_of(data):
                yield decode(data, limits.max_image_px)


class AutomaticTargets:
    """Targets from a label version; how far each pixel can be trusted comes from the map of the model that made it."""

    def __init__(self, artifact_path: Path, verdicts: Mapping[str, Verdict]) -> None:
        self.artifact = load_artifact(artifact_path)
        self.verdicts = verdicts

    def __call__(self, sample: Sample, shown: NDArray[np.uint8]) -> tuple[Plane, Plane]:
        """Return targets and weights, both (H, W), for an image as the artifact is shown it."""
        assert self.artifact.calibration is not None  # noqa: S101
        _, anomaly_map = self.artifact.score(shown)
        return training_target(anomaly_map, self.verdicts[sample.sample_id], self.artifact.calibration)


@dataclass(frozen=True, slots=True)
class TrueTargets:
    """Targets from ground truth: what hand labels would give. For yardsticks alone."""

    truths: Mapping[str, GroundTruth]
    max_image_bytes: int

    def __call__(self, sample: Sample, shown: NDArray[np.uint8]) -> tuple[Plane, Plane]:
        """Return targets and weights, both (H, W); an image of unknown truth has no weight."""
        shape = shown.shape[:2]
        truth = self.truths[sample.sample_id]
        if truth.mask_uri is not None:
            mask = decode_mask(read_bytes(truth.mask_uri, self.max_image_bytes), *shape)
            return mask.astype(np.float32), np.ones(shape, np.float32)
        return np.zeros(shape, np.float32), np.full(shape, truth.defect_type == GOOD, np.float32)


class FrameCutter:
    """The worker: decodes an image, asks for its targets, cuts frames."""

    def __init__(
        self, plan: FramePlan, config: RunConfig, make_targets: MakeTargets | None, with_templates: bool
    ) -> None:
        self.plan, self.config, self.with_templates = plan, config, with_templates
        self.targets = make_targets() if make_targets else None

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return the frames of one image: one of the whole image, or several random tiles; of good ones just pixels."""
        image = decode(data, self.config.data.max_image_px)
        shown = with_template(image, sample, self.config.data) if self.with_templates else image
        planes: list[NDArray[Any]] = [shown, *(self.targets(sample, shown) if self.targets else ())]
        rng = generator(self.config.seed, "frames", sample.sample_id)
        # Of a large image a few tiles anywhere would hardly ever show a defect: every other one is cut to show one.
        defective = planes[1] > 0 if self.targets else None
        frames = random_frames(planes, self.plan, rng, self.config.input.frames_per_image, defective)
        cuts = zip(SCHEMA.names, zip(*frames, strict=True), strict=False)
        return {name: np.stack(cut).tobytes() for name, cut in cuts}


def collect_frames(
    rows: Sequence[ManifestRow],
    plan: FramePlan,
    make_targets: MakeTargets | None,
    config: RunConfig,
    progress: Progress | None = None,
    with_templates: bool = False,
) -> tuple[TrainingFrames, list[str]]:
    """Cut training frames out of images; images that cannot be read give none.

    Args:
        rows: The images.
        plan: How images become frames.
        make_targets: Called once per worker; what it returns gives an image's targets and weights. None: good images.
        config: The resolved config.
        progress: Called with (images done, images in all).
        with_templates: Frames show images on top of their templates; images without one give none.

    Returns:
        The frames, and the sample_id that each was cut from.
    """
    worker = partial(FrameCutter, plan, config, make_targets, with_templates)
    parts = [row for row in stream(rows, worker, SCHEMA, config, progress) if row["error"] is None]
    images, targets, weights = (b"".join(part[name] or b"" for part in parts) for name in SCHEMA.names)
    shape = (-1, plan.height, plan.width)
    images_NHWC = np.frombuffer(images, np.uint8).reshape(*shape, 6 if with_templates else 3)
    frames = TrainingFrames(
        images_NHWC,
        np.full(len(images_NHWC), make_targets is None),
        np.frombuffer(targets, np.float32).reshape(shape),
        np.frombuffer(weights, np.float32).reshape(shape),
        plan.mode == "resize" and is_aligned(images_NHWC),
    )
    frames_per_image = len(images_NHWC) // max(1, len(parts))
    return frames, [part["sample_id"] for part in parts for _ in range(frames_per_image)]
