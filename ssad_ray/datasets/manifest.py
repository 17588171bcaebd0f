"""Manifest rows, one per image file, and their Parquet form."""

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ssad_ray.core import storage
from ssad_ray.core.records import GroundTruth, Sample, TrueBox, path_of
from ssad_ray.datasets.entries import SourceStage
from ssad_ray.errors import DataError

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("template_uri", pa.string()),
        pa.field("defect_type", pa.string()),
        pa.field("mask_uri", pa.string()),
        pa.field(
            "boxes",
            pa.list_(pa.struct([("box", pa.list_(pa.float64(), 4)), ("defect_type", pa.string())])),
            nullable=False,
        ),
        pa.field("source_stage", pa.string()),
        pa.field("height", pa.int64()),
        pa.field("width", pa.int64()),
        pa.field("channels", pa.int64()),
        pa.field("bit_depth", pa.int64()),
        pa.field("num_bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("error", pa.string()),
        pa.field("warning", pa.string()),
    ]
)
_MAX_MANIFEST_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """All that is known about one image file; the facts are None where the file could not be read.

    Attributes:
        sample_id: See `Sample`.
        uri: See `Sample`.
        category: See `Sample`.
        group: See `Sample`.
        template_uri: See `Sample`.
        defect_type: See `GroundTruth`.
        mask_uri: See `GroundTruth`.
        boxes: See `GroundTruth`.
        source_stage: `"train"` or `"test"` as the data set ships it, None where it ships none.
        height: Pixels, upright frame.
        width: Pixels, upright frame.
        channels: As stored.
        bit_depth: Bits per channel as stored.
        num_bytes: Size of the file.
        sha256: Hexadecimal digest of the file.
        error: Why the image is quarantined; None for an image that can be used.
        warning: What was repaired in, or is missing from, an image that can be used.
    """

    sample_id: str
    uri: str
    category: str
    group: str
    template_uri: str | None = None
    defect_type: str | None = None
    mask_uri: str | None = None
    boxes: tuple[TrueBox, ...] = ()
    source_stage: SourceStage | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    bit_depth: int | None = None
    num_bytes: int | None = None
    sha256: str | None = None
    error: str | None = None
    warning: str | None = None

    @property
    def path(self) -> str:
        """The path inside the data set."""
        return path_of(self.sample_id)

    @property
    def is_template(self) -> bool:
        """Whether it is the template that images of its pattern are compared with."""
        return self.template_uri == self.uri

    @property
    def sample(self) -> Sample:
        """The part that a method may see."""
        return Sample(self.sample_id, self.uri, self.category, self.group, self.template_uri)

    @property
    def ground_truth(self) -> GroundTruth:
        """The part that no method may see."""
        return GroundTruth(self.sample_id, self.defect_type, self.mask_uri, self.boxes)


def write_manifest(rows: Iterable[ManifestRow], uri: str) -> None:
    """Write rows as Parquet.

    Raises:
        UnavailableError: The place cannot be written.
    """
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA), buffer)
    storage.write_bytes(uri, buffer.getvalue())


def read_manifest(uri: str) -> list[ManifestRow]:
    """Read what `write_manifest` wrote.

    Raises:
        DataError: No such file, not Parquet, or Parquet with other columns.
    """
    data = storage.read_bytes(uri, _MAX_MANIFEST_BYTES)
    try:
        table = parquet.read_table(pa.BufferReader(data)).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{uri}: not a manifest of this package ({error}); pass a list of images of your own as --data instead"
        ) from error
    return [_to_row(record) for record in table.to_pylist()]


def _to_row(record: dict[str, Any]) -> ManifestRow:
    boxes = tuple(TrueBox(tuple(item["box"]), item["defect_type"]) for item in record["boxes"])
    return ManifestRow(**{**record, "boxes": boxes})
