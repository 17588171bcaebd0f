"""The nouns that flow between the parts: frozen dataclasses over plain numpy arrays.

Conventions: height before width; boxes are half-open `(x0, y0, x1, y1)` in pixels; a higher score is more anomalous;
scores and maps stay raw. Ground truth is a record of its own, so that no method can see it by accident.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stage = Literal["train", "online", "test", "unused"]
Box = tuple[float, float, float, float]
GOOD = "good"
"""The defect type of an anomaly-free image."""

DIGEST_DIGITS = 12
"""Hex digits of a file's SHA-256 in the id of its image."""

_DIGEST = re.compile(rf"@([0-9a-f]{{{DIGEST_DIGITS}}})$")

NOBODY = "auto"
"""The actor of a region that no person has touched."""


def path_of(sample_id: str) -> str:
    """Return the path inside the data set, which an id begins with."""
    return sample_id.rpartition("@")[0]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a product, as every method may see it.

    Attributes:
        sample_id: Stable identity, `<path inside the data set>@<first 12 hex digits of the file's SHA-256>`.
        uri: Where the bytes are: a local path or a `scheme://` address.
        category: Product or material name.
        group: Images of one group (near duplicates, same template, same part) never fall into different stages.
        template_uri: A defect-free reference image of the same pattern, where the data set ships one.
    """

    sample_id: str
    uri: str
    category: str
    group: str
    template_uri: str | None = None

    def is_of(self, data: bytes) -> bool:
        """Whether these are the bytes that were catalogued; an id without a digest says nothing."""
        digest = _DIGEST.search(self.sample_id)
        return digest is None or sha256(data).hexdigest().startswith(digest[1])


@dataclass(frozen=True, slots=True)
class TrueBox:
    """A ground-truth box of one defect."""

    box: Box
    defect_type: str


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What is known about a sample; read for splits and for reporting, never by a method.

    Attributes:
        defect_type: `"good"`, a defect type, or None where nothing is known.
        mask_uri: Image of the sample's height and width; pixels above 127 (of 255) are defective.
        boxes: Object-level annotation, for data sets that have boxes instead of masks.
    """

    sample_id: str
    defect_type: str | None = None
    mask_uri: str | None = None
    boxes: tuple[TrueBox, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """A detector's or segmenter's view of one image.

    Attributes:
        anomaly_score: Raw image-level score; None where `error` is set.
        anomaly_map: (H, W) float32 in the image's own frame; None where `error` is set.
        error: Why the image could not be scored.
    """

    sample_id: str
    anomaly_score: float | None
    anomaly_map: NDArray[np.float32] | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds learnt from held-out anomaly-free images only.

    Attributes:
        rule: One sentence that says how the thresholds were made and what they promise.
        false_alarm_level: Promised image-level false-alarm probability. At least `1 / (num_normals + 1)`.
        num_normals: Held-out anomaly-free images behind the thresholds.
        image_threshold: An image scoring above it is anomalous.
        pixel_threshold_high: A region needs at least one pixel above it, or one that makes the image anomalous.
        pixel_threshold_low: A region grows over connected pixels above it.
        min_area_px: Regions with fewer pixels (image frame) are dropped, unless one of these makes the image anomalous.
        map_location: Median over held-out images of the maps' own medians.
        map_scale: Spread of the normal map values, > 0; `(map - map_location) / map_scale` compares methods.
        normal_scores: Sorted held-out image-level scores, for p-values.
    """

    rule: str
    false_alarm_level: float
    num_normals: int
    image_threshold: float
    pixel_threshold_high: float
    pixel_threshold_low: float
    min_area_px: int
    map_location: float
    map_scale: float
    normal_scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """A binary mask in COCO's compressed column-major run-length encoding.

    Attributes:
        height: Mask height in pixels.
        width: Mask width in pixels.
        counts: COCO's ASCII run-length string.
    """

    height: int
    width: int
    counts: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a region came from.

    Attributes:
        model: Artifact name and version, e.g. `draem-1`.
        threshold: Pixel threshold the region was grown with.
        parent: `region_id` it was edited or relabelled from.
        actor: The name of a person, or `NOBODY`.
        time: ISO 8601, UTC.
    """

    model: str
    threshold: float
    parent: str | None
    actor: str
    time: str


@dataclass(frozen=True, slots=True)
class DefectRegion:
    """One connected defect of one image; the RLE mask is the truth, everything else can be derived from it.

    Attributes:
        region_id: Unique inside its label version: `<sample_id>#<index>`.
        mask: Pixels of the region in the image's own frame.
        box: Tight half-open box.
        area_px: Number of pixels of the mask.
        score: Largest anomaly-map value inside the region (raw).
        confidence: In [0, 1]; how far the region stands above the normal maps' thresholds.
        defect_type: None until somebody or something names it.
    """

    region_id: str
    mask: RunLengthMask
    box: Box
    area_px: int
    score: float
    confidence: float
    defect_type: str | None
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one image.

    Attributes:
        anomaly_score: Raw image-level score; None where `error` is set.
        p_value: Share of held-out normal images scoring at least as high, `(1 + #{m >= s}) / (n + 1)`.
        is_anomalous: None where `error` is set.
        error: Why the image could not be judged.
    """

    sample_id: str
    uri: str
    height: int
    width: int
    anomaly_score: float | None
    p_value: float | None
    is_anomalous: bool | None
    regions: tuple[DefectRegion, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Figures of one model on one set of images.

    Attributes:
        metrics: Metric name to value; None where the data cannot answer (no masks, one class only), never 0 instead.
        counts: How many images, regions, skips, and why.
    """

    metrics: Mapping[str, float | None]
    counts: Mapping[str, int]
