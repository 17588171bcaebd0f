"""A fitted method on disk: safetensors, YAML and JSON in a folder; nothing that can run code.

    config.yaml          the resolved config
    artifact.json        method, frame plan, calibration, card (versions, seed, data digest, training facts)
    weights.safetensors  the arrays of every ensemble member, and the normal profile

An artifact is an ensemble: one member per cross-fitting fold, each fitted without the good images of its fold, so
that every good image has a score from a member that never saw it. Members vote by the mean of their maps and of their
scores. Where a frame shows an image whole a score is how far its map rises above the normal profile; of tiles it is the
highest value of the joined map.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ssad_ray.config import DataConfig, RunConfig, dump_config, validate_config
from ssad_ray.core.framing import FramePlan, Frames
from ssad_ray.core.images import resize
from ssad_ray.core.profile import NormalProfile
from ssad_ray.core.records import Calibration, Sample
from ssad_ray.errors import ArtifactError, ConfigError
from ssad_ray.methods import load_method
from ssad_ray.methods.base import Method, State, is_shown_template
from ssad_ray.methods.saving import writing
from ssad_ray.methods.showing import with_template

_FRAMES_PER_BATCH = 16
_FORMAT = 2
_PROFILE_MEAN, _PROFILE_SPREAD = "profile/mean", "profile/spread"


@dataclass(frozen=True, slots=True)
class Description:
    """An artifact without its weights; read in no time.

    Attributes:
        name: Unique in its run: `<detector>-<version>`, `unet-<version>`, or what else it was made for.
        method: A name of the method table.
        plan: How images become frames.
        calibration: Thresholds; None until the artifact is calibrated.
        config: The resolved config it was made with.
        card: Versions, seed, data digest, what was measured while fitting.
    """

    name: str
    method: str
    plan: FramePlan
    calibration: Calibration | None
    config: RunConfig
    card: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Artifact(Description):
    """A fitted method, ready to score images.

    Attributes:
        members: Fitted methods, one per cross-fitting fold.
        profile: How high the maps of good images are at every place of a frame; None where frames are tiles.
    """

    members: tuple[Method, ...]
    profile: NormalProfile | None = None

    def shown(self, image: NDArray[np.uint8], sample: Sample, limits: DataConfig) -> NDArray[np.uint8]:
        """Return what the members are shown of an image: (H, W, 3), or with its template (H, W, 6).

        Raises:
            DataError: The members compare with a template, and there is none that fits.
        """
        return with_template(image, sample, limits) if is_shown_template(self.members[0]) else image

    def score(self, image: NDArray[np.uint8], fold: int | None = None) -> tuple[float, NDArray[np.float32]]:
        """Score one image.

        Args:
            image: What `shown` returned of it, at its own size.
            fold: Take the member alone that did not see this fold, and judge its map without places; all by default.

        Returns:
            The raw anomaly score and the anomaly map (H, W) float32 in the image's own frame.
        """
        score, joined_map = self.score_joined(Frames(image, self.plan), fold)
        return score, resize(joined_map, *image.shape[:2])

    def score_joined(self, frames: Frames, fold: int | None = None) -> tuple[float, NDArray[np.float32]]:
        """Score an image by its frames, a few at a time; its map stays at the frames' scale (`joined_shape`).

        The score is the mean of the members', not that of their mean map: thresholds come from members by themselves.
        """
        mean_map, scores = np.zeros((), np.float32), []
        voters = self.members if fold is None else (self.members[fold],)
        for member in voters:
            batches = frames.batches(_FRAMES_PER_BATCH)
            joined_map = frames.join(anomaly_map for batch in batches for anomaly_map in member.maps(batch))
            judged = joined_map if self.profile is None or fold is not None else self.profile.excess(joined_map)
            scores.append(float(judged.max()))
            joined_map /= len(voters)
            joined_map += mean_map
            mean_map = joined_map
        return float(np.mean(scores)), mean_map

    def sure_threshold(self, height: int, width: int) -> float | NDArray[np.float32]:
        """Return the map value above which a pixel makes an image anomalous by itself; (H, W) with a profile."""
        assert self.calibration is not None, "thresholds are there once an artifact is calibrated"  # noqa: S101
        if self.profile is None:
            return self.calibration.image_threshold
        limit_HW = self.profile.mean_HW + np.float32(self.calibration.image_threshold) * self.profile.spread_HW
        return resize(limit_HW, height, width)


def save_artifact(artifact: Artifact, path: Path) -> None:
    """Write an artifact into a new folder; it appears whole or not at all."""
    if path.exists():
        raise ArtifactError(f"the artifact {path} exists already; artifacts are never overwritten: use another version")
    partial = path.with_name(path.name + ".partial")
    weights = {
        f"{index}/{name}": np.asarray(value, order="C")
        for index, member in enumerate(artifact.members)
        for name, value in member.state().items()
    }
    if artifact.profile is not None:
        weights |= {_PROFILE_MEAN: artifact.profile.mean_HW, _PROFILE_SPREAD: artifact.profile.spread_HW}
    described = {
        "format": _FORMAT,
        "name": artifact.name,
        "method": artifact.method,
        "plan": asdict(artifact.plan),
        "num_members": len(artifact.members),
        "calibration": asdict(artifact.calibration) if artifact.calibration else None,
        "card": dict(artifact.card),
    }
    with writing(path):
        partial.mkdir(parents=True, exist_ok=True)
        save_file(weights, partial / "weights.safetensors")
        (partial / "config.yaml").write_text(dump_config(artifact.config), encoding="utf-8")
        (partial / "artifact.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
        partial.replace(path)


def load_artifact(path: Path) -> Artifact:
    """Read an artifact.

    Raises:
        ArtifactError: The folder is missing, incomplete, of another format, or its arrays do not fit its method.
    """
    with _reading(path):
        description, num_members = _described(path)
        weights = load_file(path / "weights.safetensors")
        members = [
            _load_member(description.method, description.config, _member_state(weights, index), path)
            for index in range(num_members)
        ]
        profile = NormalProfile(weights[_PROFILE_MEAN], weights[_PROFILE_SPREAD]) if _PROFILE_MEAN in weights else None
        known = {field.name: getattr(description, field.name) for field in fields(Description)}
        return Artifact(**known, members=tuple(members), profile=profile)


def describe_artifact(path: Path) -> Description:
    """Read what can be known of an artifact without its weights.

    Raises:
        ArtifactError: The folder is missing, incomplete, or of another format.
    """
    with _reading(path):
        return _described(path)[0]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, yaml.YAMLError, SafetensorError, ConfigError) as error:
        raise ArtifactError(f"{path} is not a readable artifact folder: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}/artifact.json lacks a field, or has one of another kind: {error}") from error


def _described(path: Path) -> tuple[Description, int]:
    """Return the description and the number of members."""
    described = json.loads((path / "artifact.json").read_text(encoding="utf-8"))
    if described.get("format") != _FORMAT:
        raise ArtifactError(f"{path} has artifact format {described.get('format')!r}; this version reads {_FORMAT}")
    calibration = described["calibration"]
    description = Description(
        name=described["name"],
        method=described["method"],
        plan=FramePlan(**described["plan"]),
        calibration=_calibration(calibration) if calibration else None,
        config=validate_config(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))),
        card=described["card"],
    )
    return description, described["num_members"]


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
