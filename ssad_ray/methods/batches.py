"""What networks are trained on: shards of batches of varied good frames, planted defects and labelled frames.

Every item is a pure function of (seed, step, item), so it does not matter which worker makes it.

Shapes: B items of a shard, H W height and width of a frame.
"""

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.rng import generator
from ssad_ray.core.synthesis.families import plant
from ssad_ray.method_config import TrainingConfig
from ssad_ray.methods.base import TrainingFrames

TRAINING_FAMILIES = ("blob", "cutpaste", "deform", "perlin", "scar")
HELD_OUT_FAMILIES = ("missing", "poisson")
"""Never trained on: the gate judges with them."""

Batch = dict[str, NDArray[Any]]
Retake = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]
"""Makes of a good frame another one that is as good."""

Planes = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]

_ANOTHER = 0.5  # odds of one more plant
_WIDEST_GAP = 0.07  # of the frame's longer side
_GAIN = 0.05
_BIAS = 5.0  # grey levels
_SHIFT = 0.015  # of the frame's sides
_TURN = 1.5  # degrees


def good_items(
    frames: TrainingFrames, options: TrainingConfig, shard: int, seed: int, *keys: str | int
) -> Iterator[tuple[np.random.Generator, NDArray[np.uint8]]]:
    """Yield for every item of a shard its random stream, by the seed and the keys, and a good frame drawn from it."""
    good = np.flatnonzero(frames.is_good_N)
    size = options.batch_size // options.shards
    for item in range(shard * size, (shard + 1) * size):
        rng = generator(seed, *keys, item)
        yield rng, frames.images_NHWC[good[int(rng.integers(len(good)))]]


def planted_shard(
    frames: TrainingFrames,
    options: TrainingConfig,
    seed: int,
    step: int,
    shard: int,
    planted_fraction: float,
    labelled_fraction: float = 0.0,
    retake: Retake | None = None,
) -> Batch:
    """Make one shard of a batch.

    Args:
        frames: Good frames, and labelled ones where `labelled_fraction` is above zero.
        options: Batch size and number of shards.
        seed: Of the training run.
        step: Of the optimizer.
        shard: Which part of the batch.
        planted_fraction: Share of items that are good frames with planted defects.
        labelled_fraction: Share of items that are labelled frames; the rest are good frames as they are.
        retake: What is done to every good frame before anything is planted.

    Returns:
        `clean` and `image` (B, H, W, 3) uint8, before and after planting; `target` and `weight` (B, H, W) and
        `is_good` (B,) float32.
    """
    size = options.batch_size // options.shards
    items = []
    for item in range(shard * size, (shard + 1) * size):
        rng = generator(seed, "batch", step, item)
        kind = (item + rng.random()) / options.batch_size  # stratified: every batch holds nearly the same mixture
        if kind < labelled_fraction:
            image, target, weight = _varied(_draw(frames, ~frames.is_good_N, rng), rng)
            items.append((image, image, target, weight, np.float32(0)))
            continue
        clean, target, weight = _varied(_draw(frames, frames.is_good_N, rng), rng)
        image = clean = retake(clean, rng) if retake else clean
        if kind < labelled_fraction + planted_fraction:
            other = _draw(frames, frames.is_good_N, rng)[0]
            image, change = plant_several(clean, other, rng)
            target = body(change).astype(np.float32)
        items.append((clean, image, target, weight, np.float32(1)))
    names = ("clean", "image", "target", "weight", "is_good")
    return {name: np.stack(planes) for name, planes in zip(names, zip(*items, strict=True), strict=True)}


def body(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Close a mask of visible changes to the defect it belongs to.

    What a person outlines is the whole defect, although parts of it look like the product; trained on visible
    changes alone a network finds the edges of defects and misses their bodies.
    """
    area = int(np.count_nonzero(mask))
    if not area:
        return mask
    side = int(max(3, min(0.6 * area**0.5, _WIDEST_GAP * max(mask.shape)))) | 1
    padded = np.pad(mask, side).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)[side:-side, side:-side] > 0


def plant_several(
    image: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Plant one defect, and with falling odds more, over and beside each other: real damage is of several kinds."""
    planted, change = plant(image, rng, TRAINING_FAMILIES, other)
    while rng.random() < _ANOTHER:
        planted, further = plant(planted, rng, TRAINING_FAMILIES, other)
        change = change | further
    return planted, change


def _draw(frames: TrainingFrames, among_N: NDArray[np.bool_], rng: np.random.Generator) -> Planes:
    choices = np.flatnonzero(among_N)
    return frames.planes(choices[int(rng.integers(len(choices)))])


def _varied(planes: Planes, rng: np.random.Generator) -> Planes:
    """Vary light and pose as much as any line does, without changing what is normal."""
    image, target, weight = planes
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-_TURN, _TURN), 1.0)
    matrix = matrix + rng.uniform(-_SHIFT, _SHIFT, (2, 1)) * ((0, 0, width), (0, 0, height))
    gain, bias = rng.uniform(1 - _GAIN, 1 + _GAIN), rng.uniform(-_BIAS, _BIAS)
    lit = np.clip(_moved(image, matrix).astype(np.float32) * gain + bias, 0, 255).astype(np.uint8)
    return lit, _moved(target, matrix).astype(np.float32), _moved(weight, matrix).astype(np.float32)


def _moved(plane: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    size = plane.shape[1], plane.shape[0]
    return cv2.warpAffine(plane, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
