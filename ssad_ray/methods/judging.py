"""From the bytes of a file to a verdict: the one scoring function behind labelling and evaluation."""

import math
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import DataConfig
from ssad_ray.core.calibration import p_value
from ssad_ray.core.images import decode
from ssad_ray.core.records import Sample, Verdict
from ssad_ray.core.regions import check_map, to_defect_regions
from ssad_ray.errors import DataError
from ssad_ray.methods.artifact import Artifact


def judge(
    artifact: Artifact, sample: Sample, data: bytes, limits: DataConfig, time: datetime
) -> tuple[Verdict, NDArray[np.float32]]:
    """Decode, score and calibrate one image.

    Args:
        artifact: A calibrated artifact.
        sample: Whose bytes these are.
        data: The encoded file.
        limits: What is refused.
        time: Written into the provenance of the regions.

    Returns:
        The verdict, and the anomaly map (H, W) float32.

    Raises:
        DataError: The bytes are not an image that is accepted, it lacks the template that it is to be compared with,
            or its score or map is not finite: no threshold compares with it, and the image would pass as normal.
    """
    calibration = artifact.calibration
    assert calibration is not None, "an artifact is calibrated before it judges"  # noqa: S101
    image = decode(data, limits.max_image_px)
    score, anomaly_map = artifact.score(artifact.shown(image, sample, limits))
    if not math.isfinite(score):
        raise DataError(f"{artifact.name} gave the score {score}; its weights or this image are not what it can judge")
    check_map(anomaly_map, f"the anomaly map of {artifact.name}")
    is_anomalous = score > calibration.image_threshold
    regions = []
    if is_anomalous:
        sure = artifact.sure_threshold(*anomaly_map.shape)
        regions = to_defect_regions(anomaly_map, calibration, sample.sample_id, artifact.name, time, sure)
    verdict = Verdict(
        sample_id=sample.sample_id,
        uri=sample.uri,
        height=image.shape[0],
        width=image.shape[1],
        anomaly_score=score,
        p_value=p_value(calibration, score),
        is_anomalous=is_anomalous,
        regions=tuple(regions),
    )
    return verdict, anomaly_map
