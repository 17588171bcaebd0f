"""Features of good images to compare with: exact nearest neighbours, a thinned memory, affinity-augmented distances.

Shapes: N frames, h w of a frame's map of features, Q queries, M items of a memory (or of a
place), D channels of a feature, K neighbours.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_REACH = 2
"""Cells of a map; a part lies a little elsewhere in each frame."""
_MAX_CANDIDATES = 100_000
_BLOCK = 32
_QUERIES_AT_ONCE = 256
_ITEMS_AT_ONCE = 1 << 12  # the distances of as many items to as many queries stay in the cache
_MEASURED_AT_ONCE = 16
_CANDIDATES = 1 << 12


class Memory:
    """Items of all places, which are searched exactly.

    A distance matrix is never kept, and nothing is sorted that need not be: of every block of 32 items only the nearest
    is looked at, and no item outside the K blocks with the nearest ones can be among the K nearest. Those blocks are
    then measured by plain differences, so that no distance suffers from cancellation.
    """

    def __init__(self, items_MD: Tensor) -> None:
        self.items = items_MD
        self._centre_D = items_MD.mean(0)
        filler = items_MD.new_zeros((-len(items_MD)) % _BLOCK, items_MD.shape[1])
        self._centred_MD = torch.cat([items_MD - self._centre_D, filler])
        self._half_norms_M = (self._centred_MD**2).sum(1) / 2
        self._half_norms_M[len(items_MD) :] = torch.inf
        self._centred_DM = self._centred_MD.T.contiguous()

    @classmethod
    def of(cls, maps_NhwD: Tensor, num: int, rng: np.random.Generator) -> "Memory":
        """Remember `num` features of maps, those that are farthest apart among at most 100,000."""
        items = maps_NhwD.flatten(0, 2)
        candidates = torch.from_numpy(rng.permutation(len(items))[:_MAX_CANDIDATES])
        return cls(items[candidates][spread_out(items[candidates], num)])

    def nearest(self, queries: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Return the distances of the nearest items, rising, and the items: (..., K) and (..., K, D); K at most M."""
        chunks = torch.split(queries.reshape(-1, queries.shape[-1]), _QUERIES_AT_ONCE)
        parts = [self._nearest(chunk, min(num, len(self.items))) for chunk in chunks]
        distances, items = (torch.cat(part) for part in zip(*parts, strict=True))
        return distances.view(*queries.shape[:-1], -1), items.view(*queries.shape[:-1], -1, queries.shape[-1])

    def _nearest(self, queries_QD: Tensor, num: int) -> tuple[Tensor, Tensor]:
        centred = queries_QD - self._centre_D
        closest_QB = torch.cat(
            [
                torch.addmm(half_norms, centred, items, alpha=-1).view(len(centred), -1, _BLOCK).amin(2)
                for half_norms, items in zip(
                    torch.split(self._half_norms_M, _ITEMS_AT_ONCE),
                    torch.split(self._centred_DM, _ITEMS_AT_ONCE, dim=1),
                    strict=True,
                )
            ],
            dim=1,
        )
        blocks_QK = closest_QB.topk(min(num, closest_QB.shape[1]), dim=1, largest=False).indices
        inside = torch.arange(_BLOCK, device=queries_QD.device)
        places = (blocks_QK[:, :, None] * _BLOCK + inside).flatten(1)
        is_filler = places >= len(self.items)
        places[is_filler] = 0
        distances = torch.cat(
            [
                (self.items[at] - query[:, None]).norm(dim=2)
                for at, query in zip(
                    torch.split(places, _MEASURED_AT_ONCE), torch.split(queries_QD, _MEASURED_AT_ONCE), strict=True
                )
            ]
        )
        distances[is_filler] = torch.inf
        found, order = distances.topk(num, dim=1, largest=False)
        return found, self.items[places.gather(1, order)]


class PlaceMemory:
    """Items of each place of aligned parts; what is seen at a place is compared with those of the places around it.

    As PaDiM has a Gaussian of its own at every place (Defard et al., ICPR 2021): what is normal in one place of a part
    may be a defect in another.
    """

    def __init__(self, items_hwMD: Tensor) -> None:
        self.items = items_hwMD
        # Beyond the border everything is infinitely far.
        self._padded_hwMD = functional.pad(items_hwMD, (0, 0, 0, 0, *(_REACH,) * 4), value=torch.inf)

    @classmethod
    def of(cls, maps_NhwD: Tensor, num: int, rng: np.random.Generator) -> "PlaceMemory":  # noqa: ARG003
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
        side = 2 * _REACH + 1
        num_at_a_corner = share * min(_REACH + 1, rows) * min(_REACH + 1, columns)
        distances_hwSM = torch.stack(
            [
                (self._padded_hwMD[y : y + rows, x : x + columns] - features_hwD[:, :, None]).norm(dim=3)
                for y in range(side)
                for x in range(side)
            ],
            dim=2,
        )
        found_hwK, which_hwK = distances_hwSM.flatten(2).topk(min(num, num_at_a_corner), largest=False)
        shift_hwK = which_hwK // share
        row_hwK = torch.arange(rows, device=which_hwK.device)[:, None, None] + shift_hwK // side
        column_hwK = torch.arange(columns, device=which_hwK.device)[:, None] + shift_hwK % side
        return found_hwK, self._padded_hwMD[row_hwK, column_hwK, which_hwK % share]


def spread_out(items_MD: Tensor, num: int, first: int = 0) -> Tensor:
    """Return the places of `num` items chosen by greedy k-centre: each is the one farthest from all before it.

    Farthest-first traversal (Gonzalez 1985), exact. Distances only shrink while items are chosen, so among the
    farthest few thousand the choice goes on by itself until it falls below what lies outside; then all items are
    measured against the chosen ones by one matrix product.
    """
    num = min(num, len(items_MD))
    centred = items_MD - items_MD.mean(0)
    norms_M = (centred**2).sum(1)
    squared_M = torch.full_like(norms_M, torch.inf)
    chosen = [first]
    num_measured = 0
    while True:
        fresh = centred[chosen[num_measured:]]
        for at in range(0, len(centred), _ITEMS_AT_ONCE):
            part = slice(at, at + _ITEMS_AT_ONCE)
            closest = torch.addmm((fresh**2).sum(1), centred[part], fresh.T, alpha=-2).amin(1) + norms_M[part]
            squared_M[part] = torch.minimum(squared_M[part], closest)
        squared_M[chosen[num_measured:]] = -torch.inf
        num_measured = len(chosen)
        if num_measured >= num:
            return torch.tensor(chosen)
        values, places = squared_M.topk(min(_CANDIDATES + 1, len(squared_M)))
        limit = float(values[-1]) if len(values) < len(squared_M) else -torch.inf
        candidates, norms, values, names = centred[places], norms_M[places], values.clone(), places.tolist()
        while len(chosen) < num:
            best = int(values.argmax())
            if (len(chosen) > num_measured and float(values[best]) < limit) or values[best] == -torch.inf:
                break
            chosen.append(names[best])
            values = torch.minimum(values, torch.addmv(norms, candidates, candidates[best], alpha=-2) + norms[best])
            values[best] = -torch.inf


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
