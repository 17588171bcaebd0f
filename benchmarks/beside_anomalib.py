"""Methods that this package and anomalib both have, side by side: images per second from file to map, and the coreset.

    uv venv /some/where && uv pip install --python /some/where "anomalib==2.7.*"
    python benchmarks/beside_anomalib.py --data FOLDER --anomalib-python /some/where/bin/python
    python benchmarks/beside_anomalib.py --data FOLDER --anomalib-python /some/where/bin/python \
        --processes 2 --threads 1

FOLDER holds images of one product (`train/good` of an MVTec product, say). Both sides work on frames of 256 px with as
many processes and threads, one image at a time: read the file, decode, resize, score, and bring the map to the image's
size. anomalib is called at its torch models, without Lightning around them, which is the fastest way it has.

- PatchCore: ResNet-18 with random weights, a memory of a tenth of the features. Here it is `memory_bank`.
- DRAEM: the first blocks equally wide, untrained: what is compared is time. anomalib's networks are the published ones,
  with five times the multiplications of those here.
- The coreset: from the same number of features of the same width, 384 channels, to a tenth of them.

With several processes each scores all images, all begin at the same moment, the last one to end counts, and the coreset
is left out. The sides take turns; the best of the turns counts. On parts that always lie alike, as bottles do,
`memory_bank` compares a patch with what is remembered of the places around it, and anomalib with its whole memory.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZE_PX = 256
CHANNELS = 384
HERE = Path(__file__).parent


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
        ("processes", 1),
        ("threads", 2),
        ("turns", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    images = [str(path) for path in sorted(options.data.iterdir())[: options.train + options.score]]
    task = {
        "train": images[: options.train],
        "score": images[options.train :],
        **{name: getattr(options, name) for name in ("width", "features", "threads")},
        "size_px": SIZE_PX,
        "channels": CHANNELS,
    }
    sides = {"anomalib": options.anomalib_python, "ssad_ray": sys.executable}
    scored = options.processes * len(task["score"])
    figures = {"PatchCore, per image": scored, "DRAEM, per image": scored} | (
        {} if options.processes > 1 else {"coreset": 1}
    )
    turns = [
        {
            side: seconds(python, f"{side}_side.py", task, options.processes, len(figures))
            for side, python in sides.items()
        }
        for _ in range(options.turns)
    ]
    print(f"{'seconds':24}{'anomalib':>12}{'ssad_ray':>12}{'faster by':>12}")
    for number, (title, count) in enumerate(figures.items()):
        other, own = (min(turn[side][number] for turn in turns) / count for side in sides)
        print(f"{title:24}{other:12.4f}{own:12.4f}{other / own:12.1f}")


def seconds(python: str, script: str, task: dict[str, Any], num_processes: int, num_figures: int) -> list[float]:
    """Return how long the processes of a side take for PatchCore, for DRAEM, and for the coreset."""
    processes = [
        subprocess.Popen([python, HERE / script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(num_processes)
    ]
    tell(processes, json.dumps(task))
    spans = [span(processes, script) for _ in range(num_figures)]
    for process in processes:
        process.kill()
    return spans


def span(processes: list["subprocess.Popen[str]"], script: str) -> float:
    """Give the word to all when the last one is ready, and return the seconds until the last one has ended."""
    for process in processes:
        answer(process, script)
    tell(processes, "begin")
    begun, ended = zip(*(json.loads(answer(process, script)) for process in processes), strict=True)
    return float(max(ended) - min(begun))


def tell(processes: list["subprocess.Popen[str]"], line: str) -> None:
    """Write a line to all."""
    for process in processes:
        assert process.stdin is not None  # noqa: S101
        process.stdin.write(line + "\n")


def answer(process: "subprocess.Popen[str]", script: str) -> str:
    """Return the next line of a side, or end with it."""
    assert process.stdout is not None  # noqa: S101
    line = process.stdout.readline()
    return line if line else sys.exit(f"{script} ended early; its own words stand above")


if __name__ == "__main__":
    main()
