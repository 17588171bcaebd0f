"""Pretext tasks on patches: what a network has to tell, so that it learns what a product's patches look like.

A task draws one or two patches of a picture and the class that is to be told from them. `context` is SCL-VI's: the
relative position of two cells of a 3x3 grid; the others are those its Table 1 compares with.

Shapes: K side of a patch, P patches of an example, H W of a picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

Patch = NDArray[np.uint8]
Place = tuple[int, int]

_CELLS = [(row, column) for row in range(3) for column in range(3)]
_CENTRE = 4
_COLOUR_ORDERS = list(permutations(range(3)))


def relative_positions() -> list[list[tuple[int, int]]]:
    """Return the pairs of cells of a 3x3 grid, the first before the second, by their displacement: 12 classes."""
    classes: dict[Place, list[tuple[int, int]]] = {}
    for first, second in combinations(range(9), 2):
        rows, columns = (b - a for a, b in zip(_CELLS[first], _CELLS[second], strict=True))
        classes.setdefault((rows, columns), []).append((first, second))
    return [classes[displacement] for displacement in sorted(classes)]


def _identity(patch_KKC: Patch, label: int) -> Patch:  # noqa: ARG001
    return patch_KKC


def _turned(patch_KKC: Patch, label: int) -> Patch:
    return np.rot90(patch_KKC, label)


def _recoloured(patch_KKC: Patch, label: int) -> Patch:
    return patch_KKC[:, :, _COLOUR_ORDERS[label]]


@dataclass(frozen=True, slots=True)
class Pretext:
    """A task: cells of a 3x3 grid to cut out, in groups by what is to be told from them, and what is done to them.

    Attributes:
        cells: Per class the choices of cells; of two cells the difference of their features is classified.
        change: Makes of a patch (K, K, 3) what the network sees, given the class.
    """

    cells: Sequence[Sequence[tuple[int, ...]]]
    change: Callable[[Patch, int], Patch] = _identity

    @property
    def num_classes(self) -> int:
        """Return how many answers there are."""
        return len(self.cells)


PRETEXTS = {
    "context": Pretext(relative_positions()),
    "jigsaw": Pretext([[(_CENTRE, cell)] for cell in range(9) if cell != _CENTRE]),  # Doersch et al. 2015; Patch-SVDD
    "rotation": Pretext([[(_CENTRE,)]] * 4, _turned),  # Gidaris et al. 2018
    "permutation": Pretext([[(_CENTRE,)]] * len(_COLOUR_ORDERS), _recoloured),  # Lee et al. 2020
    "none": Pretext([[(_CENTRE,)]]),
}


def draw(pretext: Pretext, picture: Patch, side: int, rng: np.random.Generator) -> tuple[Patch, int]:
    """Draw an example; classes are equally likely.

    The whole grid lies inside the picture: pushed back at its border, it would have other displacements than its class
    says. Its outer cells lie 3 K / 4 to K - 1 px from the central one, each by a shift of its own.

    Args:
        pretext: The task.
        picture: (H, W, 3) of at least 3 K px each way.
        side: Of a patch, px.
        rng: Where chance comes from.

    Returns:
        (P, K, K, 3), the cells and at last the twin of the first: a patch at most K / 32 px away in each direction;
        and the class.
    """
    label = int(rng.integers(pretext.num_classes))
    cells = pretext.cells[label][int(rng.integers(len(pretext.cells[label])))]
    height, width = picture.shape[:2]
    centre = [int(rng.integers(side, size - 2 * side + 1)) for size in (height, width)]
    places = [
        tuple(
            at + (step - 1) * int(rng.integers(3 * side // 4, side))
            for at, step in zip(centre, _CELLS[cell], strict=True)
        )
        for cell in cells
    ]
    reach = max(1, side // 32)
    y, x = places[0]
    twins = [
        (y + dy, x + dx)
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if (dy or dx) and 0 <= y + dy <= height - side and 0 <= x + dx <= width - side
    ]
    places.append(twins[int(rng.integers(len(twins)))])
    patches = [pretext.change(picture[y : y + side, x : x + side], label) for y, x in places]
    return np.stack(patches), label
