"""The ablations of CPS-SLA on one product: how often an edit shows nothing, and what soft labels and alpha do.

    python benchmarks/cutpaste_sla_ablation.py FOLDER [--level patch] [--size 256] [--steps 400] [--seeds 3]

The first table is counted, without training (the paper's figure 1): crops of which so little changed that it cannot be
seen. The others are trained, once per seed, and give the image AUROC on the test images, mean and standard deviation
over the seeds (its tables 3 and 4), and where patches are judged pixel AUROC and AP, in frames. With
`--steps 0` nothing is trained. The paper judges images as a whole, by what leaves the last of four stages:
`--level image --stages 4`. Density is one Gaussian, as in the paper; place by place, which is the detector's default,
an untrained network does as well.
"""

import argparse
import itertools
import statistics

import numpy as np
from numpy.typing import NDArray
from one_member import judged, load_product
from tables import cell

from ssad_ray.core.rng import generator
from ssad_ray.core.synthesis.edits import EDITS, changed_share
from ssad_ray.methods.devices import make_repeatable

NUM_EDITS = 2000
BARELY = 0.1
"""Share of the pasted pixels that must change; below, a soft label is under one half."""
ALPHAS = (1.0, 2.0, 5.0, 7.0, 10.0, 15.0)


def count_invalid(frames_NHWC: NDArray[np.uint8], level: str) -> None:
    """Print how many of each edit changed less than `BARELY` of what was pasted, and how many nothing at all."""
    height, width = (32, 32) if level == "patch" else frames_NHWC.shape[1:3]
    print(f"\nOf {NUM_EDITS} edits of crops of {height} x {width} px\n")
    print(f"| edit | nothing changed | less than {BARELY:.0%} | median share |\n| --- | --- | --- | --- |")
    for name, edit in EDITS.items():
        shares = []
        for index in range(NUM_EDITS):
            rng = generator(0, "count", name, index)
            frame = frames_NHWC[int(rng.integers(len(frames_NHWC)))]
            top, left = (int(rng.integers(a - b + 1)) for a, b in zip(frame.shape, (height, width), strict=False))
            crop = frame[top : top + height, left : left + width]
            shares.append(changed_share(crop, *edit(crop, rng)))
        counts = [sum(share <= limit for share in shares) for limit in (0.0, BARELY)]
        print(f"| {name} | {counts[0]} | {counts[1]} | {statistics.median(shares):.2f} |", flush=True)


def main() -> None:
    """Count, then train and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="one product, in a layout with a train and a test stage")
    parser.add_argument("--level", choices=("patch", "image"), default="patch")
    parser.add_argument("--density", choices=("places", "gaussian", "kernel"), default="gaussian")
    parser.add_argument("--stages", type=int, default=2, help="residual stages that are trained")
    parser.add_argument("--size", type=int, default=256, help="frame size, px")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each training")
    parser.add_argument("--batch", type=int, default=32, help="crops per step")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    arguments = parser.parse_args()
    make_repeatable(1)
    product = load_product(arguments.folder, arguments.size)
    count_invalid(product.good_NHWC, arguments.level)
    if not arguments.steps:
        return
    common = {
        "level": arguments.level,
        "density": arguments.density,
        "stages": arguments.stages,
        "training": {"steps": arguments.steps, "batch_size": arguments.batch},
    }
    variants = [
        {"transformation": edit, "labels": labels}
        for edit, labels in itertools.product([*EDITS, "fusion"], ("hard", "soft"))
    ]
    variants += [{"transformation": "scar", "alpha": alpha} for alpha in ALPHAS]
    metrics = ("image_auroc", "pixel_auroc", "pixel_ap")[: 3 if arguments.level == "patch" else 1]
    print(f"\n| variant | {' | '.join(metrics)} |\n| --- |{' --- |' * len(metrics)}")
    for variant in variants:
        runs = [judged("cutpaste_sla", {**common, **variant}, product, seed) for seed in range(arguments.seeds)]
        name = ", ".join(f"{name} {value}" for name, value in variant.items())
        print(f"| {name} | {' | '.join(cell([run[metric] for run in runs]) for metric in metrics)} |", flush=True)


if __name__ == "__main__":
    main()
