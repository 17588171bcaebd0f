"""How fast images are labelled: a plain loop against Ray actors, with the same artifact, on the same machine.

    python benchmarks/label_throughput.py [--images 200] [--data FOLDER] [--artifact PATH]

A rate is images divided by the time from the first image's start to the last one's end; what the actors need to start
is printed beside it. CPU time per image, of the processes that judge and of Ray's driver from the call on, tells on a
busy machine what the rate cannot. Memory is the most that was ever resident; each variant is measured for N and 4 N
images, to show that it does not grow with them.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.calibration import calibrate
from ssad_ray.core.framing import Frames, make_plan
from ssad_ray.core.images import encode_png
from ssad_ray.core.records import Sample
from ssad_ray.core.storage import read_bytes
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.labels.rows import WORKER_SCHEMA
from ssad_ray.methods.artifact import Artifact, save_artifact
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.devices import make_repeatable
from ssad_ray.methods.pixel_reference import PixelReference
from ssad_ray.pipelines.label import Judge
from ssad_ray.pipelines.session import session
from ssad_ray.pipelines.stream import Row, stream

SIDE_PX = 900
DISTINCT_IMAGES = 40
HEADER = ("", "images", "errors", "ready s", "total s", "img/s", "per core", "CPU ms", "driver", "MiB", "actor MiB")
CLOCKS = ("started", "ended", "cpu_before", "cpu_after", "peak_mib")
COLUMNS = pa.schema(
    [
        *WORKER_SCHEMA,
        *((name, pa.float64()) for name in CLOCKS),
        ("pid", pa.int64()),
    ]
)


class TimedJudge(Judge):
    """Also tells when it began and ended, and what its process used."""

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return the row of an image."""
        before = time.time(), time.process_time()
        row = super().__call__(sample, data)
        clocks = (before[0], time.time(), before[1], time.process_time(), peak_mib())
        return {**row, **dict(zip(CLOCKS, clocks, strict=True)), "pid": os.getpid()}


def peak_mib() -> float:
    """Return the largest resident memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def picture(number: int) -> NDArray[np.uint8]:
    """Return a textured plate; every fifth one has a scratch."""
    rng = np.random.default_rng(number)
    plate = np.linspace(60, 180, SIDE_PX)[:, None, None] + rng.normal(0, 5, (SIDE_PX, SIDE_PX, 3))
    if number % 5 == 0:
        plate[300:320, 200:600] += 70
    return np.clip(plate, 0, 255).astype(np.uint8)


def make_images(folder: Path) -> None:
    """Write the pictures."""
    for number in range(DISTINCT_IMAGES):
        (folder / f"{number:03d}.png").write_bytes(encode_png(picture(number)))


def make_artifact(path: Path) -> None:
    """Fit and calibrate a pixel reference on other pictures."""
    config = RunConfig()
    images = [picture(1000 + 5 * number + 1) for number in range(20)]
    plan = make_plan(images, config.input)
    method = PixelReference.from_config(config)
    method.fit(TrainingFrames.of_good(np.stack([Frames(image, plan)[0] for image in images[:10]])), seed=0)
    artifact = Artifact("pixel_reference-1", "pixel_reference", plan, None, config, {}, (method,))
    scored = (artifact.score(image) for image in images[10:])
    save_artifact(replace(artifact, calibration=calibrate(scored, 10, 0.1, 1e-4, 1e-3)), path)


def plain_loop(rows: list[ManifestRow], make_worker: Callable[[], TimedJudge], max_bytes: int) -> Iterator[Row]:
    """Judge without any of the stream, with one thread."""
    make_repeatable(1)
    worker = make_worker()
    for row in rows:
        yield {"error": None, **worker(row.sample, read_bytes(row.uri, max_bytes))}


def measure(rows: list[ManifestRow], artifact_path: Path, workers: int) -> None:
    """Judge all rows and print a line."""
    config = RunConfig(resources={"score_workers": workers})
    make_worker = partial(TimedJudge, artifact_path, config.data, datetime.now(UTC))
    begun = time.time()
    results = (
        stream(rows, make_worker, COLUMNS, config)
        if workers
        else plain_loop(rows, make_worker, config.data.max_image_bytes)
    )
    cpu_driver = time.process_time()
    clocks = [{name: row[name] for name in (*CLOCKS, "pid")} for row in results if row["error"] is None]
    cpu_driver = time.process_time() - cpu_driver if workers else 0.0
    started = min(row["started"] for row in clocks)
    rate = len(clocks) / (max(row["ended"] for row in clocks) - started)
    cpu_judging = sum(
        max(row["cpu_after"] for row in clocks if row["pid"] == pid)
        - min(row["cpu_before"] for row in clocks if row["pid"] == pid)
        for pid in {row["pid"] for row in clocks}
    )
    name = f"Ray, {workers} actor{'s' if workers > 1 else ''}" if workers else "plain loop"
    actor_mib = max(row["peak_mib"] for row in clocks) if workers else 0
    per_image = [round(1000 * cpu / len(clocks), 1) for cpu in (cpu_judging, cpu_driver)]
    seconds = [round(at - begun, 1) for at in (started, time.time())]
    rates = [round(rate, 2), round(rate / max(1, workers), 2)]
    print_line(name, len(rows), len(rows) - len(clocks), *seconds, *rates, *per_image, int(peak_mib()), int(actor_mib))


def print_line(name: str, *cells: object) -> None:
    """Print a row of the table."""
    print(f"{name:14}" + "".join(f"{cell!s:>10}" for cell in cells), flush=True)


def main() -> None:
    """Measure all variants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200, help="images of the smaller runs")
    parser.add_argument("--data", type=Path, help="folder of images, instead of made ones")
    parser.add_argument("--artifact", type=Path, help="calibrated artifact, instead of a pixel reference")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, artifact_path = options.data or Path(scratch), options.artifact or Path(scratch, "artifact")
        if options.data is None:
            make_images(folder)
        if options.artifact is None:
            make_artifact(artifact_path)
        files = sorted(path.absolute() for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".bmp"))
        named = (ManifestRow(f"{at}", str(path), "plate", "g") for at, path in enumerate(cycle(files)))
        rows = list(islice(named, 4 * options.images))
        begun = time.time()
        with session(RunConfig(resources={"score_workers": 2}).resources):
            print(f"Ray itself started in {time.time() - begun:.1f} s; {os.cpu_count()} cores\n")
            print_line(*HEADER)
            for count in (options.images, 4 * options.images):
                for workers in (0, 1, 2):
                    measure(rows[:count], artifact_path, workers)


if __name__ == "__main__":
    main()
