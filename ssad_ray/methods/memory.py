"""Features of good images to compare with: exact nearest neighbours, a thinned memory, affinity-augmented distances.

Shapes: Q queries, M items of the memory, D channels of a feature, K neighbours.
"""

import torch
from torch import Tensor

_BLOCK = 32
_QUERIES_AT_ONCE = 256
_ITEMS_AT_ONCE = 1 << 14
_MEASURED_AT_ONCE = 16
_CANDIDATES = 1 << 12


class Memory:
    """Items that are searched exactly.

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

    def nearest(self, queries_QD: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Return the distances of the nearest items, rising, and the items: (Q, K) and (Q, K, D); K at most M."""
        parts = [self._nearest(chunk, min(num, len(self.items))) for chunk in torch.split(queries_QD, _QUERIES_AT_ONCE)]
        distances, items = (torch.cat(part) for part in zip(*parts, strict=True))
        return distances, items

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
        candidates, values, names = centred[places], values.clone(), places.tolist()
        while len(chosen) < num:
            best = int(values.argmax())
            if (len(chosen) > num_measured and float(values[best]) < limit) or values[best] == -torch.inf:
                break
            chosen.append(names[best])
            values = torch.minimum(values, ((candidates - candidates[best]) ** 2).sum(1))
            values[best] = -torch.inf


def affinity_weights(distances_QK: Tensor, sharpest: float) -> Tensor:
    """Return the weights (Q, K) of neighbours, which sum to 1 (SCL-VI, equations 4 and 5).

    Affinity is the sum of all K distances over one of them, at most `sharpest`; weights are its softmax.
    """
    total = distances_QK.sum(1, keepdim=True)
    smallest = torch.finfo(distances_QK.dtype).tiny
    affinity = total / distances_QK.clamp(min=1e-12 * total).clamp(min=smallest)
    return affinity.clamp(max=sharpest).softmax(1)
