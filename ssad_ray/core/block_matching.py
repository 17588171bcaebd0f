"""Where blocks of an image match their template best: one shift for all of them, or a displacement for each.

Blocks are compared by their normalised correlation at displacements of whole pixels. Shapes: R C rows and columns of
nodes.
"""

from dataclasses import replace

import cv2
import numpy as np

from ssad_ray.core.warp import Block, Floats, Pair, Warp, blocks, is_inside, sample, shifted

_LEAST_CONTRAST = 4.0  # standard deviation of a block, grey levels
_LEAST_COVERED = 0.5
_PROBE_PX = 128
_MAX_PROBES = 4  # down and across
_NODE_PX = 32
_MAX_NODES = 32  # along the longer side
_MATCHED_PX = 64
_REACH_PX = 6
_STIFFNESS = 0.002  # of correlation, per squared pixel


def best_shift(pair: Pair, x: int, y: int, reach_px: int) -> Warp:
    """Move a shift, by up to `reach_px` each way, to where some blocks together match best."""
    start = shifted(x, y)
    height, width = pair.image.shape
    probes = blocks(height, width, _PROBE_PX, _MAX_PROBES)
    surfaces = [surface for probe in probes if (surface := _surface(pair, start, probe, reach_px)) is not None]
    if not surfaces:
        return start
    mean = np.mean(surfaces, axis=0)
    dy, dx = np.unravel_index(int(mean.argmax()), mean.shape)
    return shifted(x + int(dx) - reach_px, y + int(dy) - reach_px)


def bent(pair: Pair, warp: Warp, scale: float) -> Warp:
    """Add to a map the displacements, of 6 px at most, at which blocks match best at a scale.

    The median over neighbours is taken, so that a defect does not bend the template to its likeness.
    """
    small = pair.shrunk(scale)
    start = pair.translated(warp, small)
    # Of the whole pair, so that what is added up over scales is given at the same nodes.
    longer = max(pair.image.shape)
    most = min(_MAX_NODES, longer / _NODE_PX)
    rows, columns = (max(1, round(most * side / longer)) for side in pair.image.shape)
    bend = np.full((rows, columns, 2), np.nan, np.float32)
    for row, column in np.ndindex(rows, columns):
        surface = _surface(small, start, _around((row + 0.5) / rows, (column + 0.5) / columns, small), _REACH_PX)
        if surface is not None:
            bend[row, column] = _peak(surface)
    return small.translated(replace(start, bend_RC2=start.bend_RC2 + _median_of_neighbours(bend)), pair)


def _surface(pair: Pair, warp: Warp, block: Block, reach_px: int) -> Floats | None:
    """Return how well a block matches at displacements (2 reach + 1, 2 reach + 1); None where it is plain or bare."""
    seen = block.of(pair.image)
    if seen.std() < _LEAST_CONTRAST:
        return None
    height, width = pair.image.shape
    places = warp.places(block.grown(reach_px), height, width)
    if np.mean(is_inside(pair.template, places)) < _LEAST_COVERED:
        return None
    return np.asarray(cv2.matchTemplate(sample(pair.template, places), seen, cv2.TM_CCOEFF_NORMED), np.float32)


def _around(down: float, across: float, pair: Pair) -> Block:
    """Return a block around a place that is given in shares of the image, pushed back inside."""
    height, width = pair.image.shape
    rows, columns = min(_MATCHED_PX, height), min(_MATCHED_PX, width)
    top = round(min(max(down * height - rows / 2, 0), height - rows))
    return Block(top, round(min(max(across * width - columns / 2, 0), width - columns)), rows, columns)


def _peak(surface: Floats) -> tuple[float, float]:
    """Return the displacement (dx, dy) of the peak, to a fraction of a pixel; near ones are preferred."""
    line = np.arange(-_REACH_PX, _REACH_PX + 1, dtype=np.float32)
    held = surface - np.float32(_STIFFNESS) * (line[:, np.newaxis] ** 2 + line**2)
    y, x = divmod(int(held.argmax()), len(line))
    return float(line[x]) + _vertex(held[y], x), float(line[y]) + _vertex(held[:, x], y)


def _vertex(values: Floats, at: int) -> float:
    """Return how far from its largest value the parabola through it and its neighbours has its vertex."""
    if not 0 < at < len(values) - 1:
        return 0.0
    before, largest, after = values[at - 1 : at + 2].tolist()
    curvature = before - 2 * largest + after
    return 0.5 * (before - after) / curvature if curvature < 0 else 0.0


def _median_of_neighbours(bend_RC2: Floats) -> Floats:
    """Return the median of those of 3 x 3 nodes that are known; 0 where none is."""
    padded = np.pad(bend_RC2, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1)).reshape(*bend_RC2.shape, 9)
    is_known = np.isfinite(around[:, :, 0]).any(axis=-1)
    median = np.zeros_like(bend_RC2)
    median[is_known] = np.nanmedian(around[is_known], axis=-1)
    return median
