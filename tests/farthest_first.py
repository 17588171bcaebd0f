"""Farthest-first traversal, the long way."""

import torch


def farthest_first(items: torch.Tensor, num: int, first: int = 0) -> list[int]:
    """Return the places of items, each the farthest from those before it."""
    chosen = [first]
    apart = torch.full((len(items),), torch.inf, dtype=items.dtype)
    for _ in range(min(len(items), num) - 1):
        apart = torch.minimum(apart, ((items - items[chosen[-1]]) ** 2).sum(1))
        apart[chosen[-1]] = -1.0
        chosen.append(int(apart.argmax()))
    return chosen
