"""Magnetic-tile layout: `MT_<class>/Imgs/exp<E>_num_<N>.jpg` with a grey mask of the same stem, .png.

The class Free is anomaly-free. One tile was photographed at several exposures, which count as one group: N is a
running number, and measured on the data, photographs up to `_SAME_TILE` apart mostly correlate above 0.9, those more
than 400 apart do not, and few lie between.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from ssad_ray.core.records import GOOD
from ssad_ray.datasets.entries import Entry, Listing

NAME = "magnetic_tile"

_IMAGE = re.compile(r"(?P<stem>(?:.+/)?MT_(?P<defect>[^/]+)/Imgs/(?:exp\d+_num_(?P<number>\d+)|[^/]+))\.jpg")
_SAME_TILE = 160


def matches(listing: Listing) -> bool:
    """Return whether there is an `MT_<class>/Imgs` folder with pictures."""
    return any(_IMAGE.fullmatch(path) for path in listing)


def read(root_uri: str, listing: Listing) -> Iterator[Entry]:  # noqa: ARG001 - one signature for all readers
    """Yield every .jpg of the class folders."""
    found = [match for path in listing if (match := _IMAGE.fullmatch(path))]
    tiles = _first_numbers({int(match["number"]) for match in found if match["number"]})
    for match in found:
        mask = f"{match['stem']}.png"
        is_good = match["defect"] == "Free"
        yield Entry(
            path=match[0],
            category="magnetic_tile",
            defect_type=GOOD if is_good else match["defect"],
            mask=mask if mask in listing else None,
            group=f"tile {tiles[int(match['number'])]}" if match["number"] else None,
            warning=None if is_good or mask in listing else f"no mask {mask}",
        )


def _first_numbers(numbers: set[int]) -> dict[int, int]:
    """Return, for every running number, the first number of its tile."""
    ordered = sorted(numbers)
    firsts = {number: number for number in ordered}
    for before, number in pairwise(ordered):
        if number - before <= _SAME_TILE:
            firsts[number] = firsts[before]
    return firsts
