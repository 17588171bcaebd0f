"""From a data set to a run's manifest and split."""

from ssad_ray.datasets.catalog import Catalog, Progress, catalog
from ssad_ray.datasets.manifest import ManifestRow, write_manifest
from ssad_ray.datasets.splits import Protocol, save_split, split
from ssad_ray.errors import ConfigError, DataError
from ssad_ray.pipelines.run import Run


def prepare(run: Run, data_uri: str, protocol: Protocol, progress: Progress | None = None) -> None:
    """Catalogue a data set and split it, unless the run has its data already.

    Raises:
        ConfigError: The data set holds several products and none is chosen.
        DataError: No data, or too many unreadable images.
    """
    if run.split_path.exists():
        return
    run.path.mkdir(parents=True, exist_ok=True)
    rows = _one_category(catalog(data_uri, run.config.data, progress), run.config.data.category)
    broken = sum(row.error is not None for row in rows)
    if broken > run.config.data.max_error_fraction * len(rows):
        first = next(row for row in rows if row.error is not None)
        raise DataError(
            f"{broken} of {len(rows)} images cannot be used, the first is {first.path}: {first.error}. Mend them (see "
            "`ssad catalog`), or raise data.max_error_fraction"
        )
    write_manifest(rows, str(run.manifest_path))
    save_split(split(rows, protocol, run.config.seed), protocol, run.config.seed, str(run.split_path))


def _one_category(found: Catalog, category: str | None) -> list[ManifestRow]:
    names = sorted({row.category for row in found.rows if row.error is None})
    if category is None and len(names) > 1:
        raise ConfigError(
            f"the data set holds {len(names)} products ({', '.join(names[:10])}); a run is about one: choose it with "
            "--set data.category=NAME"
        )
    rows = [row for row in found.rows if category in (None, row.category) or row.error is not None]
    if not any(row.error is None for row in rows):
        raise DataError(f"no usable image of {category or 'any product'}; there are {', '.join(names) or 'none'}")
    return rows
