"""Detectors of one product side by side: figures over runs (one per seed), time to fit, images per second, size.

.venv/bin/python benchmarks/compare_detectors.py runs/context-* runs/fusion-*

Artifacts with the same name and frame size make one column. Each was fitted and evaluated (`ssad fit`,
`ssad evaluate`). Times and size are those of the first run of a column: `ssad fit` as the run noted it, and from the
bytes of a file to a verdict, one image at a time, by all members of the artifact, after two images to warm up. The
images are some of the first column's test images. Columns take turns; the median of all counts.
"""

import argparse
import statistics
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from tables import METRICS, cell

from ssad_ray.core.storage import read_bytes
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods.artifact import Artifact, describe_artifact, load_artifact
from ssad_ray.methods.judging import judge
from ssad_ray.pipelines.run import Run, read_json

_WARMED_UP_BY = 2


def main() -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 2), ("turns", 3), ("images", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    columns: dict[str, list[Path]] = defaultdict(list)
    for run in options.runs:
        for evaluation in sorted((run / "evaluation").glob("*.json")):
            path = run / "models" / evaluation.stem
            plan = describe_artifact(path).plan
            columns[f"`{path.name}`, {plan.height}x{plan.width}"].append(path)

    print(f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    _print_row("runs", [str(len(paths)) for paths in columns.values()])
    for metric in METRICS:
        figures = [_figures(paths, metric) for paths in columns.values()]
        if any(value is not None for values in figures for value in values):
            _print_row(metric, [cell(values) for values in figures])
    _print_row("fit, min", [_fit_minutes(paths[0]) for paths in columns.values()])
    artifacts = [load_artifact(paths[0]) for paths in columns.values()]
    rows = Run(next(iter(columns.values()))[0].parents[1], artifacts[0].config).rows("test")
    rows = rows[:: max(1, len(rows) // options.images)][: options.images]
    seconds: list[list[float]] = [[] for _ in artifacts]
    for _ in range(options.turns):
        for artifact, taken in zip(artifacts, seconds, strict=True):
            taken += _seconds(artifact, rows)
    _print_row("images/s", [f"{1 / statistics.median(taken):.1f}" for taken in seconds])
    sizes = [sum(file.stat().st_size for file in paths[0].iterdir()) for paths in columns.values()]
    _print_row("artifact, MB", [f"{size / 1e6:.1f}" for size in sizes])


def _figures(paths: list[Path], metric: str) -> list[float | None]:
    evaluations = [read_json(path.parents[1] / "evaluation" / f"{path.name}.json") for path in paths]
    return [evaluation["metrics"][metric] for evaluation in evaluations]


def _fit_minutes(path: Path) -> str:
    noted = path.parents[1] / "seconds.json"
    seconds = read_json(noted).get(f"fit {path.name}") if noted.exists() else None
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _seconds(artifact: Artifact, rows: list[ManifestRow]) -> list[float]:
    limits, taken = artifact.config.data, []
    for row in rows[:_WARMED_UP_BY] + rows:
        data = read_bytes(row.uri, limits.max_image_bytes)
        begun = time.perf_counter()
        judge(artifact, row.sample, data, limits, datetime.now(UTC))
        taken.append(time.perf_counter() - begun)
    return taken[_WARMED_UP_BY:]


def _print_row(title: str, cells: list[str]) -> None:
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
