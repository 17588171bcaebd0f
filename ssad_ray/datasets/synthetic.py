"""A data set without a download: photographs of an invented plate, sound and defective, with exact masks."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.images import encode_png
from ssad_ray.core.records import GOOD
from ssad_ray.core.rng import generator
from ssad_ray.datasets.synthetic_defects import DEFECTS
from ssad_ray.datasets.synthetic_plate import make_camera, make_plate, photograph
from ssad_ray.errors import ConfigError

CATEGORY = "plate"
HEIGHT, WIDTH = 160, 224
SMALLEST_SIDE_PX, LARGEST_SIDE_PX = 64, 2048
MOST_IMAGES = 100_000
VISIBLE = 6.0
"""Grey levels (of 255) by which some channel changes where a defect is."""
SMALLEST_DEFECT_PX = 12
MAX_TRIES = 20
CLOSING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


def render_good(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Return a (height, width, 3) RGB photograph of a sound plate."""
    return _with_noise(photograph(make_plate(height, width, rng), make_camera(height, width, rng)), rng)


def render_defect(
    defect_type: str, rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a photograph of a defective plate and the (height, width) mask of its defect.

    The mask is where the photograph differs visibly from that of the same plate without the defect, both free of
    noise; where shading changes its sign inside a defect, the gap is closed.

    Args:
        defect_type: A name of `DEFECTS`.
    """
    plate, camera = make_plate(height, width, rng), make_camera(height, width, rng)
    sound = np.clip(photograph(plate, camera), 0.0, 255.0)
    for _ in range(MAX_TRIES):
        defective = np.clip(photograph(DEFECTS[defect_type](plate, rng), camera), 0.0, 255.0)
        changed = np.abs(defective - sound).max(axis=2) >= VISIBLE
        mask = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, CLOSING) > 0
        if mask.sum() >= SMALLEST_DEFECT_PX:
            break
    return _with_noise(defective, rng), mask


def write_synthetic(
    root_path: Path,
    num_train: int = 60,
    num_test_good: int = 30,
    num_per_defect: int = 10,
    height: int = HEIGHT,
    width: int = WIDTH,
    seed: int = 0,
) -> Path:
    """Write the data set in the layout of MVTec AD, as PNG.

    An image depends on the seed and its own index, not on how many there are.

    Args:
        root_path: Folder that gets the category folder `plate`; made if needed.
        num_train: Photographs of sound plates in train/good.
        num_test_good: Those in test/good.
        num_per_defect: Photographs in test/<defect type>, with masks, for each of `DEFECTS`.
        height: Of the photographs, px.
        width: Of the photographs, px.
        seed: All randomness derives from it.

    Returns:
        The category folder.

    Raises:
        ConfigError: A size or number out of bounds, or the category folder exists and is not empty.
    """
    _check(height, width, num_train, num_test_good, num_per_defect)
    category_path = root_path / CATEGORY
    if category_path.exists() and any(category_path.iterdir()):
        raise ConfigError(f"{category_path} is not empty; name another folder or delete it first")
    for stage, count in (("train", num_train), ("test", num_test_good)):
        folder = _made(category_path / stage / GOOD)
        for index in range(count):
            image = render_good(generator(seed, CATEGORY, stage, GOOD, index), height, width)
            (folder / f"{index:03d}.png").write_bytes(encode_png(image))
    for defect_type in DEFECTS if num_per_defect else ():
        folder = _made(category_path / "test" / defect_type)
        mask_folder = _made(category_path / "ground_truth" / defect_type)
        for index in range(num_per_defect):
            stream = generator(seed, CATEGORY, "test", defect_type, index)
            image, mask = render_defect(defect_type, stream, height, width)
            (folder / f"{index:03d}.png").write_bytes(encode_png(image))
            (mask_folder / f"{index:03d}_mask.png").write_bytes(encode_png(mask))
    return category_path


def _with_noise(photo: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    noise = rng.standard_normal(photo.shape, dtype=np.float32) * np.float32(rng.uniform(1.5, 4.0))
    noisy: NDArray[np.uint8] = np.rint(np.clip(photo + noise, 0.0, 255.0)).astype(np.uint8)
    return noisy


def _check(height: int, width: int, *counts: int) -> None:
    if not all(SMALLEST_SIDE_PX <= side <= LARGEST_SIDE_PX for side in (height, width)):
        raise ConfigError(
            f"synthetic images of {height}x{width} (HxW) px were asked; each side must be "
            f"{SMALLEST_SIDE_PX} to {LARGEST_SIDE_PX}"
        )
    if not all(0 <= count <= MOST_IMAGES for count in counts):
        raise ConfigError(f"numbers of synthetic images must be 0 to {MOST_IMAGES}; got {list(counts)}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
