"""Which images show the same thing, so that a split does not part them.

Equal bytes are duplicates. So are re-saved, rescaled and slightly brightened copies: images of one category whose
16x16 thumbnails (block means of the grey image less their own 3-px surroundings) differ by less than `_MAX_LEVELS` root
mean square, and by less than `_MAX_SHARE` of the category's median difference.

The first bound was measured on MVTec bottle, DeepPCB and magnetic tiles, 270,000 pairs. JPEG copies down to quality 30
differ by at most 0.7 levels from their original. Only two pairs of photographs come below 1.0, and both show one part
photographed twice; the most alike photographs of different bottles differ by 1.6, of different boards by 22. The
second bound keeps products apart whose good parts all look the same (fixtured parts, featureless sheets): there, two
photographs differ by 0.15 to 0.6 levels, and only what is far below the usual difference is a copy. The price: on
such products, and in categories of two images, only equal bytes count.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ssad_ray.core.images import resize
from ssad_ray.datasets.manifest import ManifestRow

_SIDE = 16
_MAX_LEVELS = 1.0
_MAX_SHARE = 0.2
_BLOCK = 512


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the (256,) float32 fingerprint of an (H, W, 3) image; brightness does not enter it."""
    grey = resize(image, _SIDE, _SIDE).mean(axis=2, dtype=np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 1.0), np.float32).ravel()


def group_duplicates(
    rows: Sequence[ManifestRow], thumbnails: Sequence[NDArray[np.float32] | None]
) -> list[ManifestRow]:
    """Return the rows with final groups: rows joined by layout group, equal bytes or likeness share one.

    A joined group takes the name of its first row. A template is in a group of its own: it looks like the images of its
    pattern, and whoever judges them is given it anyway.
    """
    pairs = [
        _linked(None if row.is_template else (row.category, row.group) for row in rows),
        _linked(None if row.is_template or not row.sha256 else (row.category, row.sha256) for row in rows),
    ]
    by_category: defaultdict[str, dict[int, NDArray[np.float32]]] = defaultdict(dict)
    for index, (row, fingerprint) in enumerate(zip(rows, thumbnails, strict=True)):
        if fingerprint is not None and not row.is_template:
            by_category[row.category][index] = fingerprint
    pairs += [np.array(list(found))[near_duplicates(np.stack(list(found.values())))] for found in by_category.values()]
    links = np.concatenate(pairs)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(len(rows), len(rows)))
    labels = connected_components(graph, directed=False)[1]
    names: dict[int, str] = {}
    for label, row in zip(labels, rows, strict=True):
        names.setdefault(int(label), row.group)
    return [replace(row, group=names[int(label)]) for label, row in zip(labels, rows, strict=True)]


def near_duplicates(thumbnails: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the pairs (M, 2), first below second, of near duplicates among (N, 256) thumbnails of one category."""
    limit = min(_MAX_LEVELS, _MAX_SHARE * _usual_difference(thumbnails))
    # Double precision: the difference of squares below cancels nearly all digits of what is alike.
    points = thumbnails.astype(np.float64)
    squares = np.einsum("nd,nd->n", points, points)
    pairs = []
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances = squares[block, None] + squares[None, start:] - 2 * points[block] @ points[start:].T
        close = np.maximum(distances, 0.0) < limit**2 * points.shape[1]
        pairs.append(np.argwhere(np.triu(close, 1)) + start)
    return np.concatenate(pairs)


def _usual_difference(thumbnails: NDArray[np.float32]) -> float:
    """Return the median difference over at most 10,000 pairs, in grey levels."""
    first, second = np.random.default_rng(0).integers(0, len(thumbnails), (2, 10_000))
    differ = first != second
    if not differ.any():
        return 0.0
    squares = np.square(thumbnails[first[differ]] - thumbnails[second[differ]])
    return float(np.median(np.sqrt(squares.mean(axis=1))))


def _linked(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """Return the pairs (M, 2) of the first row with a key and each further row with it; None links nothing."""
    first: dict[Hashable, int] = {}
    pairs = [
        (first[key], index)
        for index, key in enumerate(keys)
        if key is not None and first.setdefault(key, index) != index
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)
