"""Binary masks as COCO run lengths, and polygons as a view of them.

The run lengths are the truth and lose nothing. Polygons run along pixel *edges*, on corner coordinates, so that a
scratch one pixel wide and a single pixel keep their area, which contours through pixel centres do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pycocotools.mask as coco
from numpy.typing import NDArray

from ssad_ray.core.records import RunLengthMask
from ssad_ray.errors import DataError

PixelBox = tuple[int, int, int, int]
Ring = NDArray[np.float64]
"""(N, 2) closed outline, `(x, y)` in corner coordinates: pixel (0, 0) reaches from (0, 0) to (1, 1)."""

MAX_MASK_PX = 2_000_000_000
MIN_POLYGON_IOU = 0.95
MIN_RING_AREA = 0.8
MAX_VERTICES = 200


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected (8-neighbourhood) piece of a mask: its outline and the outlines of its holes."""

    outline: Ring
    holes: tuple[Ring, ...] = ()


def encode_mask(
    mask: NDArray[np.bool_], top: int = 0, left: int = 0, shape: tuple[int, int] | None = None
) -> RunLengthMask:
    """Encode a mask, or a crop of one, without ever building the full frame.

    Args:
        mask: (h, w) bool.
        top: Row of the frame at which the crop begins.
        left: Column of the frame at which the crop begins.
        shape: (height, width) of the frame; None: the mask is the whole frame.
    """
    rows, columns = mask.shape
    height, width = shape or (rows, columns)
    if min(rows, columns) < 1 or top < 0 or left < 0 or top + rows > height or left + columns > width:
        raise DataError(
            f"a mask of {rows} x {columns} px (height x width) at row {top}, column {left} does not fit a frame of "
            f"{height} x {width} px; give a non-empty crop that lies inside the frame"
        )
    # Down the columns, with a gap under each, so that no run crosses from one column into the next.
    steps = np.diff(np.pad(mask.T, ((0, 0), (1, 1))).view(np.int8), axis=1)
    column, row = np.nonzero(steps)
    edges = (left + column) * height + top + row
    # In a crop of full height a run may end where the next column's begins: these two edges cancel out.
    edges, repeats = np.unique(edges, return_counts=True)
    edges = edges[(repeats == 1) & (edges < height * width)]
    counts = np.diff(edges, prepend=0, append=height * width)
    encoded = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return RunLengthMask(height, width, encoded["counts"].decode("ascii"))


def decode_mask(mask: RunLengthMask, box: PixelBox | None = None) -> NDArray[np.bool_]:
    """Return the (height, width) bool mask, or the part of it inside a half-open box.

    Raises:
        DataError: The run lengths are malformed or do not fill the frame.
    """
    x0, y0, x1, y1 = box or (0, 0, mask.width, mask.height)
    runs = run_lengths(mask)
    ends = np.clip(np.cumsum(runs), x0 * mask.height, x1 * mask.height)
    is_set = np.arange(runs.size) % 2 == 1
    strip = np.repeat(is_set, np.diff(ends, prepend=x0 * mask.height)).reshape(x1 - x0, mask.height)
    return np.ascontiguousarray(strip[:, y0:y1].T)


def run_lengths(mask: RunLengthMask) -> NDArray[np.int64]:
    """Return the alternating lengths of unset and set runs, down the columns, beginning with unset.

    pycocotools trusts the text and reads past its end, so everything that came from outside passes here first.

    Raises:
        DataError: The run lengths are malformed or do not fill the frame.
    """
    runs = _parse_counts(mask.counts)
    size = mask.height * mask.width
    if not (mask.height > 0 and mask.width > 0 and size <= MAX_MASK_PX):
        raise DataError(
            f"a mask of {mask.height} x {mask.width} px (height x width) is refused; "
            f"both sides must be positive and the area at most {MAX_MASK_PX} px"
        )
    if runs is None or runs.min() < 0 or runs.max() > size or runs.sum() != size:
        raise DataError(
            f"the run lengths {mask.counts[:40]!r} do not fill a mask of {mask.height} x {mask.width} px "
            f"(height x width); give COCO's compressed column-major run-length text for this size"
        )
    return runs


