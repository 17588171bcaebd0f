"""What a method is: something that learns from frames and says where others are anomalous.

Shapes: B frames of a batch, N training frames, L of them labelled, H and W height and width of a frame, C = 3
channels (RGB), 6 for a method that compares with a template.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssad_ray.config import RunConfig
from ssad_ray.core.framing import is_aligned
from ssad_ray.method_config import TrainingConfig

State = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TrainingFrames:
    """Frames to learn from; a detector sees good ones only, a segmenter also labelled ones.

    Attributes:
        images_NHWC: uint8.
        is_good_N: Frames of anomaly-free images: every pixel is surely normal, and defects may be planted.
        targets_LHW: float32 in [0, 1], probability that a pixel is defective; of the other frames, in their order.
        weights_LHW: float32 in [0, 1], confidence of each target; 0 = ignore.
        has_places: Whether a place means the same in every frame: each shows the whole of one aligned part.
    """

    images_NHWC: NDArray[np.uint8]
    is_good_N: NDArray[np.bool_]
    targets_LHW: NDArray[np.float32]
    weights_LHW: NDArray[np.float32]
    has_places: bool

    @classmethod
    def of_good(cls, images_NHWC: NDArray[np.uint8]) -> "TrainingFrames":
        """Wrap anomaly-free frames, each of a whole image; whether they have places is measured."""
        num, height, width, _ = images_NHWC.shape
        nothing = np.empty((0, height, width), np.float32)
        return cls(images_NHWC, np.ones(num, bool), nothing, nothing, is_aligned(images_NHWC))

    def planes(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Return image, target and weights of one frame."""
        image = self.images_NHWC[index]
        if self.is_good_N[index]:
            return image, np.zeros(image.shape[:2], np.float32), np.ones(image.shape[:2], np.float32)
        place = np.count_nonzero(~self.is_good_N[:index])
        return image, self.targets_LHW[place], self.weights_LHW[place]

    def only(self, kept_N: NDArray[np.bool_]) -> "TrainingFrames":
        """Return some of the frames, copied."""
        kept_L = kept_N[~self.is_good_N]
        return TrainingFrames(
            self.images_NHWC[kept_N],
            self.is_good_N[kept_N],
            self.targets_LHW[kept_L],
            self.weights_LHW[kept_L],
            self.has_places,
        )


class Method(Protocol):
    """A detector or a segmenter: fitted on frames, it gives anomaly maps of others; its state is a dict of arrays."""

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted method from the resolved config."""

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Learn from frames, in this process."""

    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return raw anomaly maps (B, H, W), float32; higher is more anomalous."""

    def state(self) -> State:
        """Everything that was learnt, as named arrays."""

    def load_state(self, state: State) -> None:
        """Take over what `state` returned."""


@runtime_checkable
class TrainsByGradient(Protocol):
    """The ability of a method whose fit is stochastic gradient descent; it can then be trained across workers.

    `batch` is a pure function of its arguments and of what `initialise` set: the frames of shard `shard` of step `step`
    are the same whichever worker computes them, so the number of workers cannot change a result. For the same reason
    `loss` draws nothing at random (no dropout), and no buffer of the network changes in training (no BatchNorm): only
    parameters are kept in a checkpoint. All members exist from `from_config` on, or the method counts as one that is
    not trained by gradient.
    """

    @property
    def training(self) -> TrainingConfig:
        """How long and how fast."""

    @property
    def network(self) -> nn.Module:
        """What is trained; replaced by `initialise`."""

    def initialise(self, frames: TrainingFrames, seed: int) -> None:
        """Set what is not learnt by gradient (statistics, random initial weights); a pure function of its arguments."""

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Mapping[str, NDArray[Any]]:
        """Return shard `shard` (of `training.shards`) of the batch of a step, as named arrays; after `initialise`."""

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of a shard, a scalar."""


@runtime_checkable
class Remembers(Protocol):
    """The ability of a method trained by gradient to learn from the good frames once its network stands."""

    def remember(self, frames: TrainingFrames, seed: int) -> None:
        """Learn with the trained network what is not learnt by gradient; a pure function of both and the seed."""


@runtime_checkable
class ComparesWithTemplate(Protocol):
    """The ability of a method to be shown every image together with its template.

    All its frames, those to learn from and those to score, have six channels, uint8: the image's RGB, then that of the
    template in the image's own frame (`ssad_ray.core.registration.Registered.template`). They are stacked before a
    frame is cut, so that a frame shows the same place twice. Where no template lies, both are the image. A good image
    that is a template itself is shown as if photographed once more (`ssad_ray.methods.showing`).
    """

    compares_with_template: ClassVar[bool]
    """True; having it is what counts."""


@runtime_checkable
class Combines(Protocol):
    """The ability of a detector to be made of others, each fitted on the good frames in its own way.

    Its state is that of its parts, each under `<name>.`, and how their maps compare: that is learnt from good images
    which the parts have not seen.
    """

    @property
    def parts(self) -> Mapping[str, Method]:
        """The detectors by name, each a name of the method table."""

    def shown_to(self, name: str, images_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return frames as the part of this name sees them."""

    def part_maps(self, images_BHWC: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the raw maps (B, H, W) of every part."""

    def learn_tails(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Learn from the parts' map values on held-out good images, in any shape, how maps compare."""


def is_shown_template(method: Method) -> bool:
    """Whether the frames of a method have six channels: it compares with a template, or a part of it does."""
    if isinstance(method, Combines):
        return any(is_shown_template(part) for part in method.parts.values())
    return isinstance(method, ComparesWithTemplate)


def to_tensor(images_BHWC: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return images as (B, C, H, W) float32 in [0, 1], channels last in memory."""
    return to_unit(torch.from_numpy(images_BHWC).to(device))


def to_unit(images_BHWC: Tensor) -> Tensor:
    """Return uint8 images the same way."""
    return images_BHWC.permute(0, 3, 1, 2).float() / 255.0
