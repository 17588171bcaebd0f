"""Methods that this package and anomalib both have, side by side: images per second from file to map, and the coreset.

    uv venv /some/where && uv pip install --python /some/where "anomalib==2.7.*"
    python benchmarks/beside_anomalib.py --data FOLDER --anomalib-python /some/where/bin/python

FOLDER holds images of one product (`train/good` of an MVTec product, say). Both sides work on frames of 256 px with as
many threads, one image at a time: read the file, decode, resize, score, and bring the map to the image's size. anomalib
is called at its torch models, without Lightning around them, which is the fastest way it has.

- PatchCore: ResNet-18 with random weights, a memory of a tenth of the features. Here it is `memory_bank`.
- DRAEM: both networks of the same width, untrained: what is compared is time.
- The coreset: from the same number of features of the same width, 384 channels, to a tenth of them.

The sides take turns, each in a process of its own; the best of the turns counts.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ssad_ray.config import validate_config
from ssad_ray.core.framing import FramePlan, Frames
from ssad_ray.core.images import decode, resize
from ssad_ray.methods import load_method
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.thinning import spread_out

SIZE_PX = 256
CHANNELS = 384
SIDE = Path(__file__).with_name("anomalib_side.py")


def main() -> None:
    """Measure both sides in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--anomalib-python", required=True)
    for name, default in (
        ("train", 40),
        ("score", 20),
        ("width", 16),
        ("features", 40_960),
        ("threads", 2),
        ("turns", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    task = {
        "images": [str(path) for path in sorted(options.data.iterdir())[: options.train + options.score]],
        **{name: getattr(options, name) for name in ("train", "width", "features", "threads")},
        "size_px": SIZE_PX,
        "channels": CHANNELS,
    }
    best: dict[str, dict[str, float]] = {"anomalib": {}, "ssad_ray": {}}
    for _ in range(options.turns):
        for side, figures in (("anomalib", theirs(options.anomalib_python, task)), ("ssad_ray", ours(task))):
            for name, seconds in figures.items():
                best[side][name] = min(seconds, best[side].get(name, np.inf))
    print(f"{'seconds':24}{'anomalib':>12}{'ssad_ray':>12}{'faster by':>12}")
    for name, seconds in best["ssad_ray"].items():
        other = best["anomalib"][name]
        print(f"{name:24}{other:12.4f}{seconds:12.4f}{other / seconds:12.1f}")


def theirs(python: str, task: dict[str, object]) -> dict[str, float]:
    """Run anomalib's side with its own Python."""
    done = subprocess.run([python, SIDE], input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"anomalib's side ended with {done.returncode}: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def ours(task: dict[str, object]) -> dict[str, float]:
    """Return seconds per scored image and per coreset."""
    torch.set_num_threads(int(str(task["threads"])))
    paths = [Path(path) for path in task["images"]]  # type: ignore[attr-defined]
    num_train, num_features = int(str(task["train"])), int(str(task["features"]))
    plan = FramePlan("resize", SIZE_PX, SIZE_PX)
    good = np.stack([Frames(decode(path.read_bytes(), 1 << 30), plan)[0] for path in paths[:num_train]])
    width = {"width": task["width"], "training": {"steps": 1, "batch_size": 2}}
    share = {"memory": num_train * (SIZE_PX // 8) ** 2 // 10}
    config = validate_config({"detector": {"draem": width, "memory_bank": share}})
    figures = {}
    for title, name in (("PatchCore, per image", "memory_bank"), ("DRAEM, per image", "draem")):
        method = load_method(name).from_config(config)
        method.fit(TrainingFrames.of_good(good), 0)
        begun = time.perf_counter()
        for path in paths[num_train:]:
            image = decode(path.read_bytes(), 1 << 30)
            (anomaly_map,) = method.maps(Frames(image, plan)[0][np.newaxis])
            resize(anomaly_map, *image.shape[:2])
        figures[title] = (time.perf_counter() - begun) / len(paths[num_train:])
    features = torch.randn(num_features, CHANNELS, generator=torch.Generator().manual_seed(0))
    begun = time.perf_counter()
    spread_out(features, num_features // 10)
    figures["coreset"] = time.perf_counter() - begun
    return figures


if __name__ == "__main__":
    main()
