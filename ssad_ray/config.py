"""The one config tree: defaults, then a YAML file, then `--set dotted.path=value`.

Every number has bounds and a unit. All but `NO_PART_OF_RESULTS` is part of a run's identity.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ssad_ray.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

NO_PART_OF_RESULTS: dict[str, Any] = {"resources": True, "rounds": True, "data": {"max_error_fraction": True}}
"""Fields that may change while a run goes on: no result of a stage depends on them by more than rounding."""


class Section(BaseModel):
    """A frozen config section that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
        "(textures, free pose, large images). auto: measured on the good images.",
    )
    size_px: int = Field(128, ge=32, le=2048, description="Working size: side of a square of the frame's area, px.")
    scale: float = Field(
        1.0, gt=0.0, le=4.0, description="tile: image scale; below 1 a tile shows more at less detail."
    )
    frames_per_image: int = Field(8, ge=1, le=4096, description="tile: random training frames cut from an image.")
    overlap: float = Field(0.25, ge=0.0, le=0.75, description="tile: share of a tile's side shared with the next.")


class TrainingConfig(Section):
    """How a network is trained."""

    steps: int = Field(900, ge=1, le=1_000_000, description="Optimizer steps.")
    batch_size: int = Field(8, ge=2, le=4096, description="Images per step over all workers, a multiple of shards.")
    learning_rate: float = Field(2e-3, gt=0.0, le=1.0, description="Peak of the cosine schedule (AdamW).")
    weight_decay: float = Field(1e-4, ge=0.0, le=1.0, description="AdamW's decoupled weight decay.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW's decay of the mean gradient.")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW's decay of the mean squared gradient.")
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0, description="Decay of the averaged weights that are kept.")
    shards: int = Field(2, ge=1, le=1024, description="Parts a batch is cut into: the largest useful worker count.")
    checkpoint_every: int = Field(100, ge=1, le=1_000_000, description="Steps between checkpoints.")

    @model_validator(mode="after")
    def _shards_fill_a_batch(self) -> Self:
        if self.batch_size % self.shards:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of shards {self.shards}")
        return self


class PixelReferenceConfig(Section):
    """Per-pixel median and spread of good images: the floor to beat."""

    blur_px: float = Field(1.0, ge=0.0, le=64.0, description="Gaussian sigma of map smoothing, working-frame px.")


class AutoencoderConfig(Section):
    """Reconstruction, L1 and SSIM residual."""

    width: int = Field(32, ge=8, le=512, multiple_of=8, description="Channels of the first block.")
    latent: int = Field(16, ge=1, le=4096, description="Channels of the bottleneck.")
    training: TrainingConfig = TrainingConfig()


class ComparisonConfig(Section):
    """Reconstruction and comparison: the network of the detector draem and of the segmenter."""

    width: int = Field(16, ge=8, le=512, multiple_of=8, description="Channels of the first block of both networks.")
    latent: int = Field(64, ge=1, le=4096, description="Channels of the reconstruction's bottleneck.")
    training: TrainingConfig = TrainingConfig()


class PatchTrainingConfig(TrainingConfig):
    """How an encoder of patches is trained; a class of its own, so that setting one field leaves the other defaults."""

    steps: int = Field(1500, ge=1, le=1_000_000, description="Optimizer steps.")
    learning_rate: float = Field(1e-3, gt=0.0, le=1.0, description="Peak of the cosine schedule (AdamW).")


class ContextSvddConfig(Section):
    """Patches compared with remembered ones, by features learnt from a pretext task."""

    encoder: Literal["dense", "paper"] = Field("dense", description="paper: SCL-VI's, for patches of 32 px.")
    pretext: Literal["context", "jigsaw", "rotation", "permutation", "none"] = Field(
        "context", description="What the encoder learns from, beside patch-SVDD; context is SCL-VI's."
    )
    patch_px: int = Field(
        32, ge=16, le=256, multiple_of=8, description="Side of the small patches, working-frame px; large ones: twice."
    )
    width: int = Field(32, ge=8, le=512, description="dense: channels of the first layer.")
    alpha: float = Field(1e-4, ge=0.0, le=100.0, description="Weight of patch-SVDD beside the pretext task.")
    memory: int = Field(10_000, ge=16, le=10_000_000, description="Remembered features per scale and member.")
    neighbours: int = Field(10, ge=1, le=100, description="Remembered features that a patch is compared with (eta).")
    sharpest: float = Field(20.0, ge=1.0, le=80.0, description="Limit of an affinity (lambda).")
    score: Literal["feature", "distance"] = Field(
        "feature", description="feature: distance to the mean of the neighbours. distance: mean of the distances."
    )
    training: PatchTrainingConfig = PatchTrainingConfig()

    @model_validator(mode="after")
    def _paper_has_one_size(self) -> Self:
        if self.encoder == "paper" and self.patch_px != 32:
            raise ValueError(f"the paper's encoder takes patches of 32 px, not patch_px {self.patch_px}")
        return self


class EditTrainingConfig(TrainingConfig):
    """How a network learns to tell edited crops; every crop is seen untouched and with each edit."""

    steps: int = Field(400, ge=1, le=1_000_000, description="Optimizer steps.")
    batch_size: int = Field(32, ge=2, le=4096, description="Crops per step over all workers, a multiple of shards.")
    learning_rate: float = Field(1e-3, gt=0.0, le=1.0, description="Peak of the cosine schedule (AdamW).")


