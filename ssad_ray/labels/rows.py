"""Verdicts as rows of a Parquet table: one row per image, its regions in one list column."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from ssad_ray.core.records import Verdict
from ssad_ray.errors import ArtifactError

_REGION = pa.struct(
    [
        ("region_id", pa.string()),
        ("mask", pa.struct([("height", pa.int32()), ("width", pa.int32()), ("counts", pa.string())])),
        ("box", pa.list_(pa.float64())),
        ("area_px", pa.int64()),
        ("score", pa.float64()),
        ("confidence", pa.float64()),
        ("defect_type", pa.string()),
        (
            "provenance",
            pa.struct(
                [
                    ("model", pa.string()),
                    ("threshold", pa.float64()),
                    ("parent", pa.string()),
                    ("actor", pa.string()),
                    ("time", pa.string()),
                ]
            ),
        ),
    ]
)

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("uri", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("anomaly_score", pa.float64()),
        ("p_value", pa.float64()),
        ("is_anomalous", pa.bool_()),
        ("regions", pa.list_(_REGION)),
        ("error", pa.string()),
    ]
)
"""The columns mirror `Verdict`, field by field, so that a row is its nested dict."""

WORKER_SCHEMA = pa.schema([field for field in SCHEMA if field.name not in ("sample_id", "error")])
"""Those that a worker fills in; the stream knows the others."""

_VERDICT = TypeAdapter(Verdict)


def to_row(verdict: Verdict) -> dict[str, Any]:
    """Return the nested dict of a verdict; its keys are the columns of `SCHEMA`."""
    return asdict(verdict)


def from_row(row: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a row.

    Raises:
        ArtifactError: A field is missing, or has a value that its type cannot take.
    """
    try:
        return _VERDICT.validate_python(row)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
        raise ArtifactError(f"the label row of {row.get('sample_id')!r} is not a verdict: {where}") from None


def verdict_table(verdicts: Iterable[Verdict]) -> pa.Table:
    """Return verdicts as a table with exactly the columns and types of `SCHEMA`, even where all values are null."""
    return pa.Table.from_pylist([to_row(verdict) for verdict in verdicts], schema=SCHEMA)


def table_verdicts(table: pa.Table | pa.RecordBatch) -> Iterator[Verdict]:
    """Yield the verdicts of a table."""
    return map(from_row, table.to_pylist())
