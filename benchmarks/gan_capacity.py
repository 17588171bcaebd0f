"""Which capacity of `gan_inversion` is best: planted defects, reconstruction error and true defects asked side by side.

    python benchmarks/gan_capacity.py DATA [--size-px 128] [--scale 1] [--steps 600] [--images 100] [--capacities 2:0.2]

A capacity is latent channels and latent noise. Of the good images two thirds train; on the others defects are planted,
and how well those are found (pixel AUROC, pixel AP) is one way to choose, needing no label. The reconstruction error
on the same images is another one. True defects tell which way is right; nothing is chosen by them.
"""

import argparse
import time

import numpy as np
import torch
from numpy.typing import NDArray

from ssad_ray.config import RunConfig, validate_config
from ssad_ray.core.framing import FramePlan, Frames, make_plan, random_frames
from ssad_ray.core.images import decode, resize
from ssad_ray.core.metrics.pixel import PixelHistogram
from ssad_ray.core.records import GOOD
from ssad_ray.core.rng import generator
from ssad_ray.core.storage import read_bytes
from ssad_ray.datasets.catalog import catalog
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.batches import body, plant_several
from ssad_ray.methods.devices import device, make_repeatable
from ssad_ray.methods.gan_inversion import GanInversion
from ssad_ray.pipelines.truth import true_mask

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
NUM_PLANTED = 120
HEADER = ("latent", "noise", "L1 good", "planted AUROC", "planted AP", "true AUROC", "true AP", "train s")


def read(row: ManifestRow, config: RunConfig) -> Image:
    """Return an image."""
    return decode(read_bytes(row.uri, config.data.max_image_bytes), config.data.max_image_px)


def read_with_mask(row: ManifestRow, config: RunConfig) -> tuple[Image, Mask | None]:
    """Return an image and which of its pixels are truly defective."""
    image = read(row, config)
    return image, true_mask(row, *image.shape[:2], config.data.max_image_bytes)


def training_frames(images: list[Image], plan: FramePlan, config: RunConfig) -> TrainingFrames:
    """Cut frames as a run does."""
    rng, num_tiles = generator(0, "frames"), config.input.frames_per_image
    frames = [frame for image in images for (frame,) in random_frames([image], plan, rng, num_tiles)]
    return TrainingFrames.of_good(np.stack(frames))


def planted(images: list[Image], plan: FramePlan) -> list[tuple[Image, Mask]]:
    """Plant defects on frames of good images, each as often as needed; every fourth stays as it is."""
    frames = [frame for image in images for frame in Frames(image, plan)]
    frames = [frames[number % len(frames)] for number in range(max(NUM_PLANTED, len(frames)))]
    pairs = []
    for number, frame in enumerate(frames):
        rng = generator(0, "plant", number)
        other = frames[int(rng.integers(len(frames)))]
        image, change = (
            (frame, np.zeros(frame.shape[:2], bool)) if number % 4 == 0 else plant_several(frame, other, rng)
        )
        pairs.append((image, body(change)))
    return pairs


def figures(method: GanInversion, pairs: list[tuple[Image, Mask]], plan: FramePlan | None) -> tuple[float, float]:
    """Return pixel AUROC and AP; without a plan the images are frames already."""
    pixels = PixelHistogram()
    for image, mask in pairs:
        frames = None if plan is None else Frames(image, plan)
        maps = method.maps(image[np.newaxis] if frames is None else np.stack(list(frames)))
        pixels.update(maps[0] if frames is None else resize(frames.join(maps), *image.shape[:2]), mask)
    result = pixels.result()
    if result is None:
        return float("nan"), float("nan")
    return result.ranking.auroc, result.ranking.average_precision


@torch.no_grad()
def reconstruction_error(method: GanInversion, images: list[Image], plan: FramePlan) -> float:
    """Return the mean absolute difference in grey levels of good images and what is generated for them."""
    errors = []
    for image in images:
        x = torch.from_numpy(np.stack(list(Frames(image, plan)))).permute(0, 3, 1, 2).to(device()) / 127.5 - 1.0
        shown = method.network.generator(method.network.encoder(x))
        errors.append(127.5 * float((x - shown).abs().mean()))
    return float(np.mean(errors))


def main() -> None:
    """Train and judge every capacity."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="folder with good images, and with defective ones for the truth")
    parser.add_argument("--size-px", type=int, default=128, help="working size of a frame")
    parser.add_argument("--scale", type=float, default=1.0, help="of tiles")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--images", type=int, default=100, help="good images at most, and defective ones")
    parser.add_argument("--capacities", default="1:0.2,2:0.2,8:0.0,8:0.2,8:1.0,32:0.2", help="latent:noise,…")
    options = parser.parse_args()
    make_repeatable(1)
    config = validate_config({"input": {"size_px": options.size_px, "scale": options.scale}})
    rows = [row for row in catalog(options.data, config.data).rows if row.error is None]
    rows = [rows[index] for index in generator(0, "rows").permutation(len(rows))]
    good = [read(row, config) for row in [row for row in rows if row.defect_type == GOOD][: options.images]]
    bad = [row for row in rows if row.defect_type not in (GOOD, None)][: options.images]
    truths = [(image, mask) for image, mask in (read_with_mask(row, config) for row in bad) if mask is not None]
    plan = make_plan(good, config.input)
    held_out = good[: len(good) // 3]
    frames = training_frames(good[len(held_out) :], plan, config)
    plants = planted(held_out, plan)
    truths += [(image, np.zeros(image.shape[:2], bool)) for image in held_out]
    print(f"{len(good) - len(held_out)} good images train, {len(plants)} frames of {len(held_out)} others are judged;")
    print(f"truth: {len(truths) - len(held_out)} defective images and those; {plan.mode}, {options.steps} steps\n")
    print("".join(f"{name:>15}" for name in HEADER), flush=True)
    for capacity in options.capacities.split(","):
        latent, _, noise = capacity.partition(":")
        section = {"latent": latent, "noise": noise, "refine_steps": 0, "training": {"steps": options.steps}}
        method = GanInversion.from_config(validate_config({"detector": {"gan_inversion": section}}))
        begun = time.process_time()
        method.fit(frames, 0)
        seconds = time.process_time() - begun
        error = reconstruction_error(method, held_out, plan)
        found, true = figures(method, plants, None), figures(method, truths, plan)
        cells = (
            int(latent),
            float(noise),
            round(error, 2),
            *(round(each, 3) for each in (*found, *true)),
            int(seconds),
        )
        print("".join(f"{cell!s:>15}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
