"""How often a defect's type is right when it spread from a few that were named: true regions, several draws.

    python benchmarks/defect_types.py --data FOLDER

FOLDER is a data set whose defects have types: with true masks (regions are their pieces) or with boxes and templates
(regions are what differs from the template inside a box, or the box where nothing does). Of every type 1, 3, 5 and 10
regions are drawn to be named, as far as it has more; the others are judged. Beside it stand the nearest named region
and the nearest mean of the named ones of a type, with the same features, and the most frequent type.
"""

import argparse
from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.images import decode, decode_mask
from ssad_ray.core.masks import encode_mask
from ssad_ray.core.region_features import describe
from ssad_ray.core.rng import generator
from ssad_ray.core.spreading import UNNAMED, comparable, spread
from ssad_ray.core.storage import read_bytes
from ssad_ray.datasets.catalog import catalog
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods.showing import with_template

_DRAWS = 20
_NAMED = (1, 3, 5, 10)
_LEAST_PX = 15
_DIFFERENT = 64  # grey levels
_LIMITS = RunConfig().data


def pieces(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Yield the connected pieces of a mask that are no crumbs."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    yield from (labels == label for label in range(1, len(stats)) if stats[label, cv2.CC_STAT_AREA] >= _LEAST_PX)


def true_regions(row: ManifestRow) -> Iterator[tuple[NDArray[np.float32], str]]:
    """Yield features and type of every defect of an image."""
    image = decode(read_bytes(row.uri, _LIMITS.max_image_bytes), _LIMITS.max_image_px)
    if row.mask_uri is not None and row.defect_type is not None:
        mask = decode_mask(read_bytes(row.mask_uri, _LIMITS.max_image_bytes), *image.shape[:2])
        yield from ((describe(image, encode_mask(piece)), row.defect_type) for piece in pieces(mask))
    if not row.boxes:
        return
    shown = with_template(image, row.sample, _LIMITS)
    differs = np.abs(shown[..., :3].astype(float) - shown[..., 3:]).mean(axis=2) > _DIFFERENT
    differs = cv2.morphologyEx(differs.view(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) > 0
    for true in row.boxes:
        x0, y0, x1, y1 = map(round, true.box)
        inside = np.zeros_like(differs)
        inside[y0:y1, x0:x1] = True
        mask = inside & differs
        yield describe(shown, encode_mask(mask if mask.sum() >= _LEAST_PX / 2 else inside)), true.defect_type


def judged(features: NDArray[np.float32], types: NDArray[np.int64], num: int, least: float) -> NDArray[np.float64]:
    """Return right types as shares: spread, where confident, share that is confident, nearest, nearest mean."""
    rows, apart_from = [], comparable(features)
    names = range(int(types.max()) + 1)
    for draw in range(_DRAWS):
        rng = generator(draw, "named", num)
        drawn = np.concatenate([rng.permutation(np.flatnonzero(types == name))[:num] for name in names])
        given = np.full(len(types), UNNAMED)
        given[drawn] = types[drawn]
        found, shares = spread(features, given)
        is_judged = given == UNNAMED
        right, sure = (found == types)[is_judged], (shares >= least)[is_judged]
        nearest = given[drawn][np.square(apart_from[:, None] - apart_from[drawn]).sum(2).argmin(1)]
        means = np.stack([apart_from[given == name].mean(0) for name in names])
        nearest_mean = np.square(apart_from[:, None] - means).sum(2).argmin(1)
        others = [(each == types)[is_judged].mean() for each in (nearest, nearest_mean)]
        rows.append([right.mean(), right[sure].mean() if sure.any() else np.nan, sure.mean(), *others])
    return np.array(rows)


def main() -> None:
    """Print one line per number of named regions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--confident", type=float, default=0.5, help="share from which a type counts as known")
    arguments = parser.parse_args()
    found = [each for row in catalog(arguments.data, _LIMITS).rows if row.error is None for each in true_regions(row)]
    counts = Counter(name for _, name in found)
    names = sorted(counts)
    features, types = np.stack([each for each, _ in found]), np.array([names.index(name) for _, name in found])
    print(f"{len(types)} regions: {dict(counts)}; most frequent {max(counts.values()) / len(types):.2f}")
    print("named  spread       if confident confident    nearest      nearest mean")
    for num in (each for each in _NAMED if each < min(counts.values())):
        table = judged(features, types, num, arguments.confident)
        print(f"{num:5}  " + "  ".join(f"{np.nanmean(each):.2f} ± {np.nanstd(each):.2f}" for each in table.T))


if __name__ == "__main__":
    main()
