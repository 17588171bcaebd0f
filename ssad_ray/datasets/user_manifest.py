"""A list of images that somebody brings: CSV (UTF-8) or Parquet with a column `uri`, all other columns optional.

An address without scheme is taken from the folder of the list. `ssad_ray.datasets.manifest.write_manifest` writes
such a list too; its facts are measured anew, and what it calls broken stays so.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from ssad_ray.core import storage
from ssad_ray.core.records import TrueBox
from ssad_ray.datasets.entries import Entry, SourceStage
from ssad_ray.datasets.manifest import SCHEMA
from ssad_ray.errors import DataError

NAME = "manifest"
SUFFIXES = (".csv", ".parquet")

_FACTS = ("category", "source_stage", "defect_type", "mask_uri", "template_uri", "group", "boxes", "error", "warning")
_STAGES: dict[str | None, SourceStage | None] = {"train": "train", "test": "test", None: None}
_MAX_LIST_BYTES = 4 << 30


def is_manifest(uri: str) -> bool:
    """Return whether the address is that of a list rather than of a folder."""
    return uri.lower().endswith(SUFFIXES)


def read(uri: str) -> Iterator[Entry]:
    """Yield an entry for every row; a row that is wrong in itself carries an error.

    Raises:
        DataError: The list cannot be read, has no column `uri`, or has columns that mean nothing here.
    """
    for index, record in enumerate(_read_table(uri).to_pylist(), 1):
        yield _to_entry(record, f"row {index}")


def _read_table(uri: str) -> pa.Table:
    data = pa.BufferReader(storage.read_bytes(uri, _MAX_LIST_BYTES))
    try:
        table = _read_csv(data) if uri.lower().endswith(".csv") else parquet.read_table(data)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{uri}: cannot be read as a list of images ({error}); save it as UTF-8 CSV or Parquet"
        ) from error
    unknown = sorted(set(table.column_names) - set(SCHEMA.names))
    if "uri" not in table.column_names or unknown or len(set(table.column_names)) < table.num_columns:
        raise DataError(
            f"{uri}: has the columns {', '.join(table.column_names)}; `uri` is needed, and accepted besides are "
            f"{', '.join(_FACTS)}, each once, separated by commas"
        )
    return table.select([name for name in table.column_names if name in ("uri", *_FACTS)])


def _read_csv(data: pa.BufferReader) -> pa.Table:
    """Read every column as text, an empty cell as null: a category may be called 01."""
    names = csv.open_csv(data).schema.names
    data.seek(0)
    options = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    return csv.read_csv(data, convert_options=options)


def _to_entry(record: dict[str, Any], where: str) -> Entry:
    text = {name: str(value) for name, value in record.items() if name != "boxes" and value not in (None, "")}
    stage = text.get("source_stage")
    error = text.get("error")
    if stage not in _STAGES:
        error = f"{where}: source_stage is {stage!r}; train, test or nothing is accepted"
    try:
        boxes = tuple(TrueBox(_four(item["box"]), str(item["defect_type"])) for item in record.get("boxes") or ())
    except (KeyError, TypeError, ValueError):
        boxes, error = (), f"{where}: boxes must be a list of {{box: [x0, y0, x1, y1], defect_type: text}}"
    return Entry(
        path=text.get("uri", where),
        category=text.get("category", "default"),
        source_stage=_STAGES.get(stage),
        defect_type=text.get("defect_type"),
        mask=text.get("mask_uri"),
        boxes=boxes,
        template=text.get("template_uri"),
        group=text.get("group"),
        error=error if "uri" in text else f"{where}: the uri is empty",
        warning=text.get("warning"),
    )


def _four(values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, values)
    return x0, y0, x1, y1
