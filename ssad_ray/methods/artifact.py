"""A fitted method on disk: safetensors, YAML and JSON in a folder; nothing that can run code.

    config.yaml          the resolved config
    artifact.json        method, frame plan, calibration, card (versions, seed, data digest, training facts)
    weights.safetensors  the arrays of every ensemble member

An artifact is an ensemble: one member per cross-fitting fold, each fitted without the good images of its fold, so
that every good image has a score from a member that never saw it. Members vote by the mean of their maps.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ssad_ray.config import RunConfig, dump_config, validate_config
from ssad_ray.core.framing import FramePlan, to_frames, to_map
from ssad_ray.core.records import Calibration
from ssad_ray.errors import ArtifactError
from ssad_ray.methods import load_method
from ssad_ray.methods.base import Method, State

_FRAMES_PER_BATCH = 16
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Artifact:
    """A fitted method, ready to score images.

    Attributes:
        name: `<method>-<version>`, unique in its run.
        method: A name of the method table.
        plan: How images become frames.
        members: Fitted methods, one per cross-fitting fold.
        calibration: Thresholds; None until the artifact is calibrated.
        config: The resolved config it was made with.
        card: Versions, seed, data digest, what was measured while fitting.
    """

    name: str
    method: str
    plan: FramePlan
    members: tuple[Method, ...]
    calibration: Calibration | None
    config: RunConfig
    card: Mapping[str, Any]

    def score(
        self, image: NDArray[np.uint8], members: Sequence[int] | None = None
    ) -> tuple[float, NDArray[np.float32]]:
        """Score one image (H, W, 3) uint8.

        Args:
            image: The image at its own size.
            members: Which members vote; all of them by default, one of them for cross-fitted scores.

        Returns:
            The raw anomaly score and the anomaly map (H, W) float32 in the image's own frame.
        """
        frames = to_frames(image, self.plan)
        voters = self.members if members is None else [self.members[index] for index in members]
        scores, maps = zip(*(_score_frames(member, frames) for member in voters), strict=True)
        mean_map = np.stack(maps).mean(axis=0)
        return float(np.mean([s.max() for s in scores])), to_map(mean_map, self.plan, *image.shape[:2])


def _score_frames(member: Method, frames_BHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    chunks = range(0, len(frames_BHWC), _FRAMES_PER_BATCH)
    scores, maps = zip(*(member.score(frames_BHWC[at : at + _FRAMES_PER_BATCH]) for at in chunks), strict=True)
    return np.concatenate(scores), np.concatenate(maps)


def save_artifact(artifact: Artifact, path: Path) -> None:
    """Write an artifact into a new folder; it appears whole or not at all."""
    if path.exists():
        raise ArtifactError(f"the artifact {path} exists already; artifacts are never overwritten: use another version")
    partial = path.with_name(path.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{index}/{name}": np.ascontiguousarray(value)
        for index, member in enumerate(artifact.members)
        for name, value in member.state().items()
    }
    save_file(weights, partial / "weights.safetensors")
    (partial / "config.yaml").write_text(dump_config(artifact.config), encoding="utf-8")
    described = {
        "format": _FORMAT,
        "name": artifact.name,
        "method": artifact.method,
        "plan": asdict(artifact.plan),
        "num_members": len(artifact.members),
        "calibration": asdict(artifact.calibration) if artifact.calibration else None,
        "card": dict(artifact.card),
    }
    (partial / "artifact.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    partial.replace(path)


def load_artifact(path: Path) -> Artifact:
    """Read an artifact.

    Raises:
        ArtifactError: The folder is missing, incomplete, of another format, or its arrays do not fit its method.
    """
    try:
        described = json.loads((path / "artifact.json").read_text(encoding="utf-8"))
        config = validate_config(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
        weights = load_file(path / "weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{path} is not a readable artifact folder: {error}") from error
    if described.get("format") != _FORMAT:
        raise ArtifactError(f"{path} has artifact format {described.get('format')!r}; this version reads {_FORMAT}")
    members = [
        _load_member(described["method"], config, _member_state(weights, index), path)
        for index in range(described["num_members"])
    ]
    calibration = described["calibration"]
    return Artifact(
        name=described["name"],
        method=described["method"],
        plan=FramePlan(**described["plan"]),
        members=tuple(members),
        calibration=_calibration(calibration) if calibration else None,
        config=config,
        card=described["card"],
    )


def _member_state(weights: State, index: int) -> State:
    prefix = f"{index}/"
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _load_member(method_name: str, config: RunConfig, state: State, path: Path) -> Method:
    method = load_method(method_name).from_config(config)
    try:
        method.load_state(state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"the weights in {path} do not fit the method {method_name}: {error}") from error
    return method


def _calibration(fields: Mapping[str, Any]) -> Calibration:
    return Calibration(**{**fields, "normal_scores": tuple(fields["normal_scores"])})
