"""The ablations of SCL-VI on one product: what its encoder is learnt from, which one it is, and what is a distance.

    python benchmarks/context_svdd_ablation.py FOLDER [--vary pretext] [--steps 1500] [--seeds 3]
    python benchmarks/context_svdd_ablation.py FOLDER --vary encoder --good 12 --every 4 --threads 2

The pretexts are those of the paper's Table 1, with everything else as it is here. The paper's encoder takes a hundred
times as long for a frame as the dense one, so the two are compared on some of the images.
"""

import argparse

from one_member import Product, judged, load_product
from tables import cell

from ssad_ray.methods.devices import make_repeatable

VARIANTS = {
    "pretext": ("context", "jigsaw", "rotation", "permutation", "none"),
    "encoder": ("dense", "paper", "published"),
    "score": ("feature", "distance"),
}
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro")


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="one product, in a layout with a train and a test stage")
    parser.add_argument("--vary", choices=tuple(VARIANTS), default="pretext")
    parser.add_argument("--size", type=int, default=256, help="frame size, px")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of each training")
    parser.add_argument("--good", type=int, help="so many good images to train on; all by default")
    parser.add_argument("--every", type=int, default=1, help="judge every n-th test image")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    make_repeatable(arguments.threads)
    product = load_product(arguments.folder, arguments.size)
    product = Product(product.good_NHWC[: arguments.good], product.test[:: arguments.every])
    print(f"\n| {arguments.vary} | {' | '.join(METRICS)} | s per frame |\n| --- |{' --- |' * (len(METRICS) + 1)}")
    for variant in VARIANTS[arguments.vary]:
        options = {arguments.vary: variant, "training": {"steps": arguments.steps}}
        runs = [judged("context_svdd", options, product, seed) for seed in range(arguments.seeds)]
        cells = [cell([run[name] for run in runs]) for name in (*METRICS, "seconds")]
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
