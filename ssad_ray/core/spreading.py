"""Spread what a few items are called to those that are like them.

"Learning with Local and Global Consistency" (Zhou et al., NIPS 2003), on the graph of nearest neighbours with the
weights of Zelnik-Manor and Perona ("Self-Tuning Spectral Clustering", NIPS 2004). At the end every name gets the same
share of the whole (class mass normalisation; Zhu, Ghahramani, Lafferty, ICML 2003), or names whose items lie where the
graph is dense would win.

Shapes: N items, K features, C names, M neighbours.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ssad_ray.core.warp import Floats

_NEIGHBOURS = 5
_FEWEST_NEIGHBOURS = 2
_ITEMS_PER_NEIGHBOUR = 8  # with more neighbours a graph of few items is one clump, in which all names are alike
_ALPHA = 0.9
_ROUNDS = 150  # 0.9 ** 150 is 1e-7
_FARTHEST = 3.0  # standard deviations; one odd feature does not make an item unlike all others
_ITEMS_AT_ONCE = 256

UNNAMED = -1


def spread(features_NK: Floats, names_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Name every item.

    Args:
        features_NK: Of all items, in any units.
        names_N: 0 to C - 1, or `UNNAMED`. Every name is given at least once.

    Returns:
        The name of every item, `UNNAMED` where no named item is reached, and its share among the names, in [0, 1].
        Given names stay, with share 1.
    """
    num, is_given = len(names_N), names_N != UNNAMED
    graph = _graph(comparable(features_NK))
    given_NC = np.zeros((num, int(names_N.max(initial=UNNAMED)) + 1))
    given_NC[is_given, names_N[is_given]] = 1.0
    given_NC /= given_NC.sum(axis=0)
    spread_NC = given_NC
    for _ in range(_ROUNDS):
        spread_NC = _ALPHA * (graph @ spread_NC) + (1 - _ALPHA) * given_NC
    spread_NC /= spread_NC.sum(axis=0)
    totals = spread_NC.sum(axis=1)
    shares = spread_NC.max(axis=1, initial=0.0) / np.where(totals > 0, totals, 1.0)
    found = np.where(totals > 0, spread_NC.argmax(axis=1), UNNAMED)
    return np.where(is_given, names_N, found), np.where(is_given, 1.0, shares)


def comparable(features_NK: Floats) -> Floats:
    """Bring features to units of their spread, measured from their medians."""
    away = features_NK - np.median(features_NK, axis=0)
    spread_K = features_NK.std(axis=0)
    return np.asarray(np.clip(away / np.where(spread_K > 0, spread_K, 1.0), -_FARTHEST, _FARTHEST), np.float32)


def _graph(features_NK: Floats) -> sparse.csr_array:
    """Return the normalised weights between neighbours, (N, N), symmetric."""
    num = len(features_NK)
    count = min(max(_FEWEST_NEIGHBOURS, min(_NEIGHBOURS, num // _ITEMS_PER_NEIGHBOUR)), num - 1)
    if count < 1:
        return sparse.csr_array((num, num))
    neighbours_NM, squares_NM = _nearest(features_NK, count)
    # The unit of distance is that to the farthest neighbour: groups are as tight as they happen to be.
    units = np.sqrt(squares_NM[:, -1]) + 1e-9
    weights = np.exp(-squares_NM / (units[:, np.newaxis] * units[neighbours_NM]))
    rows = np.repeat(np.arange(num), count)
    graph = sparse.csr_array((weights.ravel(), (rows, neighbours_NM.ravel())), shape=(num, num))
    graph = graph.maximum(graph.T)
    scale = sparse.diags_array(1 / np.sqrt(np.asarray(graph.sum(axis=1))))
    return sparse.csr_array(scale @ graph @ scale)


def _nearest(features_NK: Floats, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return every item's nearest others, nearest first, and the squared distances to them."""
    lengths = np.square(features_NK).sum(axis=1)
    neighbours, squares = [], []
    for at in range(0, len(features_NK), _ITEMS_AT_ONCE):
        some = features_NK[at : at + _ITEMS_AT_ONCE]
        apart = lengths[at : at + _ITEMS_AT_ONCE, np.newaxis] - 2 * some @ features_NK.T + lengths
        apart[np.arange(len(some)), np.arange(at, at + len(some))] = np.inf
        nearest = np.argpartition(apart, count - 1, axis=1)[:, :count]
        distances = np.take_along_axis(apart, nearest, axis=1)
        order = np.argsort(distances, axis=1, kind="stable")
        neighbours.append(np.take_along_axis(nearest, order, axis=1))
        squares.append(np.take_along_axis(distances, order, axis=1).clip(0.0).astype(np.float64))
    return np.concatenate(neighbours), np.concatenate(squares)
