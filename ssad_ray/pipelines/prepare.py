"""From a data set to a run's manifest and split."""

import os
from pathlib import Path

from ssad_ray.config import dump_config, load_config
from ssad_ray.core.storage import absolute
from ssad_ray.datasets.catalog import UNKNOWN, Catalog, catalog
from ssad_ray.datasets.manifest import ManifestRow, write_manifest
from ssad_ray.datasets.splits import Protocol, save_split, split
from ssad_ray.errors import ArtifactError, ConfigError, DataError, UnavailableError
from ssad_ray.pipelines.run import Announce, Run, read_json, write_text


def prepare(
    run: Run, data_uri: str | None = None, protocol: Protocol | None = None, announce: Announce | None = None
) -> int:
    """Catalogue a data set and split it, unless the run has its data already.

    Args:
        run: Whose data.
        data_uri: Where images are; not needed by a run that has its data.
        protocol: How they are shared out; `full` by default.
        announce: Where progress is shown.

    Returns:
        How many images were found just now that cannot be used.

    Raises:
        ConfigError: The run has other data, the folder is no run and has a config already, or the data set holds
            several products and none is chosen.
        ArtifactError: The run has begun, and how its images were shared out is lost.
        DataError: No data, or too many unreadable images.
        UnavailableError: The run folder cannot be written.
    """
    if run.split_path.exists():
        _refuse_other_data(run, data_uri, protocol)
        if load_config(run.config_path) != run.config:
            write_text(run.config_path, dump_config(run.config))
        return 0
    if run.has_begun:
        raise ArtifactError(
            f"{run.split_path} is gone, by which {run.path} goes on; put it back, or name another --out"
        )
    if data_uri is None:
        raise DataError(f"{run.path} has no data yet; `ssad fit` and `ssad loop` take it by --data")
    refuse_place(run)
    progress = announce("catalogue") if announce else None
    rows = _one_category(catalog(data_uri, run.config.data, progress), run.config.data.category)
    broken = sum(row.error is not None for row in rows)
    if broken > run.config.data.max_error_fraction * len(rows):
        first = next(row for row in rows if row.error is not None)
        raise DataError(
            f"{broken} of {len(rows)} images cannot be used, the first is {first.path}: {first.error}. Mend them (see "
            "`ssad catalog`), or raise data.max_error_fraction"
        )
    protocol, seed = protocol or "full", run.config.seed
    stages = split(rows, protocol, seed)
    write_manifest(rows, str(run.manifest_path))
    write_text(run.config_path, dump_config(run.config))
    save_split(stages, absolute(data_uri), protocol, seed, str(run.split_path))
    return broken


def refuse_place(run: Run) -> None:
    """Raise where a run cannot begin.

    Raises:
        ConfigError: The folder is no run and has a config.
        UnavailableError: It cannot be written.
    """
    if run.config_path.exists() and not run.manifest_path.exists():
        raise ConfigError(f"{run.config_path} is there, and {run.path} is no run; name another --out")
    nearest = next(path for path in (run.path, *run.path.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UnavailableError(f"{run.path} cannot be made: {nearest} is no folder, or not yours; name another --out")


def _refuse_other_data(run: Run, data_uri: str | None, protocol: Protocol | None) -> None:
    made_with = read_json(run.split_path)
    for option, asked in (("data", data_uri and absolute(data_uri)), ("protocol", protocol)):
        if asked is not None and not _is_same(asked, str(made_with.get(option))):
            raise ConfigError(
                f"{run.path} was made with --{option} {made_with.get(option)}, now came {asked}; the images of a run "
                "stay the same: leave the option out to go on, or name another --out"
            )


def _is_same(one: str, other: str) -> bool:
    return one == other or ("://" not in one and Path(one).resolve() == Path(other).resolve())


def _one_category(found: Catalog, category: str | None) -> list[ManifestRow]:
    names = sorted({row.category for row in found.rows if row.error is None})
    if category is None and len(names) > 1:
        raise ConfigError(
            f"the data set holds {len(names)} products ({', '.join(names[:10])}); a run is about one: choose it with "
            "--set data.category=NAME"
        )
    # Of a picture in no product's place nobody knows whose it is: every run names it.
    rows = [row for row in found.rows if category in (None, row.category) or row.category == UNKNOWN]
    if not any(row.error is None for row in rows):
        raise DataError(f"no usable image of {category or 'any product'}; there are {', '.join(names) or 'none'}")
    return rows
