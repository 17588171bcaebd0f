"""The floor baseline: how far each pixel is from the median of the good images, in units of their spread.

Its job is to be beaten. It needs aligned parts; on free poses and textures it has little to say.

Shapes: B frames, N training frames, H W height and width of a frame, C = 3 channels.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.images import blurred
from ssad_ray.method_config import PixelReferenceConfig
from ssad_ray.methods.base import State, TrainingFrames

SPREAD_FLOOR = 4.0
"""Grey levels; sensor noise keeps the spread of a constant background from being zero."""

TO_SIGMA = 1.4826
"""Median absolute deviation of a normal distribution to its standard deviation."""

_BAND_PX = 8  # of all frames at once medians would take eight times the memory of the frames


class PixelReference:
    """Per-pixel median and median absolute deviation, in numpy."""

    def __init__(self, config: PixelReferenceConfig) -> None:
        self.config = config
        self.median_HWC: NDArray[np.float32] = np.zeros((0, 0, 3), np.float32)
        self.spread_HWC: NDArray[np.float32] = np.zeros((0, 0, 3), np.float32)

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted reference."""
        return cls(config.detector.pixel_reference)

    def fit(self, frames: TrainingFrames, seed: int) -> None:  # noqa: ARG002
        """Take the median and the spread of the good frames; the seed has nothing to decide."""
        self.median_HWC, self.spread_HWC = median_and_spread(frames.images_NHWC[frames.is_good_N])

    def maps(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the smoothed deviations (B, H, W), in robust standard deviations."""
        deviation = np.abs(images_BHWC.astype(np.float32) - self.median_HWC) / self.spread_HWC
        return blurred(deviation.max(axis=3), self.config.blur_px)

    def state(self) -> State:
        """Return the two images that were learnt."""
        return {"median_HWC": self.median_HWC, "spread_HWC": self.spread_HWC}

    def load_state(self, state: State) -> None:
        """Take over the two images."""
        self.median_HWC, self.spread_HWC = state["median_HWC"], state["spread_HWC"]


def median_and_spread(images_NHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the per-pixel median and robust standard deviation (each (H, W, 3) float32, grey levels, spread > 0)."""
    bands = range(0, images_NHWC.shape[1], _BAND_PX)
    medians, spreads = zip(*(_of_band(images_NHWC[:, top : top + _BAND_PX]) for top in bands), strict=True)
    return np.concatenate(medians), np.concatenate(spreads)


def _of_band(images_NhWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    median = np.median(images_NhWC, axis=0).astype(np.float32)
    deviation = np.median(np.abs(images_NhWC - median), axis=0)
    return median, np.maximum(TO_SIGMA * deviation, SPREAD_FLOOR).astype(np.float32)