def mask_box(mask: RunLengthMask) -> PixelBox:
    """Return the tight half-open box `(x0, y0, x1, y1)`; an empty mask has the empty box (0, 0, 0, 0)."""
    runs = run_lengths(mask)
    ends = np.cumsum(runs)
    is_set = (np.arange(runs.size) % 2 == 1) & (runs > 0)
    if not is_set.any():
        return 0, 0, 0, 0
    first_x, first_y = np.divmod((ends - runs)[is_set], mask.height)
    last_x, last_y = np.divmod(ends[is_set] - 1, mask.height)
    if (first_x != last_x).any():  # a run round a column's foot touches the frame's bottom and top
        return int(first_x[0]), 0, int(last_x[-1]) + 1, mask.height
    return int(first_x[0]), int(first_y.min()), int(last_x[-1]) + 1, int(last_y.max()) + 1


def mask_ious(rows: Sequence[RunLengthMask], columns: Sequence[RunLengthMask]) -> NDArray[np.float64]:
    """Return the (len(rows), len(columns)) intersections over unions of masks of one frame."""
    for mask in (*rows, *columns):
        run_lengths(mask)
    sizes = {(mask.height, mask.width) for mask in (*rows, *columns)}
    if len(sizes) > 1:
        raise DataError(f"masks of different frames cannot be compared: {sorted(sizes)} (height, width)")
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    overlaps = coco.iou([_coco(mask) for mask in rows], [_coco(mask) for mask in columns], [0] * len(columns))
    return np.asarray(overlaps, dtype=np.float64)


