"""An image of 49 million pixels, through a network, in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

SCORE = """
import resource
import numpy as np
import torch
from ssad_ray.config import load_config
from ssad_ray.core.framing import FramePlan, Frames
from ssad_ray.methods.artifact import Artifact
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.gan_inversion import GanInversion

torch.set_num_threads(1)
config = load_config(None, ["detector.gan_inversion.width=8", "detector.gan_inversion.crop_px=32"])
plan = FramePlan("tile", 128, 128, 0.5, 0.25)
method = GanInversion.from_config(config)
image = np.random.default_rng(0).integers(90, 110, (6000, 8192, 1), np.uint8).repeat(3, axis=2)
frames = TrainingFrames.of_good(np.stack(list(Frames(image[:512, :640], plan))))
method.initialise(frames, 0)
method.remember(frames, 0)
artifact = Artifact("gan_inversion-1", "gan_inversion", plan, None, config, {}, (method, method))
artifact.score(image[:1024, :1024])
image[4000:4060, 2000:2080] = 255

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score, anomaly_map = artifact.score(image)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
y, x = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
print(*anomaly_map.shape, y, x, (after - before) * 1024 / image.nbytes)
"""


def test_scoring_49_megapixels_takes_no_more_than_three_times_their_size_and_finds_the_defect():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCORE], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    height, width, y, x, times = map(float, done.stdout.split())
    assert (height, width) == (6000, 8192)
    assert 3980 <= y < 4080
    assert 1980 <= x < 2100
    assert times < 3.0
