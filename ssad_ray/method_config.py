"""The sections of the config tree that belong to methods: one per detector, and how networks are trained.

Every number has bounds and a unit.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
AbsolutePath = Annotated[str, AfterValidator(lambda path: str(Path(path).absolute()))]


class Section(BaseModel):
    """A frozen config section that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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

    blur_px: float = Field(1.0, gt=0.0, le=64.0, description="Gaussian sigma of map smoothing, working-frame px.")


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

    encoder: Literal["dense", "paper", "published"] = Field(
        "dense", description="paper: SCL-VI's, for patches of 32 px. published: the same as in its authors' code."
    )
    pretext: Literal["context", "jigsaw", "rotation", "permutation", "none"] = Field(
        "context", description="What the encoder learns from, beside patch-SVDD; context is SCL-VI's."
    )
    patch_px: int = Field(
        32, ge=16, le=256, multiple_of=8, description="Side of the small patches, working-frame px; large ones: twice."
    )
    width: int = Field(32, ge=8, le=512, description="dense: channels of the first layer.")
    alpha: float = Field(1e-4, ge=0.0, le=100.0, description="Weight of patch-SVDD beside the pretext task.")
    memory: int = Field(
        10_000,
        ge=16,
        le=10_000_000,
        description="Remembered features per scale and member; on aligned parts one of every place at least.",
    )
    neighbours: int = Field(10, ge=1, le=100, description="Remembered features that a patch is compared with (eta).")
    sharpest: float = Field(20.0, ge=1.0, le=80.0, description="Limit of an affinity (lambda).")
    score: Literal["feature", "distance"] = Field(
        "feature", description="feature: distance to the mean of the neighbours. distance: mean of the distances."
    )
    training: PatchTrainingConfig = PatchTrainingConfig()

    @model_validator(mode="after")
    def _paper_has_one_size(self) -> Self:
        if self.encoder != "dense" and self.patch_px != 32:
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
    def _patches_leave_no_gap(self) -> Self:
        if self.stride_px > self.patch_px:
            raise ValueError(f"patches of patch_px {self.patch_px} leave gaps at stride_px {self.stride_px}")
        return self

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

    backbone: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "wide_resnet50_2",
        "wide_resnet101_2",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
    ] = Field("resnet18", description="A residual network of torchvision.")
    weights: AbsolutePath | None = Field(
        None,
        description="Its weights, a safetensors file that every worker sees; nothing is ever downloaded. "
        "None: random ones.",
    )
    memory: int = Field(10_000, ge=16, le=10_000_000, description="Remembered features per member.")


Shrink = Annotated[int, Field(ge=1, le=8)]


class FusionConfig(Section):
    """Several detectors as one."""

    parts: dict[str, Shrink] = Field(
        {"draem": 1, "context_svdd": 1},
        min_length=1,
        max_length=16,
        description="Names of detectors, and how many times smaller than its input each sees frames (1 to 8).",
    )
