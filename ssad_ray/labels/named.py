"""What a person calls a few regions: CSV with a header, or JSON Lines, of `region_id` and `defect_type`."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ssad_ray.core.records import GOOD
from ssad_ray.core.storage import read_bytes
from ssad_ray.errors import DataError

_MAX_BYTES = 256 << 20
_MAX_NAME = 100
_ACCEPTED = 'accepted are CSV with the header "region_id,defect_type", and JSON Lines (.jsonl) with these two names'


def read_named(uri: str) -> dict[str, str]:
    """Return the defect type of every region that the file names; further columns are ignored.

    Raises:
        DataError: The file cannot be read, a line lacks one of the two, or a region is named in two ways.
    """
    named: dict[str, str] = {}
    for place, record in _records(uri):
        region_id, defect_type = (_text(record.get(name)) for name in ("region_id", "defect_type"))
        if not region_id or not defect_type or defect_type == GOOD:
            raise DataError(
                f"{uri}, {place}: region_id is {region_id!r} and defect_type {defect_type!r}; both are needed, as "
                f"text, and {GOOD!r} is no defect. Leave out the regions that you do not name"
            )
        if not defect_type.isprintable() or len(defect_type) > _MAX_NAME:
            raise DataError(
                f"{uri}, {place}: {defect_type[:_MAX_NAME]!r} cannot name a defect type; accepted are up to "
                f"{_MAX_NAME} characters that can be printed"
            )
        if named.setdefault(region_id, defect_type) != defect_type:
            raise DataError(
                f"{uri}, {place}: {region_id} is called {named[region_id]!r} above and {defect_type!r} here"
            )
    if not named:
        raise DataError(f"{uri}: names no region; {_ACCEPTED}")
    return named


def _records(uri: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield where every record stands, and the record."""
    try:
        text = read_bytes(uri, _MAX_BYTES).decode("utf-8-sig")
        if uri.lower().endswith(".jsonl"):
            lines = ((at, json.loads(line)) for at, line in enumerate(text.splitlines(), 1) if line.strip())
            records = [(at, each) for at, each in lines]
        else:
            reader = csv.DictReader(io.StringIO(text), strict=True)
            records = [(reader.line_num, each) for each in reader]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{uri}: cannot be read ({error}); {_ACCEPTED}") from error
    for at, record in records:
        if not isinstance(record, dict) or not {"region_id", "defect_type"} <= record.keys():
            raise DataError(f"{uri}, line {at}: has no region_id or no defect_type; {_ACCEPTED}")
        yield f"line {at}", record


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
