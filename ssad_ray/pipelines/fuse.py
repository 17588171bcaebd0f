"""Detectors made of others: fit the parts, and learn from held-out good images how their maps compare."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssad_ray.config import RunConfig
from ssad_ray.core.framing import Frames
from ssad_ray.core.images import decode
from ssad_ray.core.records import Sample
from ssad_ray.core.rng import generator
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods import load_method
from ssad_ray.methods.artifact import Artifact, load_artifact
from ssad_ray.methods.base import Combines, State, TrainingFrames
from ssad_ray.methods.fusion import state_of_part
from ssad_ray.pipelines.folds import assign_folds
from ssad_ray.pipelines.run import Announce
from ssad_ray.pipelines.stream import Progress, Row, stream
from ssad_ray.pipelines.training import Member, train_members

_MAX_VALUES = 1 << 22  # of a part, over all images
_MAX_VALUES_PER_IMAGE = 1 << 14
_MAX_FRAMES_PER_IMAGE = 16


def train_parts(
    name: str,
    prototype: Combines,
    config: RunConfig,
    frames: TrainingFrames,
    members: Sequence[Member],
    work: Path,
    announce: Announce,
) -> list[State]:
    """Train the members of every part, one part after another, and return states as `Combines` loads them."""
    states: list[State] = [{} for _ in members]
    for part in prototype.parts:
        own = [
            replace(member, initial=state_of_part(member.initial, part) if member.initial else None)
            for member in members
        ]
        progress = announce(f"{name}: train {part}")
        seen = replace(frames, images_NHWC=prototype.shown_to(part, frames.images_NHWC))
        trained = train_members(load_method(part), config, seen, own, work, progress)
        for state, of_part in zip(states, trained, strict=True):
            state |= {f"{part}.{key}": value for key, value in of_part.items()}
    return states


def with_tails(draft_path: Path, rows: Sequence[ManifestRow], config: RunConfig, progress: Progress) -> Artifact:
    """Return a saved artifact whose members know how the maps of their parts compare.

    That is learnt from good images, each scored by the member that did not see it, and is the same for all members.
    """
    artifact = load_artifact(draft_path)
    members = [member for member in artifact.members if isinstance(member, Combines)]
    names = list(members[0].parts)
    share = max(1, min(_MAX_VALUES_PER_IMAGE, _MAX_VALUES // len(rows)))
    folds = assign_folds(rows, config)
    worker = partial(PartScorer, draft_path, folds, share, config)
    columns = pa.schema([(name, pa.binary()) for name in names])
    results = [row for row in stream(rows, worker, columns, config, progress) if row["error"] is None]
    values = {name: np.frombuffer(b"".join(row[name] for row in results), np.float32) for name in names}
    for member in members:
        member.learn_tails(values)
    return artifact


class PartScorer:
    """The worker: scores a good image by the parts of the member that did not see it."""

    def __init__(self, artifact_path: Path, folds: Mapping[str, int], share: int, config: RunConfig) -> None:
        self.artifact, self.folds, self.share, self.config = load_artifact(artifact_path), folds, share, config

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return of every part some of the map values of an image."""
        image = decode(data, self.config.data.max_image_px)
        frames = Frames(self.artifact.shown(image, sample, self.config.data), self.artifact.plan)
        member = self.artifact.members[self.folds[sample.sample_id]]
        assert isinstance(member, Combines)  # noqa: S101
        rng = generator(self.config.seed, "tail", sample.sample_id)
        some = np.stack([frames[index] for index in rng.permutation(len(frames))[:_MAX_FRAMES_PER_IMAGE].tolist()])
        drawn = rng.permutation(some[..., 0].size)[: self.share]
        return {name: maps.ravel()[drawn].tobytes() for name, maps in member.part_maps(some).items()}
