"""Several detectors as one: how rare each one's value is on good images says how much it has to say.

Raw maps of different methods have nothing in common but their order. On held-out good images each value has a tail
probability, p; in -log10 p, called rarity r, units agree, and adding a detector needs no tuning. Fisher's method would
add them up; but far out rarity is extrapolated, and of one part 1000 means no more than 30.

Shapes: P parts, B frames, H W of a frame.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.framing import to_stride
from ssad_ray.core.images import resize
from ssad_ray.core.rng import generator
from ssad_ray.core.tails import NormalTail
from ssad_ray.errors import DataError
from ssad_ray.methods import check_detectors, load_method
from ssad_ray.methods.base import Method, State, TrainingFrames, is_shown_template

_HELD_OUT_EVERY = 4


class Fusion:
    """The detector; maps are at least 0."""

    def __init__(self, parts: Mapping[str, Method], shrink: Mapping[str, int]) -> None:
        self.parts, self.shrink = parts, shrink
        self.tails: Mapping[str, NormalTail] = {}

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make unfitted detectors of the names in the config.

        Raises:
            ConfigError: No such detector, or fusion itself.
        """
        check_detectors(config.detector)
        shrink = config.detector.fusion.parts
        return cls({name: load_method(name).from_config(config) for name in shrink}, shrink)

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Fit all parts, in this process; every fourth good frame is held out, and the tails are learnt from these.

        Raises:
            DataError: There is no fourth one.
        """
        is_held_out = np.arange(1, len(frames.images_NHWC) + 1) % _HELD_OUT_EVERY == 0
        if not is_held_out.any():
            raise DataError(f"fusion learns from {_HELD_OUT_EVERY} good frames at least; there are {len(is_held_out)}")
        kept = frames.only(~is_held_out)
        for name, part in self.parts.items():
            seen = replace(kept, images_NHWC=self.shown_to(name, kept.images_NHWC))
            part.fit(seen, int(generator(seed, "part", name).integers(2**31)))
        self.learn_tails(self.part_maps(frames.images_NHWC[is_held_out]))

    def shown_to(self, name: str, images_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the frames as a part sees them: without templates if it knows nothing of them, and shrunk."""
        if not is_shown_template(self.parts[name]):
            images_BHWC = images_BHWC[..., :3]
        if self.shrink[name] == 1:
            return images_BHWC
        height, width = (to_stride(side / self.shrink[name]) for side in images_BHWC.shape[1:3])
        return np.stack([resize(image, height, width) for image in images_BHWC])

    def part_maps(self, images_BHWC: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the raw maps (B, H, W) of every part."""
        _, height, width, _ = images_BHWC.shape
        return {
            name: np.stack([resize(map_, height, width) for map_ in part.maps(self.shown_to(name, images_BHWC))])
            for name, part in self.parts.items()
        }

    def learn_tails(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Learn from each part's map values on held-out good images, in any shape."""
        self.tails = {name: NormalTail.of(values[name]) for name in self.parts}

    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return how rare the parts together call every pixel (B, H, W)."""
        rarity_PBHW = np.stack([self.tails[name].rarity(maps) for name, maps in self.part_maps(images_BHWC).items()])
        return agreed(rarity_PBHW)

    def state(self) -> State:
        """Return what the parts learnt, and the tails once they are there."""
        states = {name: part.state() for name, part in self.parts.items()}
        for name, tail in self.tails.items():
            states[name] |= {f"tail.{key}": value for key, value in tail.state().items()}
        return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}

    def load_state(self, state: State) -> None:
        """Take over what `state` returned, or what the parts' `state` returned, each under the part's name."""
        for name, part in self.parts.items():
            own = state_of_part(state, name)
            part.load_state({key: value for key, value in own.items() if not key.startswith("tail.")})
            tail = state_of_part(own, "tail")
            if tail:
                self.tails = {**self.tails, name: NormalTail.from_state(tail)}


def agreed(rarity_PBHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how rare parts together call a value, (B, H, W): the harmonic mean of 1 + r over the parts, less 1.

    What all say is what comes out; what one of P says alone, however loud, counts for less than 1 / (P - 1).
    """
    mean: NDArray[np.float32] = (1.0 / (1.0 + rarity_PBHW)).mean(axis=0)
    return 1.0 / mean - 1.0


def state_of_part(state: State, name: str) -> State:
    """Return the arrays under a name."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
