"""Label versions: immutable Parquet data sets of verdicts, each sealed by its lineage.

    ROOT/<version>/*.parquet       parts, one row per image
    ROOT/<version>/_lineage.json   written last; a folder without it is unfinished and is not a version

The folder of a version is a Parquet data set to whatever reads such: of a name with an underscore they take no notice.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from ssad_ray import __version__
from ssad_ray.core.records import Calibration, Verdict
from ssad_ray.core.storage import exists, join, read_bytes, resolve, write_bytes
from ssad_ray.errors import ArtifactError, ConfigError, UnavailableError
from ssad_ray.labels.rows import SCHEMA, table_verdicts, verdict_table

_LINEAGE = "_lineage.json"
_MAX_LINEAGE_BYTES = 256 << 20
_ROWS_PER_PART = 4096
_ROWS_PER_BATCH = 256
_COUNTED = ["sample_id", "is_anomalous", "error", "regions.list.element.region_id"]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a label version comes from.

    Attributes:
        model: Name and version of the artifact that made the labels, or what else did.
        calibration: The thresholds that were applied; None where none were.
        config_digest: SHA-256 of the resolved config.
        manifest_digest: SHA-256 of the list of images.
        parent: The version this one was edited or relabelled from.
    """

    model: str
    calibration: Calibration | None
    config_digest: str
    manifest_digest: str
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class LabelVersion:
    """The content of `_lineage.json`.

    Attributes:
        version: Name of the version.
        lineage: Where it comes from.
        created: ISO 8601, UTC.
        package_version: Version of this package that sealed it.
        counts: How many `images`, of them `anomalous` and with an `error`, and how many `regions`.
        parts: File names of the Parquet parts, in reading order.
    """

    version: str
    lineage: Lineage
    created: str
    package_version: str
    counts: Mapping[str, int]
    parts: tuple[str, ...]


_LABEL_VERSION = TypeAdapter(LabelVersion)


def write_labels(root_uri: str, version: str, verdicts: Iterable[Verdict], lineage: Lineage) -> LabelVersion:
    """Write and seal a label version; what an interrupted attempt left in its folder is removed.

    Raises:
        ArtifactError: The version exists already, or there is no verdict or two for one image.
        ConfigError: The version's name cannot be a folder name.
        UnavailableError: The place cannot be written.
    """
    _refuse_existing(root_uri, version)
    filesystem, folder = resolve(join(root_uri, version))
    rows = iter(verdicts)
    parts: list[str] = []
    filesystem.delete_dir_contents(folder, missing_dir_ok=True)
    while chunk := list(islice(rows, _ROWS_PER_PART)):
        parts.append(f"{len(parts):05d}.parquet")
        try:
            filesystem.create_dir(folder, recursive=True)
            pq.write_table(verdict_table(chunk), f"{folder}/{parts[-1]}", filesystem=filesystem, compression="zstd")
        except OSError as error:
            raise UnavailableError(f"{root_uri}: the label version {version!r} cannot be written: {error}") from error
    return _seal(root_uri, version, lineage, parts)


def commit_labels(root_uri: str, version: str, lineage: Lineage) -> LabelVersion:
    """Seal a folder whose Parquet parts were written by others, for example by `Dataset.write_parquet`.

    Raises:
        ArtifactError: The version is sealed already, has no part, a part with other columns than `SCHEMA`, or two
            rows for one image.
        ConfigError: The version's name cannot be a folder name.
    """
    _refuse_existing(root_uri, version)
    filesystem, folder = resolve(join(root_uri, version))
    files = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return _seal(root_uri, version, lineage, sorted(file.base_name for file in files if file.extension == "parquet"))


def read_labels(root_uri: str, version: str) -> Iterator[Verdict]:
    """Return the verdicts of a sealed version, one image at a time.

    Raises:
        ArtifactError: No such version, or, on the way, a part that is missing or broken.
    """
    parts = read_lineage(root_uri, version).parts
    return (verdict for part in parts for verdict in _read_part(join(join(root_uri, version), part)))


def read_lineage(root_uri: str, version: str) -> LabelVersion:
    """Return what is known about a sealed version.

    Raises:
        ArtifactError: No such version, or its lineage is not readable.
    """
    uri = join(join(root_uri, _checked_name(version)), _LINEAGE)
    if not exists(uri):
        present = ", ".join(list_versions(root_uri)) or "none"
        raise ArtifactError(f"{root_uri} has no label version {version!r}; sealed versions there: {present}")
    try:
        return _LABEL_VERSION.validate_json(read_bytes(uri, _MAX_LINEAGE_BYTES))
    except ValidationError as error:
        raise ArtifactError(f"{uri} is not the lineage of a label version: {error.errors()[0]['msg']}") from None


def list_versions(root_uri: str) -> list[str]:
    """Return the names of the sealed versions, oldest first."""
    filesystem, root = resolve(root_uri)
    folders = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    names = [folder.base_name for folder in folders if _NAME.fullmatch(folder.base_name)]
    sealed = [name for name in names if exists(join(join(root_uri, name), _LINEAGE))]
    return sorted(sealed, key=lambda name: (read_lineage(root_uri, name).created, name))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _checked_name(version: str) -> str:
    if not _NAME.fullmatch(version):
        raise ConfigError(
            f"{version!r} cannot name a label version; accepted are 1 to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return version


def _refuse_existing(root_uri: str, version: str) -> None:
    if exists(join(join(root_uri, _checked_name(version)), _LINEAGE)):
        raise ArtifactError(
            f"{root_uri} has a label version {version!r} already; versions are never overwritten: use another name"
        )


def _seal(root_uri: str, version: str, lineage: Lineage, parts: list[str]) -> LabelVersion:
    folder_uri = join(root_uri, version)
    label_version = LabelVersion(
        version=version,
        lineage=lineage,
        created=datetime.now(UTC).isoformat(),
        package_version=__version__,
        counts=_count(folder_uri, parts),
        parts=tuple(parts),
    )
    write_bytes(join(folder_uri, _LINEAGE), _LABEL_VERSION.dump_json(label_version, indent=2))
    return label_version


def _count(folder_uri: str, parts: list[str]) -> dict[str, int]:
    if not parts:
        raise ArtifactError(f"{folder_uri} holds no Parquet part; a label version needs at least one image")
    counts: Counter[str] = Counter(images=0, anomalous=0, errors=0, regions=0)
    sample_ids: set[str] = set()
    for part in parts:
        with _open_part(join(folder_uri, part)) as file:
            table = file.read(columns=_COUNTED)
        sample_ids.update(table["sample_id"].to_pylist())
        counts["images"] += table.num_rows
        counts["anomalous"] += pc.sum(table["is_anomalous"]).as_py() or 0
        counts["errors"] += table.num_rows - table["error"].null_count
        counts["regions"] += pc.sum(pc.list_value_length(table["regions"])).as_py() or 0
    if len(sample_ids) < counts["images"]:
        raise ArtifactError(
            f"{folder_uri} has {counts['images']} rows for {len(sample_ids)} images; one row per image is needed: "
            "remove the parts that an interrupted attempt left behind"
        )
    return dict(counts)


def _read_part(uri: str) -> Iterator[Verdict]:
    with _open_part(uri) as file:
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
            yield from table_verdicts(batch)


@contextmanager
def _open_part(uri: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise ArtifactError(
                    f"{uri} has the columns {file.schema_arrow.names}; a part of a label version has {SCHEMA.names}, "
                    "each of the type that verdict_table gives it"
                )
            yield file
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{uri} is missing or not a readable Parquet part of a label version: {error}") from error
