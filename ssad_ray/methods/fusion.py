"""Several detectors as one: how rare each one's value is on good images says how much it has to say.

Raw maps of different methods have nothing in common but their order. On held-out good images each value has a tail
probability, p; in -log10 p, called rarity r, units agree, and adding a detector needs no tuning (Fisher's method would
add them up). Beyond what good images can show rarity is extrapolated, and of one part 1000 means no more than 30: a
part votes r / (6 + r), a half where one good pixel in a million is as high. A map is the mean of the votes.

Shapes: B frames, H W of a frame.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.rng import generator
from ssad_ray.core.tails import NormalTail
from ssad_ray.errors import ConfigError
from ssad_ray.methods import load_method
from ssad_ray.methods.base import Method, State, TrainingFrames, is_shown_template

_HELD_OUT_EVERY = 4
_HALF_A_VOTE = 6.0  # rarity


class Fusion:
    """The detector; maps lie in [0, 1)."""

    def __init__(self, parts: Mapping[str, Method]) -> None:
        self.parts = parts
        self.tails: Mapping[str, NormalTail] = {}

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make unfitted detectors of the names in the config.

        Raises:
            ConfigError: No such method, or fusion itself.
        """
        names = config.detector.fusion.parts
        if "fusion" in names:
            raise ConfigError(f"detector.fusion.parts are other detectors than fusion; got {', '.join(names)}")
        return cls({name: load_method(name).from_config(config) for name in names})

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Fit all parts, in this process; every fourth good frame is held out, and the tails are learnt from these."""
        is_held_out = frames.is_good_N & (np.cumsum(frames.is_good_N) % _HELD_OUT_EVERY == 0)
        seen = frames.only(~is_held_out)
        for name, part in self.parts.items():
            own = seen if is_shown_template(part) else seen.of_images()
            part.fit(own, int(generator(seed, "part", name).integers(2**31)))
        self.learn_tails(self.part_maps(frames.images_NHWC[is_held_out]))

    def part_maps(self, images_BHWC: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the raw maps (B, H, W) of every part."""
        return {
            name: part.score(images_BHWC if is_shown_template(part) else images_BHWC[..., :3])[1]
            for name, part in self.parts.items()
        }

    def learn_tails(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Learn from each part's map values on held-out good images, in any shape."""
        self.tails = {name: NormalTail.of(values[name]) for name in self.parts}

    def score(self, images_BHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the largest mean vote (B,) and the maps of mean votes (B, H, W)."""
        rarities = [self.tails[name].rarity(maps) for name, maps in self.part_maps(images_BHWC).items()]
        maps: NDArray[np.float32] = np.mean([rarity / (_HALF_A_VOTE + rarity) for rarity in rarities], axis=0)
        return maps.max(axis=(1, 2)), maps

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


def state_of_part(state: State, name: str) -> State:
    """Return the arrays under a name."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
