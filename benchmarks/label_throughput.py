"""How fast images are labelled: a plain loop against Ray actors, with the same artifact, on the same machine.

    python benchmarks/label_throughput.py [--images 200] [--data FOLDER] [--artifact PATH]

A rate is images divided by the time from the first image's start to the last one's end; what Ray needs to start is
printed beside it. Each is measured for N and 4 N images, to show that memory does not grow with them.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ssad_ray.config import RunConfig
from ssad_ray.core.calibration import calibrate
from ssad_ray.core.framing import make_plan, to_frames
from ssad_ray.core.images import encode_png
from ssad_ray.core.records import Sample
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.labels.rows import SCHEMA
from ssad_ray.methods.artifact import Artifact, save_artifact
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.pixel_reference import PixelReference
from ssad_ray.pipelines.label import Judge
from ssad_ray.pipelines.session import session
from ssad_ray.pipelines.stream import stream

SIDE_PX = 900
DISTINCT_IMAGES = 40
COLUMNS = pa.schema([*SCHEMA, ("started", pa.float64()), ("ended", pa.float64()), ("cpu_s", pa.float64())])


class TimedJudge(Judge):
    """Also tells when it began and ended, and how long the CPU worked."""

    def __call__(self, sample: Sample, data: bytes) -> dict[str, Any]:
        """Return the row of an image."""
        started, cpu = time.time(), time.process_time()
        row = super().__call__(sample, data)
        return {**row, "started": started, "ended": time.time(), "cpu_s": time.process_time() - cpu}


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
    method.fit(TrainingFrames.of_good(np.concatenate([to_frames(image, plan) for image in images[:10]])), seed=0)
    artifact = Artifact("pixel_reference-1", "pixel_reference", plan, (method,), None, config, {})
    scores, maps = zip(*(artifact.score(image) for image in images[10:]), strict=True)
    save_artifact(replace(artifact, calibration=calibrate(scores, maps, 0.1, 1e-4, 1e-3)), path)


def pss_mib(pid: int) -> float:
    """Return a process's share of the memory it uses, MiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0.0


def actors() -> list[int]:
    """Return the processes of Ray Data's actors."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "MapWorker" in (process / "cmdline").read_text(encoding="utf-8", errors="replace"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Give the body a mapping that holds the peaks when the body has ended."""
    peaks = {"driver": 0.0, "actor": 0.0}
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.5):
            peaks["driver"] = max(peaks["driver"], pss_mib(os.getpid()))
            peaks["actor"] = max([peaks["actor"], *(pss_mib(pid) for pid in actors())])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        finished.set()
        watcher.join()


def measure(rows: list[ManifestRow], artifact_path: Path, workers: int) -> None:
    """Judge all rows and print a line."""
    config = RunConfig(resources={"score_workers": workers})
    columns = pa.schema([field for field in COLUMNS if field.name not in ("sample_id", "error")])
    make_worker = partial(TimedJudge, artifact_path, config.data, datetime.now(UTC))
    begun = time.time()
    started, ended, cpu_s, errors = [], [], 0.0, 0
    with peak_memory() as peaks:
        for row in stream(rows, make_worker, columns, config):
            if row["error"]:
                errors += 1
                continue
            started.append(row["started"])
            ended.append(row["ended"])
            cpu_s += row["cpu_s"]
    rate = len(started) / (max(ended) - min(started))
    name = f"Ray, {workers} actor{'s' if workers > 1 else ''}" if workers else "loop"
    print(
        f"{name:14} {len(rows):6} {errors:6} {min(started) - begun:11.1f} {time.time() - begun:8.1f} {rate:9.2f} "
        f"{rate / max(1, workers):9.2f} {1000 * cpu_s / len(started):13.1f} {peaks['driver']:7.0f} "
        f"{peaks['actor']:6.0f}",
        flush=True,
    )


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
            print(f"Ray itself started in {time.time() - begun:.1f} s; {os.cpu_count()} cores; memory is PSS, MiB\n")
            print("variant        images errors actors up/s  total/s  images/s  per core  CPU ms/image  driver  actor")
            for count in (options.images, 4 * options.images):
                for workers in (0, 1, 2):
                    measure(rows[:count], artifact_path, workers)


if __name__ == "__main__":
    main()
