"""What labels are worth once a few of their regions are named: the Tianchi score as a mean over defect types.

.venv/bin/python benchmarks/typed_labels.py runs/pcb-0 --labels template_difference-1

The run's online images have true boxes with types. Of each type a few regions whose middle lies in such a box are drawn
and named by it, and the others get their names from them, as by `ssad propagate-types`. The run stays as it is.
"""

import argparse
import csv
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from tables import cell

from ssad_ray.config import load_config
from ssad_ray.core.metrics.objects import image_boxes, tianchi_score
from ssad_ray.core.records import DefectRegion
from ssad_ray.core.rng import generator
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.labels.versions import read_labels
from ssad_ray.pipelines.console import progress
from ssad_ray.pipelines.label_quality import compare_with_truth
from ssad_ray.pipelines.propagate_types import propagate_types
from ssad_ray.pipelines.run import Run

_LEAST_SHARE = 0.5


def main() -> None:
    """Print the score without types, and with them, mean and spread of several draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--labels", required=True, help="label version of the run")
    parser.add_argument("--named", type=int, default=3, help="regions named of each type")
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress() as announce:
        copy = Path(folder, "run")
        shutil.copytree(options.run, copy, ignore=shutil.ignore_patterns("models", "work"))
        run = Run(copy, load_config(copy / "config.yaml"))
        rows = run.rows("online")
        labels = {each.sample_id: each for each in read_labels(str(run.labels_path), options.labels)}
        boxes = [image_boxes(row.boxes, labels[row.sample_id].regions) for row in rows]
        print(f"without types: {tianchi_score(boxes, class_agnostic=True):.3f}", flush=True)

        candidates = defaultdict(list)
        for row in rows:
            for region in labels[row.sample_id].regions:
                if len(types := types_at(region, row)) == 1:
                    candidates[types.pop()].append(region.region_id)
        scores = []
        for draw in range(options.draws):
            rng, named, name = generator(draw, "named"), copy / f"named-{draw}.csv", f"typed-{draw}"
            with named.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["region_id", "defect_type"])
                for defect_type, regions in sorted(candidates.items()):
                    writer.writerows([each, defect_type] for each in rng.permutation(regions)[: options.named])
            propagate_types(run, options.labels, str(named), name, "benchmark", _LEAST_SHARE, announce)
            typed = {each.sample_id: each for each in read_labels(str(run.labels_path), name)}
            scores.append(compare_with_truth(rows, typed, run.config.data.max_image_bytes).tianchi_score)
        print(f"{options.named} of each type named, {options.draws} draws: {cell(scores)}")


def types_at(region: DefectRegion, row: ManifestRow) -> set[str]:
    """Return the types of the true boxes in which the middle of a region lies."""
    x0, y0, x1, y1 = region.box
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return {
        true.defect_type for true in row.boxes if true.box[0] <= x <= true.box[2] and true.box[1] <= y <= true.box[3]
    }


if __name__ == "__main__":
    main()
