"""Cross-fitting folds: every ensemble member is fitted without the good images of one fold."""

from collections.abc import Iterable, Mapping, Sequence

from ssad_ray.config import RunConfig
from ssad_ray.core.rng import generator
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import DataError


def assign_folds(rows: Sequence[ManifestRow], config: RunConfig) -> dict[str, int]:
    """Return the fold of every good image by sample_id: seeded, groups kept together and shared out evenly.

    Raises:
        DataError: There are fewer groups of good images than folds.
    """
    num_folds = config.calibration.folds
    groups = sorted({row.group for row in rows}, key=lambda group: generator(config.seed, "fold", group).random())
    if len(groups) < num_folds:
        raise DataError(
            f"{len(groups)} independent good images cannot be cut into {num_folds} folds; add good images, or lower "
            "calibration.folds"
        )
    fold_of_group = {group: index % num_folds for index, group in enumerate(groups)}
    return {row.sample_id: fold_of_group[row.group] for row in rows}


def refuse_one_fold(sample_ids: Iterable[str], folds: Mapping[str, int]) -> None:
    """Raise where so many good images failed that those left are of one fold, or none: nobody could learn or judge."""
    left = set(sample_ids)
    if len({folds[each] for each in left}) < 2:
        raise DataError(
            f"of {len(folds)} good images only {len(left)} are left that did not fail, too few to learn from some and "
            "judge the others; `ssad catalog` says what is wrong with them"
        )
