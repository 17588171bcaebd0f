"""Features of good images to compare with: exact nearest neighbours and affinity-augmented distances.

Shapes: N frames, h w of a frame's map of features, s columns of a strip of it, Q queries, M items of a memory (or of a
place), D channels of a feature, d axes to look at first, B blocks of items, K neighbours, S items to measure.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssad_ray.methods.thinning import principal_axes, spread_out

_REACH = 2
"""Cells of a map; a part lies a little elsewhere in each frame."""
_SIDE = 2 * _REACH + 1
_STRIP = 8
_MAX_CANDIDATES = 100_000
_BLOCK = 32
_SPARE = 8
_QUERIES_AT_ONCE = 256
_ITEMS_AT_ONCE = 1 << 12  # the distances of as many items to as many queries stay in the cache
_MEASURED_AT_ONCE = 16


class Memory:
    """Items of all places, which are searched exactly.

    Where few axes hold most of the variance, the nearest items along those axes are measured first. No other item is
    nearer than the last of these is along the axes; where that proves too little, all items are searched.
    """

    def __init__(self, items_MD: Tensor) -> None:
        self.items = items_MD
        self._centre_D = items_MD.mean(0)
        centred_MD = items_MD - self._centre_D
        axes_DD, num_rough = principal_axes(centred_MD)
        self._blocks = _Blocks(centred_MD)
        self._rough: tuple[Tensor, Tensor, _Blocks] | None = None
        if num_rough < len(axes_DD):
            rough_Md = centred_MD @ axes_DD[:, :num_rough]
            self._rough = axes_DD[:, :num_rough], rough_Md, _Blocks(rough_Md)

    @classmethod
    def of(cls, maps_NhwD: Tensor, num: int, rng: np.random.Generator) -> "Memory":
        """Remember `num` features of maps, those that are farthest apart among at most 100,000."""
        items = maps_NhwD.flatten(0, 2)
        candidates = items[torch.from_numpy(rng.permutation(len(items))[:_MAX_CANDIDATES])]
        return cls(candidates[spread_out(candidates, num)])

    def nearest(self, queries: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Return the distances of the nearest items, rising, and the items: (..., K) and (..., K, D); K at most M."""
        chunks = torch.split(queries.reshape(-1, queries.shape[-1]), _QUERIES_AT_ONCE)
        parts = [self._nearest(chunk, min(num, len(self.items))) for chunk in chunks]
        distances, places = (torch.cat(part) for part in zip(*parts, strict=True))
        shape = queries.shape[:-1]
        return distances.view(*shape, -1), self.items[places].view(*shape, -1, queries.shape[-1])

    def _nearest(self, queries_QD: Tensor, num: int) -> tuple[Tensor, Tensor]:
        centred_QD = queries_QD - self._centre_D
        if self._rough is None:
            return _closest(queries_QD, self.items, self._blocks.near(centred_QD, num), num)
        axes_Dd, rough_Md, blocks = self._rough
        rough_Qd, num_rough = centred_QD @ axes_Dd, min(2 * num + _SPARE, len(self.items))
        rough_QK, likely = _closest(rough_Qd, rough_Md, blocks.near(rough_Qd, num_rough), num_rough)
        distances_QK, places = _closest(queries_QD, self.items, likely, num)
        open_Q = (rough_QK[:, -1] < distances_QK[:, -1]).nonzero()[:, 0]
        if len(open_Q):
            near = self._blocks.near(centred_QD[open_Q], num)
            distances_QK[open_Q], places[open_Q] = _closest(queries_QD[open_Q], self.items, near, num)
        return distances_QK, places


