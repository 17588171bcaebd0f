"""Exact nearest neighbours in a memory of patch features: this package's search beside faiss's exact index.

    python benchmarks/nearest_neighbours.py [--queries 3249] [--items 679000] [--neighbours 10] [--threads 2]

Items are 64 channels between -1 and 1, in clusters as those of an encoder are. The two take turns; the least and the
median time of each are printed, the build of the index apart. faiss (`pip install faiss-cpu`) is no dependency: where
it is missing it is left out. A plain matrix product with top-k stands beside both; all are checked against brute force.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor

from ssad_ray.methods.memory import Memory

CHANNELS = 64
CLUSTERS = 500
CHECKED_QUERIES = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("queries", 3249), ("items", 679_000), ("neighbours", 10), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chance = torch.Generator().manual_seed(0)
    centres = torch.randn(CLUSTERS, CHANNELS, generator=chance)
    items, queries = (features(num, centres, chance) for num in (options.items, options.queries))
    searches: dict[str, Callable[[], Tensor]] = {}
    building = {}
    for name, build in (("ssad_ray", ours), ("faiss", faiss_index), ("matrix product", plain)):
        if name == "faiss" and find_spec("faiss") is None:
            continue
        begun = time.perf_counter()
        searches[name] = build(items, queries, options.neighbours, options.threads)
        building[name] = time.perf_counter() - begun
    times: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(options.repeats):
        for name, search in searches.items():
            begun = time.perf_counter()
            found = search()
            times[name].append(time.perf_counter() - begun)
            check(name, found, items, queries)
    print(f"{options.queries} queries, {options.items} items, {CHANNELS} channels, {options.threads} threads")
    print(f"{'':16}{'build s':>10}{'least s':>10}{'median s':>10}")
    for name, each in times.items():
        print(f"{name:16}{building[name]:10.2f}{min(each):10.2f}{median(each):10.2f}")


def features(num: int, centres: Tensor, chance: torch.Generator) -> Tensor:
    """Return features (num, channels) float32 around some of the centres."""
    which = torch.randint(len(centres), (num,), generator=chance)
    return torch.tanh(centres[which] + 0.3 * torch.randn(num, CHANNELS, generator=chance))


def ours(items: Tensor, queries: Tensor, num: int, threads: int) -> Callable[[], Tensor]:  # noqa: ARG001
    """Search a `Memory`."""
    memory = Memory(items)
    return lambda: memory.nearest(queries, num)[0]


def faiss_index(items: Tensor, queries: Tensor, num: int, threads: int) -> Callable[[], Tensor]:
    """Search faiss's IndexFlatL2."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(CHANNELS)
    index.add(items.numpy())
    return lambda: torch.from_numpy(index.search(queries.numpy(), num)[0]).clamp(min=0).sqrt()


def plain(items: Tensor, queries: Tensor, num: int, threads: int) -> Callable[[], Tensor]:  # noqa: ARG001
    """Take all distances by one matrix product per 256 queries, and the least of them."""
    norms = (items**2).sum(1)

    def search() -> Tensor:
        squared = [
            torch.addmm(norms, part, items.T, alpha=-2).topk(num, largest=False).values + (part**2).sum(1, keepdim=True)
            for part in torch.split(queries, 256)
        ]
        return torch.cat(squared).clamp(min=0).sqrt()

    return search


def check(name: str, found: Tensor, items: Tensor, queries: Tensor) -> None:
    """Raise where distances are not those of brute force, to the digits that float32 keeps of a sum of squares."""
    asked = queries[:CHECKED_QUERIES].double()
    exact = (
        torch.cat(
            [
                torch.cdist(asked, part.double()).topk(found.shape[1], largest=False).values
                for part in torch.split(items, 50_000)
            ],
            dim=1,
        )
        .topk(found.shape[1], largest=False)
        .values
    )
    worst = float((found[:CHECKED_QUERIES] - exact).abs().max())
    if worst > 1e-3:
        raise SystemExit(f"{name}: a distance is off by {worst}")


if __name__ == "__main__":
    main()
