"""Mean and standard deviation over runs (one per seed) of every model's figures, as a Markdown table.

.venv/bin/python benchmarks/summarise_runs.py runs/bottle-routine1-*
"""

import json
import sys
from pathlib import Path

from tables import METRICS, cell

MODELS = ("floor", "detector", "segmenter", "yardstick")


def main() -> None:
    """Print the table of the run folders named on the command line."""
    reports = [json.loads((Path(run) / "report.json").read_text()) for run in sys.argv[1:]]
    models = [model for model in MODELS if model in reports[0]]
    print(f"| {len(reports)} runs | " + " | ".join(models) + " |")
    print("| --- |" + " --- |" * len(models))
    for metric in METRICS:
        cells = [cell([report[model].get(metric) for report in reports]) for model in models]
        print(f"| {metric} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