class _Blocks:
    """Items in blocks of 32, to find those blocks which have the nearest ones.

    A distance matrix is never kept, and nothing is sorted that need not be: of every block only the nearest is looked
    at, and no item outside the K blocks with the nearest ones can be among the K nearest. Distances by a matrix product
    suffer from cancellation; they choose blocks and nothing else.
    """

    def __init__(self, items_MD: Tensor) -> None:
        self._num = len(items_MD)
        filled_MD = functional.pad(items_MD, (0, 0, 0, -self._num % _BLOCK))
        self._half_norms_M = (filled_MD**2).sum(1) / 2
        self._half_norms_M[self._num :] = torch.inf
        self._items_DM = filled_MD.T.contiguous()

    def near(self, queries_QD: Tensor, num: int) -> Tensor:
        """Return the places (Q, S) of all items in the `num` blocks with the nearest ones; beyond the last: filler."""
        closest_QB = torch.cat(
            [
                torch.addmm(half_norms, queries_QD, items, alpha=-1).view(len(queries_QD), -1, _BLOCK).amin(2)
                for half_norms, items in zip(
                    torch.split(self._half_norms_M, _ITEMS_AT_ONCE),
                    torch.split(self._items_DM, _ITEMS_AT_ONCE, dim=1),
                    strict=True,
                )
            ],
            dim=1,
        )
        blocks_QK = closest_QB.topk(min(num, closest_QB.shape[1]), dim=1, largest=False).indices
        inside = torch.arange(_BLOCK, device=queries_QD.device)
        return (blocks_QK[:, :, None] * _BLOCK + inside).flatten(1)


