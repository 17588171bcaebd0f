"""How well a mask of the product lies after it was carried from one image to others; the ground has to be bright.

    python benchmarks/carried_masks.py FOLDER [--every 9]

FOLDER holds images of one product, the first of which is the reference. The true mask of each is what is darker than
the ground, filled; a second one lies 30 px further inside, where there is no edge to follow. Printed are the mean and
the least intersection over union of the mask as it was drawn, as registration alone lays it, and as it is carried; then
the same with the images lit from one side. "Found again" are drawn polygons on copies of the images that were turned,
scaled, shifted, darkened and made noisy, where the truth is known exactly.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.images import decode
from ssad_ray.core.propagation import carry, overlap
from ssad_ray.core.registration import register
from ssad_ray.core.rng import generator
from ssad_ray.core.warp import Block, sample

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Case = tuple[Image, Mask, Image, Mask]

_GROUND = 40  # grey levels above Otsu's threshold
_INSIDE_PX = 61


def product(image: Image) -> Mask:
    """Return the largest thing that is darker than the ground, filled."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    dark = (grey < min(threshold + _GROUND, 235)).astype(np.uint8)
    outlines, _ = cv2.findContours(
        cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    filled = cv2.drawContours(np.zeros_like(dark), [max(outlines, key=cv2.contourArea)], -1, 1, -1)
    return np.asarray(filled > 0)


def inner(mask: Mask) -> Mask:
    """Return what is at least 30 px inside a mask."""
    return np.asarray(cv2.erode(mask.view(np.uint8), np.ones((_INSIDE_PX, _INSIDE_PX), np.uint8)) > 0)


def lit(image: Image) -> Image:
    """Return an image that is darker to the left and below."""
    height, width = image.shape[:2]
    light = np.outer(np.linspace(1.0, 0.85, height), np.linspace(0.7, 1.1, width))
    return np.clip(image * light[..., np.newaxis], 0, 255).astype(np.uint8)


def polygon(image: Image, index: int) -> Case:
    """Draw a polygon and move the image under it."""
    rng, (height, width) = generator(index, "polygon"), image.shape[:2]
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 9)), rng.uniform(0.2, 0.45, 9) * min(height, width)
    corners = np.stack([width / 2 + radii * np.cos(angles), height / 2 + radii * np.sin(angles)], 1).astype(np.int32)
    mask = cv2.fillPoly(np.zeros((height, width), np.uint8), [corners], 1)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-1.5, 1.5), rng.uniform(0.98, 1.02))
    matrix[:, 2] += rng.uniform(-0.04, 0.04, 2) * width
    moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT).astype(float)
    moved = moved * rng.uniform(0.85, 1.1) + rng.normal(0, 4, image.shape)
    truth = cv2.warpAffine(mask.astype(np.float32), matrix, (width, height)) > 0.5
    return image, mask > 0, np.clip(moved, 0, 255).astype(np.uint8), np.asarray(truth)


def show(name: str, cases: Iterable[Case]) -> None:
    """Print one line."""
    rows, seconds = [], []
    for reference, mask, image, truth in cases:
        registered = register(reference, image)
        height, width = image.shape[:2]
        laid = sample(mask.astype(np.float32), registered.warp.places(Block(0, 0, height, width), height, width)) > 0.5
        begun = time.process_time()
        carried = carry(mask, registered, image)
        seconds.append(time.process_time() - begun)
        rows.append([overlap(each, truth) for each in (mask, laid, carried)])
    means, least = np.mean(rows, axis=0), np.min(rows, axis=0)
    figures = "   ".join(f"{mean:.4f} ({low:.4f})" for mean, low in zip(means, least, strict=True))
    print(f"{name:24}{len(rows):3}   {figures}   {np.median(seconds):.2f} s", flush=True)


def main() -> None:
    """Print a line per kind of mask and light."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(arguments.folder.rglob("*.png"))[:: arguments.every]
    reference, *others = (decode(path.read_bytes(), 10**9) for path in paths)
    print(" " * 27 + "   as drawn          registered        carried           processor time of the last step")
    masks: dict[str, Callable[[Image], Mask]] = {"product": product, "inside": lambda image: inner(product(image))}
    for name, mask in masks.items():
        show(name, ((reference, mask(reference), each, mask(each)) for each in others))
        show(f"{name}, lit from a side", ((reference, mask(reference), lit(each), mask(each)) for each in others))
    show("polygon found again", (polygon(each, index) for index, each in enumerate(others)))


if __name__ == "__main__":
    main()
