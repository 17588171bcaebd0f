"""Figures over the rounds of the loop, as coordinates for an SVG picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 170, 14, 30
_LABEL_GAP = 18.0


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric.

    Attributes:
        name: Of the metric.
        label: Its name in words and latest value.
        points: (x, y) of each value there is.
        label_y: Where the label stands, clear of the others.
    """

    name: str
    label: str
    points: tuple[tuple[float, float], ...]
    label_y: float


@dataclass(frozen=True, slots=True)
class Chart:
    """All that the picture shows.

    Attributes:
        places: (x, name) along the horizontal axis.
        ticks: (y, text) along the vertical axis.
        curves: From top to bottom.
    """

    places: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    curves: tuple[Curve, ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    width: float = WIDTH
    height: float = HEIGHT


def draw_chart(places: Sequence[tuple[str, Mapping[str, float | None]]], labels: Mapping[str, str]) -> Chart | None:
    """Lay out one curve per metric that has a value anywhere; None where none has.

    Args:
        places: Name and metrics (in [0, 1]) of each place along the horizontal axis, at least two.
        labels: Metric -> its name in words.
    """
    series = {
        name: [(index, value) for index, (_, metrics) in enumerate(places) if (value := metrics[name]) is not None]
        for name in labels
    }
    series = {name: values for name, values in series.items() if values}
    if not series:
        return None
    lowest = min(value for values in series.values() for _, value in values)
    bottom = min(0.9, math.floor(lowest * 10) / 10)
    step = 0.1 if bottom >= 0.5 else 0.2
    bottom = max(0.0, 1.0 - step * math.ceil((1.0 - bottom) / step - 1e-9))

    def x(index: int) -> float:
        return _LEFT + 24 + (WIDTH - _LEFT - _RIGHT - 48) * index / (len(places) - 1)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - bottom) / (1.0 - bottom)

    order = sorted(series, key=lambda name: -series[name][-1][1])
    label_ys = _apart([y(series[name][-1][1]) for name in order])
    curves = tuple(
        Curve(
            name,
            f"{labels[name]} {series[name][-1][1]:.3f}",
            tuple((round(x(index), 1), round(y(value), 1)) for index, value in series[name]),
            label_y,
        )
        for name, label_y in zip(order, label_ys, strict=True)
    )
    ticks = [bottom + step * index for index in range(round((1.0 - bottom) / step) + 1)]
    return Chart(
        tuple((x(index), name) for index, (name, _) in enumerate(places)),
        tuple((y(value), f"{value:.1f}") for value in ticks),
        curves,
    )


def _apart(wanted: Sequence[float]) -> list[float]:
    """Move label positions, given from top to bottom, just so far that none covers another or leaves the picture."""
    placed: list[float] = []
    for index, at in enumerate(wanted):
        lowest_possible = HEIGHT - _BOTTOM - _LABEL_GAP * (len(wanted) - 1 - index)
        placed.append(max(min(at, lowest_possible), placed[-1] + _LABEL_GAP if placed else 0.0))
    return placed
