"""What the tables of several benchmarks have in common."""

from collections.abc import Sequence
from statistics import mean, stdev

METRICS = (
    "image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1_max",
    "pooled_iou", "mean_iou", "map_10", "map_30", "map_50", "map", "tianchi_score",
)  # fmt: skip


def cell(values: Sequence[float | None], digits: int = 3) -> str:
    """Return mean and standard deviation of what several seeds gave."""
    known = [value for value in values if value is not None]
    spread = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{spread}" if known else "–"
