"""Some of many features that stand for all, those farthest apart; and the axes along which features differ most.

Shapes: M items, D channels of a feature, P items that are measured at once, F chosen items.
"""

import torch
from torch import Tensor

_KEPT = 0.98  # of the variance
_SAMPLED = 1 << 12
_CANDIDATES = 1 << 10
_MEASURED_AT_ONCE = 1 << 7
_MOST_IN_PAIRS = 1 / 16  # a distance costs as much more by itself than in a matrix product


def principal_axes(centred_MD: Tensor) -> tuple[Tensor, int]:
    """Return orthonormal axes (D, D), by falling variance, and how many of them to look at first.

    Along those alone no distance is longer than the whole one, and few are much shorter: they hold 98 % of the
    variance. They are at most a third of all; where that is not enough, all of them are.
    """
    sample = centred_MD[:: -(-len(centred_MD) // _SAMPLED)]
    rising_D, axes_DD = torch.linalg.eigh(sample.T @ sample)
    variances_D = rising_D.flip(0)
    num = 1 + int((variances_D.cumsum(0) < _KEPT * variances_D.sum()).sum())
    return axes_DD.flip(1), num if 3 * num <= len(axes_DD) else len(axes_DD)


def spread_out(items_MD: Tensor, num: int, first: int = 0) -> Tensor:
    """Return the places of `num` items chosen by greedy k-centre: each is the one farthest from all before it.

    Farthest-first traversal (Gonzalez 1985), exact. The distance to the nearest chosen item only shrinks, so an earlier
    one is a bound. Only the items of the largest bounds are measured against what was chosen since; among them the
    choice goes on by itself until it falls below the bounds of all others.
    """
    num = min(num, len(items_MD))
    far = _FarthestFirst(items_MD, num)
    far.choose(torch.tensor([first], device=items_MD.device))
    while far.num < num:
        bounds, places = far.squared_M.topk(min(_CANDIDATES + 1, len(items_MD)))
        limit = float(bounds[-1]) if len(bounds) > _CANDIDATES else -torch.inf
        places = places[:_CANDIDATES]
        far.measure(places)
        candidates, norms, values = far.items_MD[places], far.norms_M[places], far.squared_M[places]
        picked: list[int] = []
        while far.num + len(picked) < num:
            best = int(values.argmax())
            if float(values[best]) < limit:
                break
            picked.append(best)
            values = torch.minimum(values, torch.addmv(norms, candidates, candidates[best], alpha=-2) + norms[best])
            values[best] = -torch.inf
        far.choose(places[picked])
        far.squared_M[places], far.num_seen_M[places] = values, far.num
    return far.chosen_F


class _FarthestFirst:
    """The items chosen so far, and of each item a bound: its squared distance to the nearest of those it has seen."""

    def __init__(self, items_MD: Tensor, num: int) -> None:
        self.items_MD = items_MD - items_MD.mean(0)
        axes_DD, self._num_rough = principal_axes(self.items_MD)
        if self._num_rough < len(axes_DD):
            self.items_MD = self.items_MD @ axes_DD
        self.norms_M = (self.items_MD**2).sum(1)
        self._rough_norms_M = (self.items_MD[:, : self._num_rough] ** 2).sum(1)
        self.squared_M = torch.full_like(self.norms_M, torch.inf)
        self.num_seen_M = torch.zeros_like(self.norms_M, dtype=torch.long)
        self.num = 0
        self.chosen_F = torch.empty_like(self.num_seen_M[:num])
        self._chosen_FD = torch.empty_like(self.items_MD[:num])

    def choose(self, places: Tensor) -> None:
        """Add items to the chosen ones; they are not chosen again."""
        added = slice(self.num, self.num + len(places))
        self.chosen_F[added], self._chosen_FD[added] = places, self.items_MD[places]
        self.squared_M[places] = -torch.inf
        self.num += len(places)

    def measure(self, places: Tensor) -> None:
        """Make bounds of items true distances."""
        by_age = places[self.num_seen_M[places].argsort()]
        for part in torch.split(by_age, _MEASURED_AT_ONCE):
            num_seen = int(self.num_seen_M[part[0]])
            if num_seen < self.num:
                self.squared_M[part] = self._nearest(part, slice(num_seen, self.num))
        self.num_seen_M[places] = self.num

    def _nearest(self, places: Tensor, chosen: slice) -> Tensor:
        """Return the bounds (P,) of items, lowered to the squared distances of some of the chosen ones."""
        items_PD, bounds_P, others_FD = self.items_MD[places], self.squared_M[places], self._chosen_FD[chosen]
        if self._num_rough < items_PD.shape[1]:
            squared_PF = torch.addmm(
                self._rough_norms_M[self.chosen_F[chosen]],
                items_PD[:, : self._num_rough],
                others_FD[:, : self._num_rough].T,
                alpha=-2,
            ).add_(self._rough_norms_M[places, None])
            likely = others_FD[squared_PF.argmin(1)]
            bounds_P = torch.minimum(bounds_P, (items_PD - likely).square().sum(1))
            item, other = (squared_PF < bounds_P[:, None]).nonzero(as_tuple=True)
            if len(item) < squared_PF.numel() * _MOST_IN_PAIRS:
                return bounds_P.scatter_reduce(0, item, (items_PD[item] - others_FD[other]).square().sum(1), "amin")
        squared_PF = torch.addmm(self.norms_M[self.chosen_F[chosen]], items_PD, others_FD.T, alpha=-2)
        return torch.minimum(bounds_P, squared_PF.amin(1) + self.norms_M[places])
