"""The embedded product: a brushed metal plate with holes and print, and a camera that never sees it twice the same.

A plate is drawn as layers in its own frame, twice as fine as the photograph. Defects change layers; the photographs of
the changed plate and of the sound one, through the same camera, differ in exactly the defect.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Layer = NDArray[np.float32]

OVERSAMPLING = 2
METAL_LEVEL = 150.0
METAL_TINT = np.array((0.97, 1.0, 1.03), np.float32)
INK_COLOUR = np.array((38.0, 44.0, 78.0), np.float32)
BELT_COLOUR = np.array((46.0, 48.0, 44.0), np.float32)
HOLES = {
    "bore": (0.50, 0.33, 0.170),
    "upper left": (0.18, 0.13, 0.050),
    "upper right": (0.18, 0.87, 0.050),
    "lower left": (0.82, 0.13, 0.050),
    "lower right": (0.82, 0.87, 0.050),
    "window": (0.50, 0.60, 0.075),
}
"""Centre as shares of height and width, radius as a share of the height (or 0.7 of the width, if that is less)."""


@dataclass(frozen=True, slots=True)
class Plate:
    """Layers of one plate, each (h, w) float32 in the plate's frame.

    Attributes:
        metal: Coverage by metal; holes and surroundings are 0.
        ink: Coverage by print.
        relief: Grey levels that chamfers, scratches and dents add by their shading.
        film: Opacity of what has dried on the surface.
        dirt: Coverage by foreign matter, on metal and holes alike.
        film_colour: RGB, 0 to 255.
        dirt_colour: RGB, 0 to 255.
    """

    metal: Layer
    ink: Layer
    relief: Layer
    film: Layer
    dirt: Layer
    film_colour: tuple[float, float, float] = (96.0, 72.0, 44.0)
    dirt_colour: tuple[float, float, float] = (40.0, 36.0, 34.0)


@dataclass(frozen=True, slots=True)
class Camera:
    """Where a plate lies and how it is lit: everything of a photograph but the plate and the noise.

    Attributes:
        pose: (2, 3) affine map from the plate's frame to the photograph.
        light: (H, W, 3) factor.
        glare: (H, W) grey levels that the metal reflects on top.
        blur_px: Gaussian sigma of the defocus.
    """

    pose: NDArray[np.float64]
    light: Layer
    glare: Layer
    blur_px: float


def make_plate(height: int, width: int, rng: np.random.Generator) -> Plate:
    """Draw a sound plate for photographs of `height` x `width`: its own brushing, lot number and print position."""
    metal, relief = drilled(height, width)
    zero = np.zeros_like(metal)
    relief = relief + _brushing(metal.shape, rng)
    lot = f"LOT {rng.integers(100_000):05d}"
    dy, dx = rng.normal(0.0, 0.003 * height, 2)
    ink = _printed(height, width, lot, dy, dx) * np.float32(rng.uniform(0.7, 0.95))
    return Plate(metal, ink, relief, zero, zero)


def make_camera(height: int, width: int, rng: np.random.Generator) -> Camera:
    """Draw a pose within some pixels, 3 degrees and 2 %, and an uneven, tinted light with a band of glare."""
    fine = OVERSAMPLING
    turn, zoom = np.clip(rng.normal(0.0, (0.5, 0.004)), (-3.0, -0.02), (3.0, 0.02))
    middle = np.array((width, height)) / 2
    pose = np.asarray(cv2.getRotationMatrix2D((middle * fine).tolist(), turn, (1.0 + zoom) / fine), np.float64)
    shift = np.clip(rng.normal(0.0, 0.004, 2), -0.02, 0.02) * min(height, width)
    pose[:, 2] += shift - middle * (fine - 1)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    tilt = rng.uniform(-0.1, 0.1, 2)
    gain = rng.uniform(0.9, 1.08) * (1.0 + tilt[0] * y + tilt[1] * x)
    light = gain[..., None] * rng.normal(1.0, 0.02, 3)
    angle, offset, spread = rng.uniform(0, np.pi), rng.uniform(-1, 1), rng.uniform(0.15, 0.5)
    glare = rng.uniform(0, 28) * np.exp(-(((y * np.sin(angle) + x * np.cos(angle) - offset) / spread) ** 2))
    return Camera(pose, light.astype(np.float32), glare.astype(np.float32), rng.uniform(0.3, 0.8))


def photograph(plate: Plate, camera: Camera) -> NDArray[np.float32]:
    """Return the (H, W, 3) photograph in grey levels, without noise, not yet clipped."""
    size = camera.glare.shape[::-1]
    metal, ink, relief, film, dirt = (
        cv2.warpAffine(layer, camera.pose, size)[..., None]
        for layer in (plate.metal, plate.ink, plate.relief, plate.film, plate.dirt)
    )
    surface = (METAL_LEVEL + relief + camera.glare[..., None]) * METAL_TINT
    for coverage, colour in ((ink, INK_COLOUR), (film, np.array(plate.film_colour, np.float32))):
        surface = surface + coverage * (colour - surface)
    scene = BELT_COLOUR + metal * (surface - BELT_COLOUR)
    scene = scene + dirt * (np.array(plate.dirt_colour, np.float32) - scene)
    return np.asarray(cv2.GaussianBlur(scene * camera.light, (0, 0), camera.blur_px), np.float32)


@lru_cache(maxsize=16)
def drilled(height: int, width: int, without: str | None = None) -> tuple[Layer, Layer]:
    """Return the layers metal and relief of a blank with all holes, or all but one."""
    fine = OVERSAMPLING
    blank = np.zeros((height * fine, width * fine), np.uint8)
    cut = 0.07 * min(height, width) * fine
    y0, x0, y1, x1 = 0.06 * height * fine, 0.05 * width * fine, 0.94 * height * fine, 0.95 * width * fine
    top, bottom = [(x0 + cut, y0), (x1 - cut, y0), (x1, y0 + cut)], [(x1, y1 - cut), (x1 - cut, y1), (x0 + cut, y1)]
    outline = np.array([*top, *bottom, (x0, y1 - cut), (x0, y0 + cut)])
    cv2.fillPoly(blank, [np.rint(outline).astype(np.int32)], 255, cv2.LINE_AA)
    chamfer = np.zeros_like(blank)
    for y, x, radius in _holes(height, width, without):
        cv2.circle(chamfer, (x, y), round(1.3 * radius), 255, max(1, round(0.22 * radius)), cv2.LINE_AA)
        cv2.circle(blank, (x, y), radius, 0, cv2.FILLED, cv2.LINE_AA)
    metal = blank.astype(np.float32) / 255.0
    edge = cv2.GaussianBlur(metal, (0, 0), 1.5 * fine)
    relief = 34.0 * (chamfer / 255.0) + 60.0 * (np.minimum(edge, 0.9) - 0.9)
    return metal, relief.astype(np.float32)


def _holes(height: int, width: int, without: str | None) -> Iterator[tuple[int, int, int]]:
    unit = OVERSAMPLING * min(height, 0.7 * width)
    for name, (y, x, radius) in HOLES.items():
        if name != without:
            yield round(y * height * OVERSAMPLING), round(x * width * OVERSAMPLING), round(radius * unit)


def _brushing(shape: tuple[int, ...], rng: np.random.Generator) -> Layer:
    """Return streaks along the plate, of several lengths, and slow waves of brightness."""
    height, width = shape
    streaks = np.zeros((height, width), np.float32)
    for stretch, thick, strength in ((64, 1, 7.0), (24, 2, 5.0), (90, 24, 4.0)):
        grid = rng.standard_normal((height // thick + 2, width // stretch + 2), dtype=np.float32)
        streaks += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
    return streaks * np.float32(rng.uniform(0.5, 1.2))


def _printed(height: int, width: int, lot: str, dy: float, dx: float) -> Layer:
    """Return the layer of ink: a logo, a frame around the window, a lot number; moved by (dy, dx) photograph pixels."""
    fine = OVERSAMPLING
    layer = np.zeros((height * fine, width * fine), np.uint8)
    unit = min(height, 0.7 * width) * fine / 320.0

    def at(y: float, x: float) -> tuple[int, int]:
        return round((x * width + dx) * fine), round((y * height + dy) * fine)

    thick = max(1, round(3 * unit))
    cv2.putText(layer, "SSAD-RAY", at(0.22, 0.36), cv2.FONT_HERSHEY_DUPLEX, 1.0 * unit, 255, thick, cv2.LINE_AA)
    cv2.putText(layer, lot, at(0.86, 0.36), cv2.FONT_HERSHEY_SIMPLEX, 0.85 * unit, 255, thick, cv2.LINE_AA)
    cv2.rectangle(layer, at(0.37, 0.69), at(0.63, 0.88), 255, thick, cv2.LINE_AA)
    for step in range(4):
        cv2.line(layer, at(0.42 + 0.055 * step, 0.71), at(0.42 + 0.055 * step, 0.86 - 0.03 * step), 255, thick)
    return layer.astype(np.float32) / 255.0
