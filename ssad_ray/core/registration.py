"""Lay a template over an image.

Coarse to fine: phase correlation (Kuglin, Hines, 1975) proposes shifts, blocks at full resolution choose among them,
ECC (Evangelidis, Psarakis, IEEE PAMI 2008) turns a shift into an affine map, and block matching follows what stretches.
Every step is kept only if it raises one and the same measure, `Pair.correlation`.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.block_matching import bent, best_shift
from ssad_ray.core.warp import MAX_GAIN, NOISE, Floats, Image, Pair, Warp, is_inside, sample

MIN_CORRELATION = 0.7
"""Below, the template is of another product or of another place; docs/decisions/0015-template-difference.md."""

_WORKING_PX = 1024
"""Longer side of what phase correlation and the finest ECC see."""
_SMALLEST_PX = 16
_ECC_STEPS = (
    (0.25, cv2.MOTION_TRANSLATION),
    (0.25, cv2.MOTION_EUCLIDEAN),
    (0.5, cv2.MOTION_EUCLIDEAN),
    (0.5, cv2.MOTION_AFFINE),
    (1.0, cv2.MOTION_AFFINE),
)
_ECC_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-5)
_ECC_BLUR_PX = 5
_NUM_PEAKS = 5
_PEAK_PX = 3
_WHITENING_FLOOR = 0.1
_NUM_REFINED = 3
_CONVINCING = 0.9
_AS_GOOD = 0.05
_COMPARED_EVERY = 97  # pixels; no divisor of common widths
_MOST_ALIKE = 0.9
_FITS = 3

Found = tuple[float, Warp]
"""A map and its correlation."""


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A template in the frame of an image.

    Attributes:
        template: (H, W, 3) uint8, at the image's brightness; the image itself where no template lies.
        is_covered: (H, W) bool, where the template lies.
        correlation: How well they agree, in [-1, 1], as `Pair.correlation` says.
        warp: The map, image to template.
    """

    template: Image
    is_covered: NDArray[np.bool_]
    correlation: float
    warp: Warp


def register(template: Image, image: Image) -> Registered:
    """Find the place of the template under the image and show it there.

    Made for shifts of less than half the picture, rotations of up to 2 degrees, scales within 3 % and stretching of a
    few pixels; what goes beyond shows in the correlation. The two are compared in the mix of colours that has most
    contrast, so a pattern of equally bright colours is one too. In a periodic pattern any repeat will do.

    Args:
        template: (h, w, 3) uint8 RGB, of any size.
        image: (H, W, 3) uint8 RGB.
    """
    mix = _most_contrast(template, image)
    pair = Pair(_mixed(image, mix), _mixed(template, mix))
    found = _affine(pair)
    for scale in (_working_scale(pair), 1.0):
        found = _better(pair, bent(pair, found[1], scale), found)
    correlation, warp = found
    laid, is_covered = _laid(template, image, warp)
    return Registered(laid, is_covered, correlation, warp)


def _most_contrast(*pictures: Image) -> Floats:
    """Return the first principal axis of the colours, as weights and a bias (1, 4) that keep all within 0 to 255.

    Of grey pictures it is the mean of the channels.
    """
    covariance_33 = sum(np.cov(each.reshape(-1, 3)[::_COMPARED_EVERY].T, bias=True) for each in pictures)
    axis = np.linalg.eigh(covariance_33)[1][:, -1]
    axis /= np.abs(axis).sum() * (1.0 if axis.sum() >= 0 else -1.0)
    return np.append(axis, -255.0 * axis[axis < 0].sum())[np.newaxis].astype(np.float32)


def _mixed(image: Image, mix_14: Floats) -> Image:
    return np.asarray(cv2.transform(image, mix_14), np.uint8)


def _working_scale(pair: Pair) -> float:
    height, width = pair.image.shape
    return float(min(1.0, _WORKING_PX / max(height, width)))


def _better(pair: Pair, warp: Warp, found: Found) -> Found:
    correlation = pair.correlation(warp)
    return (correlation, warp) if correlation > found[0] else found


def _affine(pair: Pair) -> Found:
    """Refine the most promising shifts until one convinces."""
    found = [(pair.correlation(warp), warp) for warp in _shifts(pair)]
    best = max(correlation for correlation, _ in found)
    found.sort(key=lambda each: _rank(each, best - _AS_GOOD))
    refined: list[Found] = []
    for each in found[:_NUM_REFINED]:
        refined.append(_refined(pair, each))
        if refined[-1][0] >= _CONVINCING:
            break
    return max(refined, key=lambda each: each[0])


def _rank(found: Found, as_good: float) -> tuple[bool, float]:
    """Those that are as good as the best first, of them the smallest shift: it covers most of the image."""
    correlation, warp = found
    if correlation < as_good:
        return True, -correlation
    return False, float(np.abs(warp.matrix_23[:, 2]).sum())


