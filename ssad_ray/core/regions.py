"""Anomaly map -> defect regions -> label mask and training target.

No gap is closed and no outline smoothed: the low threshold, learnt from good images, already decides what belongs
together, and a closing radius would be one more number that nobody can learn without annotations.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import cv2
import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.masks import PixelBox, decode_mask, encode_mask, mask_box
from ssad_ray.core.records import NOBODY, Calibration, DefectRegion, Provenance, Verdict
from ssad_ray.errors import DataError

MAX_REGIONS = 1000
"""Regions kept per image; an image with more is broken rather than defective, and a page must be able to show it."""

IGNORE_MARGIN = 1 / 32
"""Width of the ring round a region that the segmenter does not learn from, as a share of the shorter image side.

Maps are made in a working frame and bleed by a few of its pixels, so the uncertain ring scales with the image.
"""

Threshold = float | NDArray[np.float32]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class MapRegion:
    """One connected piece of an anomaly map.

    Attributes:
        mask: (h, w) bool, the pixels inside the box.
        box: Tight half-open `(x0, y0, x1, y1)`.
        area_px: Set pixels of the mask.
        peak: Largest map value.
        excess: How far the map rises above the high threshold, at most.
        mean: Mean map value.
    """

    mask: NDArray[np.bool_]
    box: PixelBox
    area_px: int
    peak: float
    excess: float
    mean: float


def check_map(anomaly_map: NDArray[np.float32], name: str = "an anomaly map") -> None:
    """Refuse a map that is not (height, width), empty or not finite: in a NaN a defect would pass as normal."""
    if anomaly_map.ndim != 2 or anomaly_map.size == 0 or not np.isfinite(anomaly_map).all():
        raise DataError(
            f"{name} must be (height, width), not empty and finite; got shape {anomaly_map.shape} with "
            f"{int((~np.isfinite(anomaly_map)).sum())} values that are not finite"
        )


def find_regions(
    anomaly_map: NDArray[np.float32],
    threshold_high: Threshold,
    threshold_low: float,
    min_area_px: int,
    threshold_sure: Threshold,
) -> tuple[list[MapRegion], int]:
    """Find the regions of a map by hysteresis.

    A region is an 8-connected piece above the low or the high threshold with a pixel above the high one. Pieces
    smaller than `min_area_px` are dropped, except those with a pixel above the sure threshold and the one that rises
    highest above the high one; by the same measure, holes smaller than `min_area_px` are filled.

    Args:
        anomaly_map: (H, W) float32, finite.
        threshold_high: Raw map value, one for all pixels or (H, W).
        threshold_low: Raw map value.
        min_area_px: Pixels.
        threshold_sure: Raw map value, one for all pixels or (H, W); one pixel above it is proof enough.

    Returns:
        At most 1000 regions by falling peak, no two with a common pixel, and how many there were before this limit.

    Raises:
        DataError: The map is not two-dimensional or not finite.
    """
    check_map(anomaly_map)
    excess = anomaly_map - threshold_high
    is_seed = excess > 0
    if not is_seed.any():
        return [], 0
    labels, stats = _components((anomaly_map > threshold_low) | is_seed, connectivity=8)
    peaks, rises = (_largest(values, labels, len(stats)) for values in (anomaly_map, excess))
    is_sure = _largest(anomaly_map - threshold_sure, labels, len(stats)) > 0
    is_found = (rises > 0) & (is_sure | (stats[:, cv2.CC_STAT_AREA] >= min_area_px))
    is_found[np.argmax(rises)] = True
    found = np.flatnonzero(is_found)
    order = found[np.argsort(-peaks[found], kind="stable")][:MAX_REGIONS]
    labels[~is_found[labels]] = 0
    regions = [_cut_out(anomaly_map, excess, labels, label, stats[label], min_area_px) for label in order]
    return regions, len(found)


def to_defect_regions(
    anomaly_map: NDArray[np.float32],
    calibration: Calibration,
    sample_id: str,
    model: str,
    time: datetime,
    threshold_sure: Threshold,
) -> list[DefectRegion]:
    """Label a map that was judged anomalous.

    Args:
        anomaly_map: (H, W) float32 in the image's own frame.
        calibration: Thresholds of the model.
        sample_id: Prefix of the region ids.
        model: Artifact name, for the provenance.
        time: Moment of labelling, aware of its time zone.
        threshold_sure: Map value above which a pixel makes an image anomalous by itself, one or (H, W): it is a region
            of any size, whatever the calibration's high threshold is.

    Returns:
        Regions by falling score, at least one. Where the limit of 1000 cuts some off, a warning is logged.
    """
    high = np.minimum(threshold_sure, np.float32(calibration.pixel_threshold_high))
    low = calibration.pixel_threshold_low
    regions, num_found = find_regions(anomaly_map, high, low, calibration.min_area_px, threshold_sure)
    if not regions:
        # Enlarging a map lowers its peaks: the one that made the image anomalous may lie below what it was judged by.
        high = np.array(np.broadcast_to(high, anomaly_map.shape))
        nearest = np.argmax(anomaly_map - high)
        high.flat[nearest] = np.nextafter(anomaly_map.flat[nearest], np.float32(-np.inf))
        regions, num_found = find_regions(anomaly_map, high, low, calibration.min_area_px, threshold_sure)
    if num_found > len(regions):
        _logger.warning("%s: %d regions found, the %d highest are kept", sample_id, num_found, len(regions))
    height, width = anomaly_map.shape
    provenance = Provenance(model=model, threshold=low, parent=None, actor=NOBODY, time=time.isoformat())
    return [
        DefectRegion(
            region_id=f"{sample_id}#{index}",
            mask=encode_mask(region.mask, region.box[1], region.box[0], (height, width)),
            box=region.box,
            area_px=region.area_px,
            score=region.peak,
            confidence=region_confidence(region.excess, region.mean, calibration),
            defect_type=None,
            provenance=provenance,
        )
        for index, region in enumerate(regions)
    ]


def region_confidence(excess: float, mean: float, calibration: Calibration) -> float:
    """Return how far a region stands above the thresholds, in [0, 1].

    With `z` the mean of its excess over the high and of its mean value's excess over the low threshold, both in
    units of the normal maps' spread, this is `z / (1 + z)`: 0 at the thresholds, 1/2 one spread above them, and
    rising in both arguments. It ranks and weights regions; it is not a probability.
    """
    both = max(excess, 0.0) + max(mean - calibration.pixel_threshold_low, 0.0)
    return both / (both + 2.0 * calibration.map_scale)


def label_mask(regions: Sequence[DefectRegion], height: int, width: int) -> NDArray[np.bool_]:
    """Return the union of the regions, (height, width) bool."""
    mask = np.zeros((height, width), np.bool_)
    for region in regions:
        x0, y0, x1, y1 = box = _box_in_frame(region, height, width)
        mask[y0:y1, x0:x1] |= decode_mask(region.mask, box)
    return mask


def training_target(
    anomaly_map: NDArray[np.float32], verdict: Verdict, calibration: Calibration
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn a coarse label into what the segmenter learns from: targets, and how far each can be trusted.

    An automatic region is 1, weighted by its confidence where the map is above the high threshold and by half of it
    elsewhere; a region drawn or confirmed by a person is 1 throughout, at full weight. A ring round each region has
    weight 0. So have all other pixels that are not surely normal, that is, more than one spread above the usual value
    of normal maps: between that and the thresholds lie the bodies of defects of which only the edge was found, and
    whole defects that were missed. What is left is 0 at full weight. Of an image without a label nothing is learnt.

    Args:
        anomaly_map: (H, W) float32 in the image's own frame.
        verdict: The image's label.
        calibration: Thresholds of the model that made the map.

    Returns:
        Targets and weights, both (H, W) float32 in [0, 1].
    """
    check_map(anomaly_map)
    height, width = anomaly_map.shape
    target = np.zeros((height, width), np.float32)
    if verdict.error is not None:
        return target, np.zeros_like(target)
    surely_normal = min(calibration.map_location + calibration.map_scale, calibration.pixel_threshold_low)
    weight = (anomaly_map <= surely_normal).astype(np.float32)
    if verdict.is_anomalous:
        margin = max(1, round(min(height, width) * IGNORE_MARGIN))
        weight[_grown(label_mask(verdict.regions, height, width), margin)] = 0.0
        for region in verdict.regions:
            _write_region(region, anomaly_map, calibration.pixel_threshold_high, target, weight)
    return target, weight


