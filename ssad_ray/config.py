"""The one config tree: defaults, then a YAML file, then `--set dotted.path=value`.

Every number has bounds and a unit. All but `NO_PART_OF_RESULTS` is part of a run's identity.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ssad_ray.errors import ConfigError
from ssad_ray.method_config import (
    AbsolutePath,
    AutoencoderConfig,
    ComparisonConfig,
    ContextSvddConfig,
    CutPasteSlaConfig,
    Fraction,
    FusionConfig,
    GanInversionConfig,
    MemoryBankConfig,
    PixelReferenceConfig,
    Section,
    TemplateDifferenceConfig,
)

NO_PART_OF_RESULTS: dict[str, Any] = {"resources": True, "rounds": True, "data": {"max_error_fraction": True}}
"""Fields that may change while a run goes on: no result of a stage depends on them by more than rounding."""


class DataConfig(Section):
    """What is read and what is refused."""

    category: str | None = Field(None, description="Which product, where a data set holds several.")
    max_image_bytes: int = Field(256 << 20, ge=1 << 10, le=4 << 30, description="Largest accepted file, bytes.")
    max_image_px: int = Field(200_000_000, ge=1, le=2_000_000_000, description="Largest accepted image, H x W pixels.")
    max_error_fraction: Fraction = Field(0.5, description="Above this share of unreadable images a run fails.")


class InputConfig(Section):
    """How an image becomes the frame that a method works on."""

    mode: Literal["auto", "resize", "tile"] = Field(
        "auto",
        description="resize: the whole image at one size (aligned parts). tile: overlapping tiles at one scale "
        "(textures, free pose, large images). auto: measured on the good images; tile if a side shrinks over 16 times.",
    )
    size_px: int = Field(128, ge=32, le=2048, description="Working size: side of a square of the frame's area, px.")
    scale: float = Field(
        1.0, gt=0.0, le=4.0, description="tile: image scale; below 1 a tile shows more at less detail."
    )
    frames_per_image: int = Field(8, ge=1, le=4096, description="tile: random training frames cut from an image.")
    overlap: float = Field(0.25, ge=0.0, le=0.75, description="tile: share of a tile's side shared with the next.")


class DetectorConfig(Section):
    """The pretext task: which method, and the options of each."""

    name: str = Field(
        "auto",
        description="A name of the method table. auto: draem; under the protocol routine2 template_difference where "
        "images have templates, else gan_inversion.",
    )
    init_from: AbsolutePath | None = Field(
        None, description="Artifact folder whose weights training starts from (transfer)."
    )
    pixel_reference: PixelReferenceConfig = PixelReferenceConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    draem: ComparisonConfig = ComparisonConfig()
    context_svdd: ContextSvddConfig = ContextSvddConfig()
    cutpaste_sla: CutPasteSlaConfig = CutPasteSlaConfig()
    gan_inversion: GanInversionConfig = GanInversionConfig()
    template_difference: TemplateDifferenceConfig = TemplateDifferenceConfig()
    memory_bank: MemoryBankConfig = MemoryBankConfig()
    fusion: FusionConfig = FusionConfig()


class CalibrationConfig(Section):
    """Thresholds from held-out anomaly-free images."""

    folds: int = Field(3, ge=2, le=20, description="Cross-fitting folds; one ensemble member per fold.")
    false_alarm_level: float = Field(0.01, gt=0.0, lt=1.0, description="Asked image-level false-alarm probability.")
    pixel_fpr_high: float = Field(1e-4, gt=0.0, lt=1.0, description="Mean per-image pixel false-positive rate, seeds.")
    pixel_fpr_low: float = Field(1e-3, gt=0.0, lt=1.0, description="The same for the pixels a region grows over.")
    num_planted: int = Field(
        256, ge=8, le=100_000, description="Good frames with planted defects that show how far regions reach."
    )

    @model_validator(mode="after")
    def _seeds_are_rarer(self) -> Self:
        if self.pixel_fpr_high >= self.pixel_fpr_low:
            raise ValueError(f"pixel_fpr_high {self.pixel_fpr_high} is not below pixel_fpr_low {self.pixel_fpr_low}")
        return self


class SegmenterConfig(Section):
    """The downstream task."""

    unet: ComparisonConfig = ComparisonConfig()
    labelled_fraction: Fraction = Field(0.35, description="Share of a batch taken from labelled images.")
    planted_fraction: Fraction = Field(0.5, description="Share with planted defects; the rest are good images.")

    @model_validator(mode="after")
    def _shares_fit_a_batch(self) -> Self:
        if self.labelled_fraction + self.planted_fraction > 1.0:
            raise ValueError("labelled_fraction and planted_fraction are more than 1 together")
        return self


class GateConfig(Section):
    """When a challenger replaces the champion; judged without ground truth."""

    num_planted: int = Field(
        256, ge=8, le=100_000, description="Planted defects judged per model, at least; on every good image as many."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of each test and of the false-alarm bounds.")
    precision_margin: Fraction = Field(0.02, description="Loss of precision on planted defects that is accepted.")


class ResourcesConfig(Section):
    """Where work runs; results differ by rounding at most."""

    train_workers: int = Field(0, ge=0, le=1024, description="Ray Train workers; 0: one Ray task per ensemble member.")
    score_workers: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="Scoring actors; 0: score in the driver; None: one per core or GPU, none for few images.",
    )
    threads_per_worker: int = Field(1, ge=1, le=256, description="CPU threads of each worker.")
    use_gpu: bool | None = Field(None, description="None: use GPUs if the cluster has any.")
    object_store_bytes: int = Field(512 << 20, ge=80 << 20, description="Local object store, bytes.")


class RunConfig(Section):
    """Everything a run depends on."""

    seed: int = Field(0, ge=0, le=2**31 - 1, description="Every random stream derives from it.")
    rounds: int = Field(1, ge=1, le=100, description="Turns of the loop.")
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    detector: DetectorConfig = DetectorConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    gate: GateConfig = GateConfig()
    resources: ResourcesConfig = ResourcesConfig()


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve defaults, a YAML file and `dotted.path=value` overrides, in this order.

    Raises:
        ConfigError: An unknown field, a value out of bounds, unreadable YAML, a malformed override.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the config {path}: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"the config {path} holds a {type(loaded).__name__}; a mapping of sections is needed")
        tree = loaded or {}
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not all(dotted.split(".")):
            raise ConfigError(f"--set takes dotted.path=value, for example seed=1; got {override!r}")
        try:
            tree = with_override(tree, dotted, yaml.safe_load(text))
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error
    return validate_config(tree)


def with_override(tree: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """Return a copy of a nested mapping with the value at `a.b.c` replaced."""
    head, _, rest = dotted.partition(".")
    below = tree.get(head)
    return {**tree, head: with_override(below if isinstance(below, Mapping) else {}, rest, value) if rest else value}


def validate_config(tree: Mapping[str, Any]) -> RunConfig:
    """Check a plain mapping; the message of a refusal names each wrong field, what came and what is accepted."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg'].lower()} (got {item['input']!r})"
            for item in error.errors()
        ]
        raise ConfigError("the config was refused:\n  " + "\n  ".join(lines)) from None


def dump_config(config: RunConfig) -> str:
    """Return the resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
