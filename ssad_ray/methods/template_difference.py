"""Compare an image with its registered template: what the template does not allow for is anomalous.

Small defects are sought in what is left beyond a tolerance band (no darker than the darkest and no brighter than the
brightest pixel of the template near by), large and faint ones in the mean of the signed difference, which noise and
edges that are a little off leave near zero. Both are in units of what is usual between good images and templates that
look the same, and saturate: how far a defect reaches then counts, not how much one pixel differs, and a small defect
does not glow through the whole width of a coarse scale.

Shapes: N training frames, B frames of a batch, H W height and width of a frame, C = 3 channels, S scales; pairs have 6
channels, the image's RGB and the template's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.rng import generator
from ssad_ray.method_config import TemplateDifferenceConfig
from ssad_ray.methods.base import State, TrainingFrames
from ssad_ray.methods.template_pairs import photographed_pair

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

FINE_PX = 1
COARSE_PX = (4, 16)
"""Gaussian sigmas over which residuals are pooled."""
_LEAST_PAIRS, _MOST_PAIRS, _MOST_PX = 16, 64, 1 << 24
_SAME = 0.05  # mean difference, grey levels; no camera repeats itself so well
_FINE_SATURATION, _COARSE_SATURATION = 12.0, 3.0
_LEAST_RESIDUAL = 1.0  # grey levels; two good images are never more alike


@dataclass(frozen=True, slots=True, eq=False)
class _Residuals:
    """What differs in a pair, in grey levels.

    Attributes:
        contrast_HWC: How far the template varies near each pixel.
        signed_HWC: Image less template.
        beyond_HWC: How far the image is outside the band that the template allows.
    """

    contrast_HWC: Floats
    signed_HWC: Floats
    beyond_HWC: Floats


class TemplateDifference:
    """The detector; a map is the largest of the scales, 1 being what the highest peak of a good pair usually is."""

    compares_with_template: ClassVar[bool] = True

    def __init__(self, config: TemplateDifferenceConfig) -> None:
        self.config = config
        self.usual_beyond = np.array([1.0, 0.0], np.float32)
        self.usual_signed = np.array([1.0, 0.0], np.float32)
        self.units_S = np.ones(1 + len(COARSE_PX), np.float32)

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Make an unfitted detector."""
        return cls(config.detector.template_difference)

    def fit(self, frames: TrainingFrames, seed: int) -> None:
        """Learn from some of the good pairs how an image usually differs from its template.

        Images are also made of the templates. Where no pair shows two pictures they are all there is; elsewhere they
        are a limit, for true pairs may happen to lie more exactly than the next ones will. Medians over pairs are
        taken, so that an unseen defect in a few of them does no harm.
        """
        good = generator(seed, "pairs").permutation(np.flatnonzero(frames.is_good_N))
        num = min(max(len(good), _LEAST_PAIRS), _MOST_PAIRS, max(1, _MOST_PX // frames.images_NHWC[0, ..., 0].size))
        pairs = [frames.images_NHWC[it] for it in np.resize(good, num)]
        true = [pair for pair in pairs if _is_true(pair)]
        made = [
            photographed_pair(np.ascontiguousarray(pair[..., 3:]), generator(seed, "made", index))
            for index, pair in enumerate(pairs)
        ]
        usual = np.median([self._usual(pair) for pair in true or made], axis=0).astype(np.float32)
        self.usual_beyond, self.usual_signed = usual
        level = [_LEAST_RESIDUAL / least for least in (usual[0, 0], *[usual[1, 0]] * len(COARSE_PX))]
        peaks = [self._usual_peaks(each) for each in (true, made) if each]
        self.units_S = np.max(np.stack([level, *peaks]), axis=0).astype(np.float32)

    def _usual(self, pair_HWC: Pixels) -> Floats:
        """Return the usual residual (2, 2), beyond and signed, each as (a, b): see `_fitted`."""
        residuals = self._residuals(pair_HWC)
        both = residuals.beyond_HWC, residuals.signed_HWC
        return np.array([_fitted(residuals.contrast_HWC, each) for each in both], np.float32)

    def _usual_peaks(self, pairs: list[Pixels]) -> Floats:
        """Return the median over pairs of the largest value at each scale (S,)."""
        peaks_NS = [[scale_HW.max() for scale_HW in self._scales(self._residuals(pair))] for pair in pairs]
        return np.asarray(np.median(peaks_NS, axis=0), np.float32)

    def maps(self, images_BHWC: Pixels) -> Floats:
        """Return the highest of the scales (B, H, W) of pairs (B, H, W, 6)."""
        return np.stack([self._map(pair) for pair in images_BHWC])

    def _map(self, pair_HWC: Pixels) -> Floats:
        scales = (
            scale_HW / unit
            for scale_HW, unit in zip(self._scales(self._residuals(pair_HWC)), self.units_S, strict=True)
        )
        return np.asarray(np.maximum.reduce(list(scales)), np.float32)

    def _residuals(self, pair_HWC: Pixels) -> _Residuals:
        image, template = (np.ascontiguousarray(each) for each in (pair_HWC[..., :3], pair_HWC[..., 3:]))
        low, high = _band(template, self.config.radius_px)
        lowest, highest = _band(template, self.config.radius_px + 1)
        beyond = cv2.max(cv2.subtract(image, high), cv2.subtract(low, image))
        signed = image.astype(np.float32) - template
        return _Residuals((highest - lowest).astype(np.float32), signed, np.asarray(beyond, np.float32))

    def _scales(self, residuals: _Residuals) -> Iterator[Floats]:
        """Yield the pooled residuals (H, W), finest first."""
        beyond = _in_units(residuals.beyond_HWC, residuals.contrast_HWC, self.usual_beyond, _FINE_SATURATION)
        yield cv2.GaussianBlur(beyond, (0, 0), FINE_PX).max(axis=2)
        signed = _in_units(residuals.signed_HWC, residuals.contrast_HWC, self.usual_signed, _COARSE_SATURATION)
        for sigma in COARSE_PX:
            yield np.abs(cv2.GaussianBlur(signed, (0, 0), sigma)).max(axis=2)

    def state(self) -> State:
        """Return what is usual."""
        return {"usual_beyond": self.usual_beyond, "usual_signed": self.usual_signed, "units_S": self.units_S}

    def load_state(self, state: State) -> None:
        """Take over what is usual."""
        self.usual_beyond, self.usual_signed = state["usual_beyond"], state["usual_signed"]
        self.units_S = state["units_S"]


def _is_true(pair_HWC: Pixels) -> bool:
    """Return whether a pair shows two pictures, not a template twice."""
    return bool(cv2.absdiff(pair_HWC[..., :3], pair_HWC[..., 3:]).mean() > _SAME)


def _band(template_HWC: Pixels, radius_px: int) -> tuple[Pixels, Pixels]:
    """Return the darkest and the brightest value within a radius, per channel."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    lowest, highest = cv2.erode(template_HWC, disc), cv2.dilate(template_HWC, disc)
    return np.asarray(lowest, np.uint8), np.asarray(highest, np.uint8)


def _in_units(residual: Floats, contrast: Floats, usual: Floats, saturation: float) -> Floats:
    least, slope = usual
    return np.asarray(np.clip(residual / (least + slope * contrast), -saturation, saturation), np.float32)


def _fitted(contrast: Floats, residual: Floats) -> tuple[float, float]:
    """Fit `usual residual = a + b x contrast` to a good pair, each (H, W, C), in grey levels.

    a is the root mean square where the template is no livelier than its median; b, of what exceeds a, per contrast.
    """
    size = np.abs(residual)
    least = max(float(np.sqrt(np.square(size[contrast <= np.median(contrast)]).mean())), _LEAST_RESIDUAL)
    excess, squares = np.maximum(size - least, 0.0), float(np.square(contrast).sum())
    return least, float(np.sqrt(np.square(excess).sum() / max(squares, 1.0)))
