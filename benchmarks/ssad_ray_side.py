"""This package's side of beside_anomalib.py."""

from pathlib import Path

import numpy as np
import torch
from side import measured, read_task

from ssad_ray.config import validate_config
from ssad_ray.core.framing import FramePlan, Frames
from ssad_ray.core.images import decode, resize
from ssad_ray.methods import load_method
from ssad_ray.methods.base import Method, TrainingFrames
from ssad_ray.methods.thinning import spread_out

task = read_task()
plan = FramePlan("resize", task["size_px"], task["size_px"])


def read(path: str) -> np.ndarray:
    """Return the pixels of an image file."""
    return decode(Path(path).read_bytes(), max_px=1 << 30)


def score(method: Method) -> None:
    """Score from file to map at the image's size."""
    for path in task["score"]:
        image = read(path)
        (anomaly_map,) = method.maps(Frames(image, plan)[0][np.newaxis])
        resize(anomaly_map, *image.shape[:2])


good = TrainingFrames.of_good(np.stack([Frames(read(path), plan)[0] for path in task["train"]]))
config = validate_config(
    {
        "detector": {
            "draem": {"width": task["width"], "training": {"steps": 1, "batch_size": 2}},
            "memory_bank": {"memory": len(task["train"]) * (task["size_px"] // 8) ** 2 // 10},
        }
    }
)
for name in ("memory_bank", "draem"):
    method = load_method(name).from_config(config)
    method.fit(good, 0)
    measured(lambda method=method: score(method))

features = torch.randn(task["features"], task["channels"])
measured(lambda: spread_out(features, len(features) // 10))