def _closest(queries_QD: Tensor, items_MD: Tensor, places_QS: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the distances (Q, K) to the nearest of some items for each query, rising, and their places (Q, K).

    By plain differences, so that no distance suffers from cancellation. Places beyond the last item are left out.
    """
    is_filler = places_QS >= len(items_MD)
    places_QS = places_QS.masked_fill(is_filler, 0)
    distances_QS = torch.cat(
        [
            (items_MD[at] - query[:, None]).norm(dim=2)
            for at, query in zip(
                torch.split(places_QS, _MEASURED_AT_ONCE), torch.split(queries_QD, _MEASURED_AT_ONCE), strict=True
            )
        ]
    ).masked_fill(is_filler, torch.inf)
    found_QK, order = distances_QS.topk(num, dim=1, largest=False)
    return found_QK, places_QS.gather(1, order)


class PlaceMemory:
    """Items of each place of aligned parts; what is seen at a place is compared with those of the places around it.

    As PaDiM has a Gaussian of its own at every place (Defard et al., ICPR 2021): what is normal in one place of a part
    may be a defect in another. The nearest are found by matrix products of short strips of a row with the items around
    them, and measured by plain differences.
    """

    def __init__(self, items_hwMD: Tensor) -> None:
        self.items = items_hwMD
        self._centre_D = items_hwMD.flatten(0, 2).mean(0)
        centred_hwMD = items_hwMD - self._centre_D
        around = (_REACH, _REACH + -items_hwMD.shape[1] % _STRIP, _REACH, _REACH)
        self._padded_hwMD = functional.pad(centred_hwMD, (0, 0, 0, 0, *around))
        # Beyond the border everything is infinitely far.
        self._half_norms_hwM = functional.pad((centred_hwMD**2).sum(3) / 2, (0, 0, *around), value=torch.inf)

    @classmethod
    def of(cls, maps_NhwD: Tensor, num: int) -> "PlaceMemory":
        """Remember of each place's features an equal share of `num`, at least one, those that are farthest apart."""
        features_PND = maps_NhwD.permute(1, 2, 0, 3).flatten(0, 1)
        chosen = [(features_PND - features_PND.mean(1, keepdim=True)).norm(dim=2).argmin(1)]
        apart_PN = torch.full(features_PND.shape[:2], torch.inf, device=features_PND.device)
        every = torch.arange(len(features_PND), device=features_PND.device)
        for _ in range(min(max(1, num // len(features_PND)), features_PND.shape[1]) - 1):
            last_PD = features_PND[every, chosen[-1]]
            apart_PN = torch.minimum(apart_PN, (features_PND - last_PD[:, None]).norm(dim=2))
            chosen.append(apart_PN.argmax(1))
        items_PMD = torch.stack([features_PND[every, each] for each in chosen], dim=1)
        return cls(items_PMD.view(*maps_NhwD.shape[1:3], *items_PMD.shape[1:]))

    def nearest(self, features_hwD: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Return the distances of the nearest items, rising, and the items: (h, w, K) and (h, w, K, D)."""
        rows, columns, share, _ = self.items.shape
        num_at_a_corner = share * min(_REACH + 1, rows) * min(_REACH + 1, columns)
        centred_hwD = functional.pad(features_hwD - self._centre_D, (0, 0, 0, -columns % _STRIP))
        strips = [
            torch.stack([self._half_squares(strip_hsD, y, at * _STRIP) for y in range(_SIDE)], dim=2)
            for at, strip_hsD in enumerate(torch.split(centred_hwD, _STRIP, dim=1))
        ]
        half_squares_hwS = torch.cat(strips, dim=1)[:, :columns].flatten(2)
        which_hwK = half_squares_hwS.topk(min(num, num_at_a_corner), largest=False, sorted=False).indices
        shift_hwK = which_hwK // share
        row_hwK = torch.arange(rows, device=which_hwK.device)[:, None, None] + shift_hwK // _SIDE - _REACH
        column_hwK = torch.arange(columns, device=which_hwK.device)[:, None] + shift_hwK % _SIDE - _REACH
        places = row_hwK, column_hwK, which_hwK % share
        distances_hwK, order_hwK = self.items[places].sub_(features_hwD[:, :, None]).norm(dim=3).sort(dim=2)
        return distances_hwK, self.items[tuple(each.gather(2, order_hwK) for each in places)]

    def _half_squares(self, strip_hsD: Tensor, y: int, x: int) -> Tensor:
        """Return (h, s, columns around, M), up to a constant of each query: of items `y - _REACH` rows below."""
        rows, _, share, _ = self.items.shape
        window = slice(y, y + rows), slice(x, x + _STRIP + 2 * _REACH)
        half_norms_hI, items_hID = (each[window].flatten(1, 2) for each in (self._half_norms_hwM, self._padded_hwMD))
        products_hsI = torch.baddbmm(half_norms_hI[:, None], strip_hsD, items_hID.transpose(1, 2), alpha=-1)
        # A diagonal: each query of the strip has its columns one to the right of those of the query before.
        _, num_strip, num_items = products_hsI.shape
        return products_hsI.as_strided(
            (rows, num_strip, _SIDE, share), (num_strip * num_items, num_items + share, share, 1)
        )


def affinity_distance(
    features: Tensor, memory: Memory | PlaceMemory, num: int, sharpest: float, of_features: bool
) -> Tensor:
    """Return how far features are from their neighbours in a memory (SCL-VI, equations 4 to 6).

    Args:
        features: (h, w, D).
        memory: What is remembered.
        num: How many neighbours count; 1 gives the distance to the nearest, as in PatchCore.
        sharpest: Limit of an affinity.
        of_features: The distance to the neighbours' weighted mean; else the weighted mean of the distances.
    """
    distances, items = memory.nearest(features, num)
    weights = affinity_weights(distances, sharpest)
    if of_features:
        return functional.pairwise_distance(features, (weights[..., None] * items).sum(-2), eps=0.0)
    return (weights * distances).sum(-1)


def affinity_weights(distances: Tensor, sharpest: float) -> Tensor:
    """Return the weights (..., K) of neighbours, which sum to 1 (SCL-VI, equations 4 and 5).

    Affinity is the sum of all K distances over one of them, at most `sharpest`; weights are its softmax.
    """
    total = distances.sum(-1, keepdim=True)
    smallest = torch.finfo(distances.dtype).tiny
    affinity = total / distances.clamp(min=1e-12 * total).clamp(min=smallest)
    return affinity.clamp(max=sharpest).softmax(-1)
