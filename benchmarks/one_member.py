"""What the ablations share: a product in frames, and one detector trained on its good and judged on its test images.

Nothing is cross-fitted here, and an image's score is the highest value of its map: variants of a method are compared,
not products judged.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import RunConfig, validate_config
from ssad_ray.core.framing import Frames, make_plan
from ssad_ray.core.images import decode, decode_mask, resize
from ssad_ray.core.metrics.evaluation import JudgedImage, evaluate
from ssad_ray.core.records import GOOD, Prediction
from ssad_ray.datasets.catalog import catalog
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods import load_method
from ssad_ray.methods.base import TrainingFrames


@dataclass(frozen=True)
class Product:
    """Frames of a product, each showing an image whole.

    Attributes:
        good_NHWC: Good images to train on, uint8.
        test: Test images as row, frame (1, H, W, 3), and true mask (H, W) where there is one.
    """

    good_NHWC: NDArray[np.uint8]
    test: Sequence[tuple[ManifestRow, NDArray[np.uint8], NDArray[np.bool_] | None]]


def load_product(folder: str, size_px: int) -> Product:
    """Read a product in a layout with a train and a test stage, and say how much there is of it."""
    config = validate_config({"input": {"size_px": size_px, "mode": "resize"}})
    rows = [row for row in catalog(folder, config.data).rows if row.error is None]
    images = [_read(row) for row in rows if row.source_stage == "train" and row.defect_type == GOOD]
    plan = make_plan(images, config.input)
    test = []
    for row in (row for row in rows if row.source_stage == "test"):
        image, mask = _read(row), None
        if row.mask_uri is not None:
            mask = decode_mask(Path(row.mask_uri).read_bytes(), *image.shape[:2])
            mask = resize(mask.astype(np.float32), plan.height, plan.width) > 0.5
        test.append((row, Frames(image, plan)[0][np.newaxis], mask))
    print(f"{len(images)} good images, {len(test)} test images, frames of {plan.height} x {plan.width} px", flush=True)
    return Product(np.stack([Frames(image, plan)[0] for image in images]), test)


def judged(method_name: str, options: dict[str, Any], product: Product, seed: int) -> dict[str, float | None]:
    """Train once; return the metrics of the test images, and the seconds that a frame's score took."""
    method = load_method(method_name).from_config(validate_config({"detector": {method_name: options}}))
    method.fit(TrainingFrames.of_good(product.good_NHWC), seed)
    images, seconds = [], []
    for row, frame, mask in product.test:
        start = time.perf_counter()
        (anomaly_map,) = method.maps(frame)
        seconds.append(time.perf_counter() - start)
        images.append(
            JudgedImage(Prediction(row.sample_id, float(anomaly_map.max()), anomaly_map), row.ground_truth, None, mask)
        )
    return {**evaluate(images, exact=True).metrics, "seconds": float(np.median(seconds))}


def _read(row: ManifestRow) -> NDArray[np.uint8]:
    return decode(Path(row.uri).read_bytes(), RunConfig().data.max_image_px)