def polygons(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Outline a mask along its pixel edges.

    Corners are dropped (Douglas-Peucker) only as far as every piece, drawn again by `rasterise`, keeps an
    intersection over union of at least 0.95 with itself; fidelity goes before the wish for at most 200 corners.

    Args:
        mask: (H, W) bool.
    """
    x, y, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    if rows == 0 or columns == 0:
        return []
    crop = mask[y : y + rows, x : x + columns]
    # On a lattice of twice the density each pixel is its centre, four edges and four corners: contours through
    # lattice points run along pixel edges, and gaps and holes one pixel wide stay open.
    lattice = np.zeros((2 * rows + 1, 2 * columns + 1), np.uint8)
    lattice[1::2, 1::2] = crop
    thick = cv2.dilate(lattice, np.ones((3, 3), np.uint8))
    contours, hierarchy = cv2.findContours(thick, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_corners(contour[:, 0].astype(np.int32)) for contour in contours]
    parents = hierarchy[0, :, 3]
    holes: dict[int, list[NDArray[np.int32]]] = {int(index): [] for index in np.flatnonzero(parents < 0)}
    for ring, parent in zip(rings, parents, strict=True):
        if parent >= 0:
            holes[int(parent)].append(ring)
    return [_simplified([rings[outer], *inner], offset=(x, y)) for outer, inner in holes.items()]


def rasterise(shapes: Sequence[Polygon], height: int, width: int) -> NDArray[np.bool_]:
    """Draw polygons: a pixel is set where its centre lies inside an outline and in none of its holes.

    Returns:
        (height, width) bool. What lies outside the frame is cut off.
    """
    mask = np.zeros((height, width), np.bool_)
    for shape in shapes:
        corners = np.concatenate((shape.outline, *shape.holes))
        x0, y0 = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, (width, height))
        x1, y1 = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, (width, height))
        rings = [ring - (x0, y0) for ring in (shape.outline, *shape.holes)]
        mask[y0:y1, x0:x1] |= _fill(rings, int(y1 - y0), int(x1 - x0))
    return mask


def _coco(mask: RunLengthMask) -> dict[str, object]:
    return {"size": [mask.height, mask.width], "counts": mask.counts.encode("ascii")}


def _parse_counts(text: str) -> NDArray[np.int64] | None:
    """Read COCO's text: 5-bit little-endian groups, from the fourth number on as differences to the last but one."""
    if not text.isascii():
        return None
    digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    is_last = (digits & 0x20) == 0
    if not digits.size or digits.min() < 0 or digits.max() > 63 or not is_last[-1]:
        return None
    starts = np.concatenate(([0], np.flatnonzero(is_last)[:-1] + 1))
    lengths = np.diff(starts, append=digits.size)
    if lengths.max() > 8:
        return None
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 0x1F) << shifts, starts)
    runs -= np.where(digits[is_last] & 0x10, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _corners(points: NDArray[np.int32]) -> NDArray[np.int32]:
    """Turn a contour of lattice points into the pixel corners it passes; lattice corners have even coordinates."""
    following = np.roll(points, -1, axis=0)
    # The contour cuts inner corners diagonally, from one edge's middle to the next: put the corner back.
    is_cut = (points != following).all(axis=1)
    between = np.where(points % 2 == 0, points, following)
    path = np.stack((points, np.where(is_cut[:, None], between, points)), axis=1).reshape(-1, 2)
    corners: NDArray[np.int32] = path[(path % 2 == 0).all(axis=1)] // 2
    is_new: NDArray[np.bool_] = (corners != np.roll(corners, -1, axis=0)).any(axis=1)
    return corners[is_new]


def _simplified(rings: list[NDArray[np.int32]], offset: tuple[int, int]) -> Polygon:
    """Drop corners of an outline (the first ring) and its holes, then move them by `(x, y)`."""
    origin = rings[0].min(axis=0)
    rings = [ring - origin for ring in rings]
    columns, rows = rings[0].max(axis=0).tolist()
    truth = _fill(rings, rows, columns)

    def thinned(tolerance: float) -> list[NDArray[np.int32]] | None:
        """Drop corners; None where that changes the shape, or any one of its rings, too much."""
        fewer = [cv2.approxPolyDP(ring, tolerance, closed=True)[:, 0].astype(np.int32) for ring in rings]
        if any(
            cv2.contourArea(thin) < MIN_RING_AREA * cv2.contourArea(ring)
            for thin, ring in zip(fewer, rings, strict=True)
        ):
            return None
        drawn = _fill(fewer, rows, columns)
        is_faithful = (drawn & truth).sum() >= MIN_POLYGON_IOU * (drawn | truth).sum()
        return fewer if is_faithful else None

    tolerance = 1.0
    while (kept := thinned(tolerance)) is None:
        tolerance /= 2
    while sum(map(len, kept)) > MAX_VERTICES and (fewer := thinned(2 * tolerance)) is not None:
        kept, tolerance = fewer, 2 * tolerance
    outline, *holes = ((ring + origin + offset).astype(np.float64) for ring in kept)
    return Polygon(outline, tuple(holes))


def _fill(rings: Sequence[NDArray[np.int32]] | Sequence[Ring], height: int, width: int) -> NDArray[np.bool_]:
    """Even-odd scan of pixel centres over all rings at once."""
    begin = np.concatenate([np.asarray(ring, np.float64) for ring in rings])
    end = np.concatenate([np.roll(np.asarray(ring, np.float64), -1, axis=0) for ring in rings])
    is_down = begin[:, 1] <= end[:, 1]
    upper, lower = np.where(is_down[:, None], begin, end), np.where(is_down[:, None], end, begin)
    # An edge crosses the rows whose centre line lies in [upper y, lower y).
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    num_rows = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(begin)), num_rows)
    row = np.arange(edge.size) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows) + first[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    toggles = np.zeros((height, width + 1), np.uint8)
    np.add.at(toggles, (row, column), 1)
    # Wrapping round at 256 leaves the parity alone.
    parity: NDArray[np.uint8] = np.cumsum(toggles, axis=1, dtype=np.uint8)[:, :width] % 2
    return parity.view(np.bool_)