class CutPasteSlaConfig(Section):
    """Density of features learnt by telling edited crops from untouched ones."""

    transformation: Literal["cutout", "cutpaste", "scar", "fusion"] = Field(
        "fusion", description="The edit that is to be told; fusion: cutpaste and scar, a class each."
    )
    labels: Literal["soft", "hard"] = Field("soft", description="soft: by how much of the edit shows. hard: 1.")
    alpha: float = Field(10.0, gt=0.0, le=1000.0, description="How soon a soft label is near 1.")
    density: Literal["places", "gaussian", "kernel"] = Field(
        "places", description="What features are compared with; places: a Gaussian for each, if frames are aligned."
    )
    level: Literal["patch", "image"] = Field(
        "patch", description="What is judged: patches, or frames as a whole, whose maps then have one value."
    )
    patch_px: int = Field(32, ge=16, le=256, description="patch: side of a patch, working-frame px.")
    stride_px: int = Field(8, ge=1, le=256, description="patch: distance of neighbouring patches, working-frame px.")
    stages: int = Field(2, ge=1, le=4, description="Residual stages of the ResNet-18 that are trained.")
    compared_stage: int | None = Field(
        None, ge=1, le=4, description="Stage whose features are compared; None: the first by place, else the last."
    )
    training: EditTrainingConfig = EditTrainingConfig()

    @model_validator(mode="after")
    def _compared_is_trained(self) -> Self:
        if self.compared_stage is not None and self.compared_stage > self.stages:
            raise ValueError(f"compared_stage {self.compared_stage} is not one of the {self.stages} stages")
        return self


class GanTrainingConfig(TrainingConfig):
    """How the three networks are trained together."""

    steps: int = Field(1500, ge=1, le=1_000_000, description="Optimizer steps.")
    batch_size: int = Field(16, ge=2, le=4096, description="Crops per step over all workers, a multiple of shards.")
    learning_rate: float = Field(1e-3, gt=0.0, le=1.0, description="Peak of the cosine schedule (AdamW).")
    beta1: float = Field(0.5, ge=0.0, lt=1.0, description="AdamW's decay of the mean gradient.")
    beta2: float = Field(0.99, ge=0.0, lt=1.0, description="AdamW's decay of the mean squared gradient.")


class GanInversionConfig(Section):
    """What a generator that knows good frames alone cannot show."""

    width: int = Field(16, ge=8, le=512, description="Channels at full resolution of all three networks.")
    latent: int = Field(8, ge=1, le=1024, description="Channels of the latent, which has a place every 8 px.")
    noise: float = Field(0.2, ge=0.0, le=10.0, description="Standard deviation of the latent's noise in training.")
    crop_px: int = Field(
        64, ge=16, le=1024, multiple_of=16, description="Side of training crops, px; at most the frame's shorter side."
    )
    refine_steps: int = Field(
        0, ge=0, le=10_000, description="Steps on the latent of a suspicious frame; 0: it stays as encoded."
    )
    refine_above: Fraction = Field(0.9, description="Share of the good frames that is not suspicious.")
    relax: Literal["none", "masked", "dgp"] = Field(
        "none",
        description="Fit the generator to a suspicious frame. masked: to what is trusted of it. dgp: to all of it, "
        "stage by stage (Pan et al.).",
    )
    relax_steps: int = Field(40, ge=4, le=10_000, description="Steps of that, all stages together.")
    training: GanTrainingConfig = GanTrainingConfig()


class TemplateDifferenceConfig(Section):
    """Difference to a registered template, beyond a tolerance band."""

    radius_px: int = Field(
        1, ge=0, le=16, description="How far edges may be off, working-frame px; finer structure is not inspected."
    )


class MemoryBankConfig(Section):
    """Features of a pretrained network compared with remembered ones."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "wide_resnet50_2"] = Field(
        "resnet18", description="A residual network of torchvision."
    )
    weights: str | None = Field(
        None,
        description="Its weights, a safetensors file that every worker sees; nothing is ever downloaded. "
        "None: random ones.",
    )
    memory: int = Field(10_000, ge=16, le=10_000_000, description="Remembered features per member.")


class FusionConfig(Section):
    """Several detectors as one."""

    parts: tuple[str, ...] = Field(
        ("draem", "context_svdd"), min_length=1, max_length=16, description="Names of detectors, each at most once."
    )

    @field_validator("parts")
    @classmethod
    def _each_once(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError(f"{', '.join(parts)} names a detector twice")
        return parts


class DetectorConfig(Section):
    """The pretext task: which method, and the options of each."""

    name: str = Field(
        "auto",
        description="A name of the method table. auto: draem; under the protocol routine2 template_difference where "
        "images have templates, else gan_inversion.",
    )
    init_from: str | None = Field(None, description="Artifact folder whose weights training starts from (transfer).")
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

    num_planted: int = Field(256, ge=8, le=100_000, description="Good images with planted defects judged per model.")
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
        except (OSError, ValueError, yaml.YAMLError) as error:
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
        except (ValueError, yaml.YAMLError) as error:
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
