"""The ablations of CPS-SLA on one product: how often an edit shows nothing, and what soft labels and alpha do.

    python benchmarks/cutpaste_sla_ablation.py FOLDER [--level patch] [--size 256] [--steps 400] [--seeds 3]

The first table is counted, without training (the paper's figure 1): crops of which so little changed that it cannot be
seen. The others are trained, once per seed, and give the image AUROC on the test images, mean and standard deviation
over the seeds (its tables 3 and 4), and where patches are judged the pixel AUROC, in frames. With `--steps 0` nothing
is trained. The paper judges images as a whole, by one Gaussian of what leaves the last of four stages:
`--level image --density gaussian --stages 4`.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssad_ray.config import RunConfig, validate_config
from ssad_ray.core.framing import FramePlan, make_plan, to_frames
from ssad_ray.core.images import decode, decode_mask, resize
from ssad_ray.core.metrics.evaluation import JudgedImage, evaluate
from ssad_ray.core.records import GOOD, Prediction
from ssad_ray.core.rng import generator
from ssad_ray.core.synthesis.edits import EDITS, changed_share
from ssad_ray.datasets.catalog import catalog
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.cutpaste_sla import CutPasteSla
from ssad_ray.methods.devices import make_repeatable

NUM_EDITS = 2000
BARELY = 0.1
"""Share of the pasted pixels that must change; below, a soft label is under one half."""
ALPHAS = (1.0, 2.0, 5.0, 7.0, 10.0, 15.0)


def read(row: ManifestRow) -> NDArray[np.uint8]:
    """Return the image (H, W, 3) of a row."""
    return decode(Path(row.uri).read_bytes(), RunConfig().data.max_image_px)


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


def shown(row: ManifestRow, plan: FramePlan) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Return a test image as a frame (1, H, W, 3), and its true mask (H, W) if it has one."""
    image = read(row)
    if row.mask_uri is None:
        return to_frames(image, plan), None
    mask = decode_mask(Path(row.mask_uri).read_bytes(), *image.shape[:2])
    return to_frames(image, plan), resize(mask.astype(np.float32), plan.height, plan.width) > 0.5


def aurocs(
    options: dict[str, Any],
    good_NHWC: NDArray[np.uint8],
    tests: Sequence[tuple[ManifestRow, NDArray[np.uint8], NDArray[np.bool_] | None]],
    seed: int,
) -> list[float | None]:
    """Train once and return image and pixel AUROC on the test images."""
    method = CutPasteSla.from_config(validate_config({"detector": {"cutpaste_sla": options}}))
    method.fit(TrainingFrames.of_good(good_NHWC), seed)
    images = []
    for row, frame, mask in tests:
        scores, maps = method.score(frame)
        images.append(JudgedImage(Prediction(row.sample_id, float(scores[0]), maps[0]), row.ground_truth, None, mask))
    metrics = evaluate(images, exact=True).metrics
    return [metrics["image_auroc"], metrics["pixel_auroc"] if options["level"] == "patch" else None]


def cell(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation, in per cent."""
    known = [100 * value for value in values if value is not None]
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}" if known else "–"


def main() -> None:
    """Count, then train and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="one product, in a layout with a train and a test stage")
    parser.add_argument("--level", choices=("patch", "image"), default="patch")
    parser.add_argument("--density", choices=("places", "gaussian", "kernel"), default="places")
    parser.add_argument("--stages", type=int, default=2, help="residual stages that are trained")
    parser.add_argument("--size", type=int, default=256, help="frame size, px")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each training")
    parser.add_argument("--batch", type=int, default=32, help="crops per step")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    arguments = parser.parse_args()
    make_repeatable(1)
    config = validate_config({"input": {"size_px": arguments.size, "mode": "resize"}})
    rows = [row for row in catalog(arguments.folder, config.data).rows if row.error is None]
    train = [row for row in rows if row.source_stage == "train" and row.defect_type == GOOD]
    test = [row for row in rows if row.source_stage == "test"]
    images = [read(row) for row in train]
    plan = make_plan(images, config.input)
    good = np.concatenate([to_frames(image, plan) for image in images])
    print(f"{len(train)} good images, {len(test)} test images, frames of {plan.height} x {plan.width} px")
    count_invalid(good, arguments.level)
    if not arguments.steps:
        return
    common = {
        "level": arguments.level,
        "density": arguments.density,
        "stages": arguments.stages,
        "training": {"steps": arguments.steps, "batch_size": arguments.batch},
    }
    edits = [*EDITS] if arguments.level == "image" else [*EDITS, "fusion"]
    tests = [(row, *shown(row, plan)) for row in test]
    variants = [
        {"transformation": edit, "labels": labels} for edit, labels in itertools.product(edits, ("hard", "soft"))
    ]
    variants += [{"transformation": "scar", "alpha": alpha} for alpha in ALPHAS]
    print("\n| variant | image AUROC, % | pixel AUROC, % |\n| --- | --- | --- |")
    for variant in variants:
        figures = [aurocs({**common, **variant}, good, tests, seed) for seed in range(arguments.seeds)]
        name = ", ".join(f"{name} {value}" for name, value in variant.items())
        print(f"| {name} | " + " | ".join(cell(values) for values in zip(*figures, strict=True)) + " |", flush=True)


if __name__ == "__main__":
    main()
