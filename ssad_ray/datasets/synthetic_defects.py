"""Defects of the embedded plate, as they happen to a plate: a layer changes, the camera does the rest.

Deliberately not the planted defects of the package: a demonstration in which training and test defects come from one
generator would prove nothing.
"""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.datasets.synthetic_plate import HOLES, OVERSAMPLING, Layer, Plate, drilled

Defect = Callable[[Plate, np.random.Generator], Plate]


def scratch(plate: Plate, rng: np.random.Generator) -> Plate:
    """Something hard was drawn over the surface: one or two parallel arcs, deepest in the middle."""
    start = _point_on(plate.metal, rng)
    length, angle = _unit(plate) * rng.uniform(0.2, 0.7), rng.uniform(0, 2 * np.pi)
    along = np.array((np.sin(angle), np.cos(angle))) * length
    bend = np.array((np.cos(angle), -np.sin(angle))) * length * rng.normal(0.0, 0.15)
    t = np.linspace(0.0, 1.0, 40)[:, None]
    path = start + (t - 0.5) * along + 4 * t * (1 - t) * bend
    depth = rng.uniform(55.0, 120.0) * rng.choice((-1.0, 1.0))
    relief = np.zeros_like(plate.relief)
    for gap in (0.0, 5.0)[: rng.integers(1, 3)]:
        for a, b, pressure in zip(path[:-1], path[1:], np.sin(np.pi * t[:-1, 0]), strict=True):
            cv2.line(relief, _pixel(a + gap), _pixel(b + gap), float(depth * (0.35 + 0.65 * pressure)), 2)
    return replace(plate, relief=plate.relief + cv2.GaussianBlur(relief, (0, 0), 0.8))


def stain(plate: Plate, rng: np.random.Generator) -> Plate:
    """A drop dried: splashes that ran together, darkest along their rim."""
    centre, size = np.array(_point_on(plate.metal, rng)), _unit(plate) * rng.uniform(0.05, 0.13)
    rows, columns = np.ogrid[: plate.film.shape[0], : plate.film.shape[1]]
    wet = np.zeros_like(plate.film)
    for dy, dx in rng.normal(0.0, 0.6 * size, (4, 2)):
        squared = (rows - centre[0] - dy) ** 2 + (columns - centre[1] - dx) ** 2
        wet += np.exp(-squared / (2 * (rng.uniform(0.4, 0.8) * size) ** 2)).astype(np.float32)
    inside = 1.0 / (1.0 + np.exp(np.clip(-(wet - 0.55) * 14.0, -30, 30)))
    rim = np.exp(-(((wet - 0.68) / 0.16) ** 2))
    film = inside * (rng.uniform(0.22, 0.5) + 0.2 * rim)
    colour = rng.uniform((60, 50, 25), (120, 95, 70))
    return replace(plate, film=film.astype(np.float32), film_colour=tuple(colour.tolist()))


def missing_hole(plate: Plate, rng: np.random.Generator) -> Plate:
    """One of the holes was not drilled."""
    name = str(rng.choice([name for name in HOLES if name != "bore"]))
    height, width = (side // OVERSAMPLING for side in plate.metal.shape)
    (metal, relief), (_, usual) = drilled(height, width, name), drilled(height, width)
    return replace(plate, metal=metal, relief=plate.relief + relief - usual)


def dent(plate: Plate, rng: np.random.Generator) -> Plate:
    """A blow left a hollow: the flank turned to the light is bright, the other one dark."""
    y, x = _point_on(plate.metal, rng)
    radius, stretch = _unit(plate) * rng.uniform(0.04, 0.10), rng.uniform(0.7, 1.4)
    rows, columns = np.ogrid[: plate.relief.shape[0], : plate.relief.shape[1]]
    v, u = (rows - y) / (radius * stretch), (columns - x) * stretch / radius
    light = rng.uniform(0, 2 * np.pi)
    slope = (v * np.sin(light) + u * np.cos(light)) * np.exp(-(v**2 + u**2))
    return replace(plate, relief=plate.relief + (rng.uniform(100.0, 220.0) * slope).astype(np.float32))


def particle(plate: Plate, rng: np.random.Generator) -> Plate:
    """Foreign matter lies on the plate: a curled fibre or some grains, dark or light."""
    centre, unit = np.array(_point_on(plate.metal, rng)), _unit(plate)
    dirt = np.zeros(plate.dirt.shape, np.uint8)
    if rng.random() < 0.5:
        t = np.linspace(0.0, rng.uniform(1.5, 5.0), 50)
        loop = np.stack([np.sin(t * rng.uniform(0.8, 1.6)), np.cos(t) + 0.3 * t], axis=1)
        path = centre + unit * rng.uniform(0.03, 0.07) * (loop - loop.mean(axis=0))
        points = [_pixel(point) for point in path]
        cv2.polylines(dirt, [np.array(points, np.int32)], False, 255, 3, cv2.LINE_AA)
    else:
        for offset in rng.normal(0.0, 0.03 * unit, (rng.integers(1, 5), 2)):
            axes = np.maximum(2, np.rint(unit * rng.uniform(0.008, 0.022, 2))).astype(int).tolist()
            cv2.ellipse(dirt, _pixel(centre + offset), axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
    darkest, brightest = ((25, 25, 25), (70, 60, 60)) if rng.random() < 0.6 else ((215, 205, 195), (250, 250, 250))
    colour = rng.uniform(darkest, brightest)
    return replace(plate, dirt=dirt.astype(np.float32) / 255.0, dirt_colour=tuple(colour.tolist()))


def print_smear(plate: Plate, rng: np.random.Generator) -> Plate:
    """Wet ink was wiped: it trails off to one side and pales where it was."""
    y, x = _point_on(plate.ink, rng)
    unit = _unit(plate)
    reach = max(3, round(unit * rng.uniform(0.12, 0.3)))
    trail = np.exp(-np.arange(reach) / (0.5 * reach)).astype(np.float32)[None] / (0.15 * reach)
    to_the_left = rng.random() < 0.5
    kernel, anchor = (trail, (0, 0)) if to_the_left else (trail[:, ::-1].copy(), (reach - 1, 0))
    wiped = np.minimum(cv2.filter2D(plate.ink, -1, kernel, anchor=anchor, borderType=cv2.BORDER_CONSTANT), 0.9)
    rows, columns = np.ogrid[: plate.ink.shape[0], : plate.ink.shape[1]]
    hand = np.exp(-(((rows - y) / (0.09 * unit)) ** 4) - ((columns - x) / (0.22 * unit)) ** 4).astype(np.float32)
    return replace(plate, ink=plate.ink + hand * (np.maximum(wiped, 0.55 * plate.ink) - plate.ink))


DEFECTS: dict[str, Defect] = {
    "dent": dent,
    "missing_hole": missing_hole,
    "particle": particle,
    "print_smear": print_smear,
    "scratch": scratch,
    "stain": stain,
}


def _unit(plate: Plate) -> float:
    return float(min(plate.metal.shape))


def _point_on(layer: Layer, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a point (y, x) where the layer is mostly covered."""
    y, x = divmod(int(rng.choice(np.flatnonzero(layer > 0.5))), layer.shape[1])
    return y, x


def _pixel(point: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(point[1])), round(float(point[0]))
