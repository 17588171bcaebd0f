"""Detectors of one product side by side: figures over runs (one per seed), time to fit, images per second, size.

.venv/bin/python benchmarks/compare_detectors.py --images $DATA/mvtec_ad/bottle/test/good runs/context-* runs/fusion-*

Runs whose artifacts have the same name and frame size make one column. Each was fitted and evaluated (`ssad fit`,
`ssad evaluate`). Times and size are those of the first run of a column: `ssad fit` as the run noted it, and from the
bytes of a file to score and map, one image at a time, by all members of the artifact, after two images to warm up.
Columns take turns; the median of all counts.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from tables import cell

from ssad_ray.config import DataConfig
from ssad_ray.core.images import decode
from ssad_ray.methods.artifact import Artifact, load_artifact
from ssad_ray.pipelines.run import read_json

METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro", "pixel_ap", "pixel_f1_max", "pooled_iou")


def main() -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    for name, default in (("threads", 2), ("turns", 3), ("most", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = [path.read_bytes() for path in sorted(options.images.iterdir())[: options.most]]

    columns: dict[str, list[Path]] = defaultdict(list)
    for run in options.runs:
        for evaluation in sorted((run / "evaluation").glob("*.json")):
            path = run / "models" / evaluation.stem
            artifact = load_artifact(path)
            columns[f"`{path.name}`, {artifact.plan.height}x{artifact.plan.width}"].append(path)

    print(f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    _print_row("runs", [str(len(paths)) for paths in columns.values()])
    for metric in METRICS:
        _print_row(metric, [_cell(paths, metric) for paths in columns.values()])
    _print_row("fit, min", [_fit_minutes(paths[0]) for paths in columns.values()])
    artifacts = [load_artifact(paths[0]) for paths in columns.values()]
    seconds: list[list[float]] = [[] for _ in artifacts]
    for _ in range(options.turns):
        for artifact, taken in zip(artifacts, seconds, strict=True):
            taken += _seconds(artifact, files)
    _print_row("images/s", [f"{1 / statistics.median(taken):.1f}" for taken in seconds])
    sizes = [sum(file.stat().st_size for file in paths[0].iterdir()) for paths in columns.values()]
    _print_row("artifact, MB", [f"{size / 1e6:.1f}" for size in sizes])


def _fit_minutes(path: Path) -> str:
    noted = path.parents[1] / "seconds.json"
    seconds = read_json(noted).get(f"fit {path.name}") if noted.exists() else None
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _seconds(artifact: Artifact, files: list[bytes]) -> list[float]:
    taken = []
    for data in files[:2] + files:
        begun = time.perf_counter()
        artifact.score(decode(data, DataConfig().max_image_px))
        taken.append(time.perf_counter() - begun)
    return taken[2:]


def _cell(paths: list[Path], metric: str) -> str:
    evaluations = [read_json(path.parents[1] / "evaluation" / f"{path.name}.json") for path in paths]
    values = [evaluation["metrics"][metric] for evaluation in evaluations]
    return cell(values)


def _print_row(title: str, cells: list[str]) -> None:
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
