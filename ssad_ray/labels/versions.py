"""Label versions: immutable Parquet data sets of verdicts, each sealed by its lineage.

    ROOT/<version>/*.parquet       parts, one row per image
    ROOT/<version>/_lineage.json   written last; a folder without it is unfinished and is not a version

The folder of a version is a Parquet data set to whatever reads such: of a name with an underscore they take no notice.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import Field, TypeAdapter, ValidationError

from ssad_ray import __version__
from ssad_ray.core.records import Calibration, Verdict
from ssad_ray.core.storage import checked_name, exists, is_name, join, list_names, read_bytes, resolve, write_bytes
from ssad_ray.errors import ArtifactError, UnavailableError
from ssad_ray.labels.rows import SCHEMA, table_verdicts, verdict_table

_LINEAGE = "_lineage.json"
_MAX_LINEAGE_BYTES = 256 << 20
_ROWS_PER_PART = 4096
_ROWS_PER_BATCH = 256
_NEVER_NULL = ["sample_id", "uri", "height", "width"]
_COUNTED = [*_NEVER_NULL, "is_anomalous", "error", "regions.list.element.region_id"]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a label version comes from.

    Attributes:
        model: Name and version of the artifact that made the labels, or what else did.
        calibration: The thresholds that were applied; None where none were.
        config_digest: SHA-256 of the resolved config, without what is no part of results.
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
        parts: File names of the Parquet parts, in reading order, and their SHA-256.
    """

    version: str
    lineage: Lineage
    created: str
    package_version: str
    counts: Mapping[str, int]
    parts: Mapping[Annotated[str, Field(pattern=r"^[^/]+$")], str]


_LABEL_VERSION = TypeAdapter(LabelVersion)


def write_labels(root_uri: str, version: str, verdicts: Iterable[Verdict], lineage: Lineage) -> LabelVersion:
    """Write and seal a label version; what an interrupted attempt left in its folder is removed.

    Raises:
        ArtifactError: The version exists already, its parent does not, its folder holds something else, or there is no
            verdict or two for one image.
        ConfigError: The version's name cannot be a folder name.
        UnavailableError: The place cannot be written.
    """
    _check_is_new(root_uri, version, lineage)
    folder_uri = join(root_uri, version)
    filesystem, folder = resolve(folder_uri)
    with _writing(folder_uri):
        _remove_unfinished(filesystem, folder)
        filesystem.create_dir(folder, recursive=True)
    rows = iter(verdicts)
    parts: list[str] = []
    while chunk := list(islice(rows, _ROWS_PER_PART)):
        parts.append(f"{len(parts):05d}.parquet")
        with _writing(folder_uri):
            pq.write_table(verdict_table(chunk), f"{folder}/{parts[-1]}", filesystem=filesystem, compression="zstd")
    return _seal(root_uri, version, lineage, parts)


def commit_labels(root_uri: str, version: str, lineage: Lineage) -> LabelVersion:
    """Seal a folder whose Parquet parts were written by others, for example by `Dataset.write_parquet`.

    Raises:
        ArtifactError: The version is sealed already, its parent is not, or it has no part, a part with other columns
            than `SCHEMA`, a row that says not which image it is of, or two rows for one image.
        ConfigError: The version's name cannot be a folder name.
    """
    _check_is_new(root_uri, version, lineage)
    names = list_names(join(root_uri, version))
    return _seal(root_uri, version, lineage, [name for name in names if name.endswith(".parquet")])


def read_labels(root_uri: str, version: str) -> Iterator[Verdict]:
    """Return the verdicts of a sealed version, one image at a time.

    Raises:
        ArtifactError: No such version, or, on the way, a part that is missing, broken or not the one that was sealed.
    """
    parts = read_lineage(root_uri, version).parts
    folder_uri = join(root_uri, version)
    return (verdict for name, digest in parts.items() for verdict in _read_part(join(folder_uri, name), digest))