def _write_region(
    region: DefectRegion,
    anomaly_map: NDArray[np.float32],
    threshold_high: float,
    target: NDArray[np.float32],
    weight: NDArray[np.float32],
) -> None:
    x0, y0, x1, y1 = box = mask_box(region.mask)
    inside = decode_mask(region.mask, box)
    target[y0:y1, x0:x1][inside] = 1.0
    weight[y0:y1, x0:x1][inside] = 1.0
    if region.provenance.actor == NOBODY:
        is_core = anomaly_map[y0:y1, x0:x1] > threshold_high
        weight[y0:y1, x0:x1][inside] = region.confidence * np.where(is_core, 1.0, 0.5)[inside]


def _components(mask: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return labels (H, W), 0 outside the mask, and per label `x, y, columns, rows, area`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=connectivity)
    return labels.astype(np.int32, copy=False), stats.astype(np.int32, copy=False)


def _largest(values: NDArray[np.float32], labels: NDArray[np.int32], num_labels: int) -> NDArray[np.float32]:
    """Return per label the largest value of its pixels; -inf for label 0, which is no piece."""
    largest = np.full(num_labels, -np.inf, np.float32)
    is_piece = labels > 0
    np.maximum.at(largest, labels[is_piece], values[is_piece])
    return largest


def _cut_out(
    anomaly_map: NDArray[np.float32],
    excess: NDArray[np.float32],
    labels: NDArray[np.int32],
    label: int,
    stats: NDArray[np.int32],
    min_area_px: int,
) -> MapRegion:
    x0, y0, columns, rows = stats[:4].tolist()
    at = np.s_[y0 : y0 + rows, x0 : x0 + columns]
    is_other = (labels[at] > 0) & (labels[at] != label)
    mask = _without_small_holes(labels[at] == label, min_area_px) & ~is_other
    values = anomaly_map[at][mask]
    box = (x0, y0, x0 + columns, y0 + rows)
    rise = float(excess[at][mask].max())
    return MapRegion(mask, box, values.size, float(values.max()), rise, float(values.mean(dtype=np.float64)))


def _without_small_holes(mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
    """Fill 4-connected gaps of fewer pixels that do not reach the edge of the tight crop."""
    labels, stats = _components(~mask, connectivity=4)
    x0, y0, columns, rows, area = stats.T
    is_inside = (x0 > 0) & (y0 > 0) & (x0 + columns < mask.shape[1]) & (y0 + rows < mask.shape[0])
    is_filled = is_inside & (area < min_area_px)
    is_filled[0] = True  # label 0 is the region itself
    filled: NDArray[np.bool_] = is_filled[labels]
    return filled


def _grown(mask: NDArray[np.bool_], margin_px: int) -> NDArray[np.bool_]:
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 5)
    grown: NDArray[np.bool_] = distance <= margin_px
    return grown


def _box_in_frame(region: DefectRegion, height: int, width: int) -> PixelBox:
    if (region.mask.height, region.mask.width) != (height, width):
        raise DataError(
            f"region {region.region_id} has a mask of {region.mask.height} x {region.mask.width} px "
            f"(height x width) and its image has {height} x {width}; a region lies in its image's own frame"
        )
    return mask_box(region.mask)
