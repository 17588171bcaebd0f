"""What defects are filled with: pieces of images, procedural noise, smooth continuations."""

import cv2
import numpy as np

from ssad_ray.core.synthesis.canvas import Image, Pixels, Point


def transplant(donor: Image, shape: tuple[int, int], centre: Point, rng: np.random.Generator, turned: bool) -> Pixels:
    """Return a (H, W, 3) frame that shows a random place of the donor at `centre`, turned and scaled if asked."""
    angle, scale = (rng.uniform(0.0, 2 * np.pi), rng.uniform(0.7, 1.4)) if turned else (0.0, 1.0)
    origin = rng.uniform((0, 0), donor.shape[:2])
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([(cos, -sin, 0.0), (sin, cos, 0.0)])
    matrix[:, 2] = origin[::-1] - matrix[:, :2] @ np.array(centre)[::-1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(donor, matrix, shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return moved.astype(np.float32)


def colour_jitter(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast and colour balance by up to `strength` (1 is everything)."""
    gain = 1.0 + strength * rng.uniform(-1.0, 1.0) + 0.5 * strength * rng.uniform(-1.0, 1.0, 3)
    mean = np.array(cv2.mean(pixels)[:3])
    offset = mean * (1.0 - gain) + 128.0 * strength * rng.uniform(-1.0, 1.0)
    return np.clip(pixels * gain.astype(np.float32) + offset.astype(np.float32), 0.0, 255.0)


def cloud(shape: tuple[int, int], rng: np.random.Generator, coarse_px: float, octaves: int) -> Pixels:
    """Return (H, W, 3) smooth noise of about zero mean and unit deviation; its largest structures are `coarse_px`."""
    height, width = shape
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(octaves):
        cell = max(1.0, coarse_px / 2**octave)
        grid = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2, 3), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.7**octave
    return total / np.float32(0.75 * np.sqrt(sum(0.49**octave for octave in range(octaves))))


def procedural(shape: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Return a (H, W, 3) texture that no photograph shows: clouds, stripes or cells in random colours."""
    base, tone = random_colour(rng), random_shift(rng, 20.0, 80.0)
    size = np.sqrt(shape[0] * shape[1])
    noise = cloud(shape, rng, size * rng.uniform(0.02, 0.3), 3)
    match rng.integers(3):
        case 0:
            return base + 45.0 * noise
        case 1:
            y, x = np.ogrid[: shape[0], : shape[1]]
            angle, period = rng.uniform(0, np.pi), rng.uniform(2.5, size / 6)
            phase = (y * np.sin(angle) + x * np.cos(angle)) * (2 * np.pi / period)
            stripes = np.sin(phase.astype(np.float32) + 0.7 * noise[..., 0])
            return np.asarray(base + stripes[..., None] * tone, np.float32)
        case _:
            steps = np.floor(noise[..., :1] * rng.uniform(1.0, 3.0))
            return np.asarray(base + steps * tone, np.float32)


def grain(pixels: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Add noise of `strength` grey levels, from pixel to pixel another and in all channels the same."""
    return pixels + rng.normal(0.0, strength, (*pixels.shape[:2], 1)).astype(np.float32)


def continued(pixels: Pixels, known: Pixels) -> Pixels:
    """Continue (H, W, 3) values smoothly from where `known` (H, W) is 1 into where it is 0.

    Pull-push over an image pyramid: a fast stand-in for the membrane (Laplace) equation.
    """
    height, width = known.shape
    if min(height, width) < 3:
        total = known.sum()
        mean = (pixels * known[..., None]).sum((0, 1)) / total if total > 0 else np.zeros(3, np.float32)
        return np.broadcast_to(mean, pixels.shape).astype(np.float32)
    weight = cv2.pyrDown(known)
    coarse = np.asarray(cv2.pyrDown(pixels * known[..., None]) / np.maximum(weight, 1e-6)[..., None], np.float32)
    filled = continued(coarse, np.minimum(4.0 * weight, 1.0).astype(np.float32))
    upper = cv2.pyrUp(filled, dstsize=(width, height))
    return np.asarray(upper + known[..., None] * (pixels - upper), np.float32)


def random_colour(rng: np.random.Generator) -> Pixels:
    """Draw a colour (3,): any brightness, rarely far from grey, as most dirt and most materials are."""
    colour = rng.uniform(0.0, 255.0) + rng.exponential(18.0) * rng.standard_normal(3)
    return np.asarray(np.clip(colour, 0.0, 255.0), np.float32)


def random_shift(rng: np.random.Generator, weakest: float, strongest: float) -> Pixels:
    """Draw a change of colour (3,): darker or brighter by so many grey levels, slightly tinted."""
    level = rng.uniform(weakest, strongest) * rng.choice((-1.0, 1.0))
    return np.asarray(level * (1.0 + rng.normal(0.0, 0.2, 3)), np.float32)