def read_lineage(root_uri: str, version: str) -> LabelVersion:
    """Return what is known about a sealed version.

    Raises:
        ArtifactError: No such version, or its lineage is not readable.
    """
    if not is_sealed(root_uri, version):
        present = ", ".join(_sealed_names(root_uri)) or "none"
        raise ArtifactError(f"{root_uri} has no label version {version!r}; sealed versions there: {present}")
    uri = _lineage_uri(root_uri, version)
    try:
        return _LABEL_VERSION.validate_json(read_bytes(uri, _MAX_LINEAGE_BYTES))
    except ValidationError as error:
        raise ArtifactError(f"{uri} is not the lineage of a label version: {error.errors()[0]['msg']}") from None


def list_versions(root_uri: str) -> list[str]:
    """Return the names of the sealed versions, oldest first.

    Raises:
        ArtifactError: The lineage of one is not readable.
    """
    return sorted(_sealed_names(root_uri), key=lambda name: (read_lineage(root_uri, name).created, name))


def is_sealed(root_uri: str, version: str) -> bool:
    """Return whether there is such a version."""
    return exists(_lineage_uri(root_uri, version))


def _sealed_names(root_uri: str) -> list[str]:
    return [name for name in list_names(root_uri) if is_name(name) and is_sealed(root_uri, name)]


def _lineage_uri(root_uri: str, version: str) -> str:
    return join(join(root_uri, checked_name(version, "a label version")), _LINEAGE)


def _check_is_new(root_uri: str, version: str, lineage: Lineage) -> None:
    if is_sealed(root_uri, version):
        raise ArtifactError(
            f"{root_uri} has a label version {version!r} already; versions are never overwritten: use another name"
        )
    if lineage.parent is not None:
        read_lineage(root_uri, lineage.parent)


def _remove_unfinished(filesystem: fs.FileSystem, folder: str) -> None:
    files = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    foreign = sorted(file.base_name for file in files if file.extension not in ("parquet", "partial"))
    if foreign:
        raise ArtifactError(f"{folder} holds {foreign[0]!r}, which is no part of a label version; use another name")
    for file in files:
        filesystem.delete_file(file.path)


@contextmanager
def _writing(folder_uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"{folder_uri}: the label version cannot be written: {error}") from error


def _seal(root_uri: str, version: str, lineage: Lineage, parts: list[str]) -> LabelVersion:
    counts, digests = _counted(join(root_uri, version), parts)
    label_version = LabelVersion(
        version=version,
        lineage=lineage,
        created=datetime.now(UTC).isoformat(),
        package_version=__version__,
        counts=counts,
        parts=digests,
    )
    write_bytes(_lineage_uri(root_uri, version), _LABEL_VERSION.dump_json(label_version, indent=2))
    return label_version


def _counted(folder_uri: str, parts: list[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Look through the parts; return the counts of all of them, and the SHA-256 of each."""
    if not parts:
        raise ArtifactError(f"{folder_uri} holds no Parquet part; a label version needs at least one image")
    counts: Counter[str] = Counter(images=0, anomalous=0, errors=0, regions=0)
    sample_ids: set[str] = set()
    digests: dict[str, str] = {}
    for part in parts:
        uri = join(folder_uri, part)
        with _open_part(uri) as (file, digests[part]):
            table = file.read(columns=_COUNTED)
        if any(table[name].null_count for name in _NEVER_NULL):
            raise ArtifactError(f"{uri} has a row with a null among {', '.join(_NEVER_NULL)}; a row is of an image")
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
    return dict(counts), digests


def _read_part(uri: str, digest: str) -> Iterator[Verdict]:
    with _open_part(uri) as (file, found):
        if found != digest:
            raise ArtifactError(f"{uri} was changed after it was sealed; restore the file of SHA-256 {digest}")
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
            yield from table_verdicts(batch)


@contextmanager
def _open_part(uri: str) -> Iterator[tuple[pq.ParquetFile, str]]:
    """Open a part; with it comes the SHA-256 of its file."""
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_file(path) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            file = pq.ParquetFile(stream)
            if not file.schema_arrow.equals(SCHEMA):
                raise ArtifactError(
                    f"{uri} has the columns {file.schema_arrow.names}; a part of a label version has {SCHEMA.names}, "
                    "each of the type that verdict_table gives it"
                )
            yield file, digest
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{uri} is missing or not a readable Parquet part of a label version: {error}") from error