def _shifts(pair: Pair) -> list[Warp]:
    """Return proposals: none at all and the peaks of the phase correlation, moved to where blocks match best."""
    scale = _working_scale(pair)
    peaks = [(0, 0), *_phase_peaks(pair.shrunk(scale))]
    return [best_shift(pair, round(x / scale), round(y / scale), math.ceil(1 / scale) + 1) for x, y in peaks]


def _phase_peaks(pair: Pair) -> list[tuple[int, int]]:
    """Return the shifts (x, y) at which the phase correlation of Hann-windowed pictures is highest."""
    height, width = np.maximum(pair.image.shape, pair.template.shape).tolist()
    seen, laid = (np.fft.rfft2(_windowed(each), (height, width)) for each in (pair.image, pair.template))
    cross = np.conj(seen) * laid
    strength = np.abs(cross)
    # Not all the way to white: between the few lines of a periodic pattern's spectrum there is only noise.
    surface = np.fft.irfft2(cross / (strength + _WHITENING_FLOOR * strength.max() + 1e-9), (height, width))
    rows, columns = np.arange(height)[:, np.newaxis], np.arange(width)
    peaks = []
    for _ in range(_NUM_PEAKS):
        y, x = divmod(int(surface.argmax()), width)
        peaks.append((int(_cyclic(np.array(x), width)), int(_cyclic(np.array(y), height))))
        is_near = (abs(_cyclic(rows - y, height)) <= _PEAK_PX) & (abs(_cyclic(columns - x, width)) <= _PEAK_PX)
        surface[is_near] = -np.inf
    return peaks


def _windowed(image: Image) -> NDArray[np.float64]:
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in image.shape))
    return np.asarray((image - image.mean()) * window, np.float64)


def _cyclic(distances: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """Return distances on a circle, at most half way round."""
    return (distances + period // 2) % period - period // 2


def _refined(pair: Pair, found: Found) -> Found:
    """Climb a pyramid with ECC; what diverges, or agrees worse at full resolution, is forgotten."""
    working = pair.shrunk(_working_scale(pair))
    for scale, motion in _ECC_STEPS:
        small = working.shrunk(scale)
        if min(*small.image.shape, *small.template.shape) < _SMALLEST_PX:
            continue
        start = pair.translated(found[1], small)
        first, everywhere = start.matrix_23.astype(np.float32), np.full_like(small.template, 255)
        try:
            _, matrix = cv2.findTransformECC(
                small.image, small.template, first, motion, _ECC_STOP, everywhere, _ECC_BLUR_PX
            )
        except cv2.error:
            continue
        new = Warp(np.asarray(matrix, np.float64), start.bend_RC2)
        found = _better(pair, small.translated(new, pair), found)
    return found


def _laid(template: Image, image: Image, warp: Warp) -> tuple[Image, NDArray[np.bool_]]:
    """Return the template as it lies under the image, at the image's brightness, and where it lies."""
    height, width = image.shape[:2]
    laid, is_covered = np.empty_like(image), np.empty((height, width), np.bool_)
    for block, places in warp.parts(height, width):
        block.of(laid)[:] = sample(template, places)
        block.of(is_covered)[:] = is_inside(template, places)
    laid = _at_brightness(laid, image, is_covered)
    laid[~is_covered] = image[~is_covered]
    return laid, is_covered


def _at_brightness(laid: Image, image: Image, is_covered: NDArray[np.bool_]) -> Image:
    """Give every channel the gain and the bias that fit it to the image's, in place."""
    every = np.s_[::_COMPARED_EVERY]
    is_seen = is_covered.reshape(-1)[every]
    values, wanted = (each.reshape(-1, 3)[every][is_seen].astype(np.float32) for each in (laid, image))
    tables = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        gain, bias = _gain_and_bias(values[:, channel], wanted[:, channel])
        tables[0, :, channel] = np.clip(np.rint(gain * np.arange(256) + bias), 0, 255)
    return np.asarray(cv2.LUT(laid, tables, laid), np.uint8)


def _gain_and_bias(values: Floats, wanted: Floats) -> tuple[float, float]:
    """Make mean and standard deviation equal, over the nine tenths of the pixels that then are most alike.

    Not median and median deviation, which jump from one end to the other where half a picture is black and half white.
    """
    gain, bias = 1.0, 0.0
    kept = np.ones(len(values), np.bool_)
    for _ in range(_FITS if len(values) else 0):
        spread, wanted_spread = float(values[kept].std()), float(wanted[kept].std())
        if min(spread, wanted_spread) > NOISE:
            gain = min(max(wanted_spread / spread, 1 / MAX_GAIN), MAX_GAIN)
        bias = float(wanted[kept].mean() - gain * values[kept].mean())
        difference = np.abs(gain * values + bias - wanted)
        kept = difference <= np.quantile(difference, _MOST_ALIKE)
    return gain, bias
