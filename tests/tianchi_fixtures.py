"""Made cloth and made tiles in the exact formats of the two Tianchi contests, at any size.

    python tests/tianchi_fixtures.py tile FOLDER --height 6000 --width 8192 --num-good 4 --num-defective 2 --cameras 1

The contests' own pictures are not needed for it, and none are copied.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ssad_ray.core.rng import generator

FABRIC_PARTS = ("guangdong1_round2_train_part1_20190924", "guangdong1_round2_train_part2_20190924")
TILE_FOLDER = "tile_round1_train_20201231"
MARGIN_PX = 2
VISIBLE = 10
BELT = 14
EDGE_BLUR_PX = 1.5
GRAIN_PX = 256
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Kind:
    """A defect: what its shape is filled with, and how opaque it is."""

    shape: str
    colour: tuple[int, int, int]
    opacity: float = 0.9


FABRIC_KINDS = {
    "沾污": Kind("blob", (40, 32, 20), 0.8),
    "破洞": Kind("blob", (6, 6, 6), 1.0),
    "花毛": Kind("line", (250, 248, 240)),
    "虫粘": Kind("specks", (20, 14, 8)),
    "褶子": Kind("line", (20, 20, 24), 0.7),
    "蜡斑": Kind("blob", (252, 250, 236), 0.7),
}
TILE_KINDS = {
    1: Kind("edge", (12, 12, 12), 1.0),
    2: Kind("corner", (12, 12, 12), 1.0),
    3: Kind("specks", (252, 252, 252), 1.0),
    4: Kind("blob", (250, 250, 250), 0.8),
    5: Kind("blob", (50, 50, 50)),
    6: Kind("ring", (245, 245, 245)),
}


def write_fabric(
    root: Path,
    num_normal: int = 12,
    num_defective: int = 12,
    height: int = 192,
    width: int = 288,
    size_px: tuple[int, int] = (12, 20),
    seed: int = 0,
) -> Path:
    """Write round 2: a folder for each image, with its template in it, and one annotation file for all parts.

    Normal images have a pattern each, of defective ones two share one. An image lies on another repeat than its
    template, is turned and stretched a little, and is brighter or darker.
    """
    records = []
    for is_normal, count in ((True, num_normal), (False, num_defective)):
        for index in range(count):
            pattern = f"{'N' if is_normal else 'D'}{index if is_normal else index // 2:03d}"
            rng = generator(seed, "cloth", pattern, index)
            cloth = _cloth(generator(seed, "pattern", pattern), height, width)
            template, image = cloth[:height, :width], _photographed(cloth, height, width, rng)
            stem = f"{pattern}_{int(rng.integers(10**9)):09d}"
            folder = root / FABRIC_PARTS[is_normal] / ("normal" if is_normal else "defect") / stem
            if not is_normal:
                name = list(FABRIC_KINDS)[index % len(FABRIC_KINDS)]
                box = _plant(image, FABRIC_KINDS[name], *_somewhere(height, width, rng), size_px, rng)
                records.append({"name": f"{stem}.jpg", "defect_name": name, "bbox": box})
            _save(folder / f"{stem}.jpg", image)
            _save(folder / f"template_{pattern}.jpg", template)
    _write_records(root / FABRIC_PARTS[0] / "Annotations" / "anno_train.json", records)
    return root


def write_tiles(
    root: Path,
    num_good: int = 6,
    num_defective: int = 6,
    height: int = 144,
    width: int = 192,
    size_px: tuple[int, int] = (12, 20),
    cameras: Sequence[int] = (1, 2, 3),
    belt: float = 0.06,
    seed: int = 0,
) -> Path:
    """Write round 1: some photographs of each tile, grey by cameras 1 and 2, coloured and smaller by camera 3.

    Round each tile some of the dark belt is seen, `belt` of the shorter side. A good tile has no record; in the
    contest's own first round every picture to train on has one.
    """
    records = []
    for index in range(num_good + num_defective):
        tile = f"{200 + index}_{index % 100}_t202011250858{index:05d}"
        for camera in cameras:
            shape = (height, width) if camera < 3 else (round(height * 7 / 12), width // 2)
            rng = generator(seed, "tile", index, camera)
            image, corners = _tile(*shape, rng, belt, is_grey=camera < 3)
            places = generator(seed, "defects", index)
            name = f"{tile}_CAM{camera}.jpg"
            for number in range(2 if index >= num_good else 0):
                category = 1 + (index - num_good + 3 * number) % len(TILE_KINDS)
                y, x = _on_tile(TILE_KINDS[category].shape, corners, places)
                box = _plant(image, TILE_KINDS[category], y, x, size_px, rng)
                size = {"image_height": shape[0], "image_width": shape[1]}
                records.append({"name": name, **size, "category": category, "bbox": box})
            _save(root / TILE_FOLDER / "train_imgs" / name, image, is_grey=camera < 3)
    _write_records(root / TILE_FOLDER / "train_annos.json", records)
    return root


def _cloth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A printed pattern that repeats, larger than a picture of it by a repeat each way."""
    rows, columns = int(rng.integers(44, 60)), int(rng.integers(52, 76))
    motif = np.full((rows, columns, 3), rng.integers(120, 190, 3), np.uint8)
    for _ in range(6):
        y, x = int(rng.integers(rows)), int(rng.integers(columns))
        axes, angle = rng.integers(5, 15, 2).tolist(), float(rng.uniform(0, 180))
        colour = rng.integers(40, 215, 3).tolist()
        for dy in (-rows, 0, rows):
            for dx in (-columns, 0, columns):
                cv2.ellipse(motif, (x + dx, y + dy), axes, angle, 0, 360, colour, -1, cv2.LINE_AA)
    motif = cv2.GaussianBlur(np.tile(motif, (3, 3, 1)), (0, 0), 0.8)[rows : 2 * rows, columns : 2 * columns]
    cloth = np.tile(motif, (height // rows + 3, width // columns + 3, 1))
    return np.ascontiguousarray(cloth[: height + 2 * rows, : width + 2 * columns])


def _photographed(cloth: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    turn, zoom = rng.normal(0, 0.3), 1 + rng.normal(0, 0.003)
    matrix = cv2.getRotationMatrix2D((cloth.shape[1] / 2, cloth.shape[0] / 2), turn, zoom)
    matrix[:, 2] -= rng.uniform(8, 40, 2)
    laid = cv2.warpAffine(cloth, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    taken = laid * rng.uniform(0.92, 1.08) + rng.uniform(-5, 5) + rng.normal(0, 2, laid.shape)
    return np.clip(np.rint(taken), 0, 255).astype(np.uint8)


def _tile(
    height: int, width: int, rng: np.random.Generator, belt: float, *, is_grey: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A mottled tile on a dark belt, and its corners (4, 2) as (x, y), clockwise."""
    inset = belt * min(height, width)
    turn = rng.normal(0, 0.04) * inset
    right, bottom = width - inset, height - inset
    corners = np.array([(inset + turn, inset), (right, inset + turn), (right - turn, bottom), (inset, bottom - turn)])
    level = cv2.resize(rng.normal(160, 6, (6, 8)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    is_tile = cv2.fillConvexPoly(np.zeros((height, width), np.uint8), np.rint(corners).astype(np.int32), 1)
    level = cv2.GaussianBlur(np.where(is_tile, level, np.float32(BELT)), (0, 0), EDGE_BLUR_PX)
    grain = rng.normal(0, 2.5, (GRAIN_PX, GRAIN_PX)).astype(np.float32)
    level += np.tile(grain, (height // GRAIN_PX + 1, width // GRAIN_PX + 1))[:height, :width]
    channels = [np.clip(level * tint, 0, 255).astype(np.uint8) for tint in ((1, 1, 1) if is_grey else (1.04, 1, 0.93))]
    return np.stack(channels, axis=2), corners


def _somewhere(height: int, width: int, rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * width


def _on_tile(shape: str, corners: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Where a defect lies: on a corner, on an edge, or inside."""
    at, along, inside = int(rng.integers(4)), rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.85, 2)
    if shape == "corner":
        x, y = corners[at]
    elif shape == "edge":
        x, y = along * corners[at] + (1 - along) * corners[(at + 1) % 4]
    else:
        x, y = corners[0] + inside * (corners[2] - corners[0])
    return float(y), float(x)


def _plant(
    image: np.ndarray, kind: Kind, y: float, x: float, size_px: tuple[int, int], rng: np.random.Generator
) -> list[float]:
    """Draw a defect into an image and return its box as an annotator draws it, a little wider than need be."""
    size = int(rng.integers(*size_px))
    alpha = np.zeros((4 * size, 4 * size), np.uint8)
    middle, angle = 2 * size, float(rng.uniform(0, 180))
    if kind.shape == "line":
        bend = np.linspace(-1.6, 1.6, 20) * size
        path = np.stack([bend, 0.15 * size * np.sin(bend / size * 2)], axis=1) @ _rotation(angle) + middle
        cv2.polylines(alpha, [np.rint(path).astype(np.int32)], False, 255, max(2, size // 6), cv2.LINE_AA)
    elif kind.shape == "specks":
        for dy, dx in rng.normal(0, size / 4, (3, 2)):
            cv2.circle(alpha, (round(middle + dx), round(middle + dy)), max(2, size // 4), 255, -1, cv2.LINE_AA)
    else:
        axes = (max(2, size // 2), max(2, round(size * rng.uniform(0.3, 0.5))))
        thickness = max(2, size // 5) if kind.shape == "ring" else -1
        cv2.ellipse(alpha, (middle, middle), axes, angle, 0, 360, 255, thickness, cv2.LINE_AA)
    top, left = round(y) - middle, round(x) - middle
    y0, x0 = max(0, top), max(0, left)
    window = image[y0 : top + 4 * size, x0 : left + 4 * size]
    seen = alpha[y0 - top :, x0 - left :][: window.shape[0], : window.shape[1], np.newaxis] / 255 * kind.opacity
    before = window.astype(float)
    window[:] = np.rint(before + seen * (np.array(kind.colour) - before))
    rows, columns = np.nonzero(np.abs(window - before).max(axis=2) >= VISIBLE)
    height, width = image.shape[:2]
    low = np.array([x0 + columns.min(), y0 + rows.min()]) - rng.uniform(0, MARGIN_PX, 2)
    high = np.array([x0 + columns.max() + 1, y0 + rows.max() + 1]) + rng.uniform(0, MARGIN_PX, 2)
    corners = (*np.maximum(low, 0), *np.minimum(high, (width, height)))
    return [round(float(each), 2) for each in corners]


def _rotation(degrees: float) -> np.ndarray:
    turn = np.deg2rad(degrees)
    return np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _save(path: Path, image: np.ndarray, *, is_grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if is_grey else image).save(path, quality=JPEG_QUALITY)


def _write_records(path: Path, records: list[dict[str, object]]) -> None:
    """Write as the contests do: one flat list, all that is not ASCII escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="ascii")


def main() -> None:
    """Write a data set of tiles or of cloth."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("layout", choices=("fabric", "tile"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--num-good", type=int, default=4)
    parser.add_argument("--num-defective", type=int, default=2)
    parser.add_argument("--size-px", type=int, nargs=2, default=(30, 80), help="of a defect, least and most")
    parser.add_argument("--cameras", type=int, nargs="+", default=(1, 2, 3), help="tile: of 1, 2 and 3")
    parser.add_argument("--belt", type=float, default=0.06, help="tile: belt round it, share of the shorter side")
    asked = parser.parse_args()
    size = {"height": asked.height, "width": asked.width, "size_px": tuple(asked.size_px)}
    if asked.layout == "tile":
        tiles = {"cameras": asked.cameras, "belt": asked.belt}
        write_tiles(asked.folder, asked.num_good, asked.num_defective, **size, **tiles)
    else:
        write_fabric(asked.folder, asked.num_good, asked.num_defective, **size)


if __name__ == "__main__":
    main()
