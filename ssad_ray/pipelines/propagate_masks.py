"""Masks that a person drew for a few images of a set -> a mask for every image that shows the same.

OUT/<path of the image>.png   the mask, where it came through; the image's own suffix is left out
OUT/masks.parquet             one row per image, written last: `sample_id`, `mask`, `reference`, `correlation`,
                              `cycle_iou`, and `error`, why there is no mask
OUT/unfinished-<digest>/      until then, the row of every image that is done: a killed run, called again with the same
                              masks, goes on where it was, and tries again what failed
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssad_ray.config import DataConfig, RunConfig
from ssad_ray.core.images import decode, decode_mask, encode_png
from ssad_ray.core.propagation import likeness, propagate, thumbnail_spectrum
from ssad_ray.core.records import Sample
from ssad_ray.core.storage import exists, join, list_files, list_names, read_bytes, resolve, write_bytes
from ssad_ray.datasets.catalog import catalog
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import ArtifactError, DataError
from ssad_ray.pipelines.run import Announce
from ssad_ray.pipelines.stream import Row, stream

TABLE = "masks.parquet"
UNFINISHED = "unfinished-"
_MAX_RECORD_BYTES = 1 << 20
_FIELDS = [("reference", pa.string()), ("correlation", pa.float64()), ("cycle_iou", pa.float64())]
_SCHEMA = pa.schema([("mask", pa.binary()), *_FIELDS, ("reason", pa.string())])
_TABLE = pa.schema([("sample_id", pa.string()), ("mask", pa.string()), *_FIELDS, ("error", pa.string())])


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """An image that a mask was drawn for.

    Attributes:
        sample: The image.
        mask_uri: Its mask.
        spectrum: What `likeness` compares.
    """

    sample: Sample
    mask_uri: str
    spectrum: NDArray[np.complex128]

    def read(self, limits: DataConfig) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the image (H, W, 3) and its mask (H, W)."""
        image = decode(read_bytes(self.sample.uri, limits.max_image_bytes), limits.max_image_px)
        return image, decode_mask(read_bytes(self.mask_uri, limits.max_image_bytes), *image.shape[:2])


def mask_name(path: str) -> str:
    """Return where the mask of an image is inside a folder of masks, from the image's path inside its data set.

    An image that is named by an address has its mask below the names that the address consists of.
    """
    parts = [part for part in path.replace("://", "/").split("/") if part not in ("", ".", "..")]
    return str(PurePosixPath(*parts).with_suffix(".png"))


def propagate_masks(
    data_uri: str, drawn_uri: str, out_uri: str, config: RunConfig, announce: Announce
) -> tuple[int, int]:
    """Carry masks to all images of a data set; each comes from the image most like it that one was drawn for.

    Args:
        data_uri: The images.
        drawn_uri: Folder with masks under the names of `mask_name`: white is inside.
        out_uri: New folder, or that of a run with the same drawn masks which did not end.
        config: The limits of the data, and the resources.
        announce: Where progress is shown.

    Returns:
        How many images have a mask now, and how many images there are.

    Raises:
        ArtifactError: The folder holds something else already.
        DataError: There is no image, no mask, a mask that belongs to no image, or one that cannot be used.
    """
    rows = catalog(data_uri, config.data, announce("catalogue")).rows
    if not rows:
        raise DataError(f"{data_uri}: names no image")
    references = _references(rows, drawn_uri, config.data)
    work_uri = join(out_uri, f"{UNFINISHED}{_digest(references, config.data)}")
    records = _records(out_uri, work_uri)
    left = [row for row in rows if row.sample_id not in records]
    worker = partial(MaskCarrier, references, config.data)
    for image, row in zip(left, stream(left, worker, _SCHEMA, config, announce("carry masks")), strict=True):
        reason, pixels = row.pop("reason"), row.pop("mask")
        if pixels is not None:
            write_bytes(join(out_uri, mask_name(image.path)), pixels)
        mask = None if pixels is None else mask_name(image.path)
        record = row | {"mask": mask, "error": row["error"] or reason}
        records[image.sample_id] = record
        if row["error"] is None:  # what failed is tried again
            name = f"{hashlib.sha256(image.sample_id.encode()).hexdigest()}.json"
            write_bytes(join(work_uri, name), _to_json(record))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([records[row.sample_id] for row in rows], schema=_TABLE), buffer)
    write_bytes(join(out_uri, TABLE), buffer.getvalue())
    filesystem, path = resolve(work_uri)
    filesystem.delete_dir(path)
    return sum(records[row.sample_id]["mask"] is not None for row in rows), len(rows)


class MaskCarrier:
    """The worker: carries the mask of the nearest reference to an image."""

    def __init__(self, references: Sequence[Reference], limits: DataConfig) -> None:
        self.references, self.limits = {each.sample.sample_id: each for each in references}, limits

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return the mask as a PNG and how it came about, or the reason why there is none."""
        image = decode(data, self.limits.max_image_px)
        nothing = dict.fromkeys(_SCHEMA.names)
        spectrum = thumbnail_spectrum(image)
        of_product = [each for each in self.references.values() if each.sample.category == sample.category]
        nearest = max(of_product, key=lambda each: likeness(each.spectrum, spectrum), default=None)
        nearest = self.references.get(sample.sample_id, nearest)
        if nearest is None:
            return nothing | {"reason": f"no mask was drawn for an image of the product {sample.category}"}
        how = nothing | {"reference": nearest.sample.sample_id}
        reference, mask = nearest.read(self.limits)
        if nearest.sample.sample_id == sample.sample_id:
            return how | {"mask": encode_png(mask), "correlation": 1.0, "cycle_iou": 1.0}
        try:
            found = propagate(reference, mask, image)
        except DataError as refusal:
            return how | {"reason": refusal.detail}
        return how | {
            "mask": encode_png(found.mask),
            "correlation": found.correlation,
            "cycle_iou": found.cycle_iou,
        }


def _digest(references: Iterable[Reference], limits: DataConfig) -> str:
    """Return a digest of the drawn masks and of the images that they were drawn for."""
    digest = hashlib.sha256()
    for each in references:
        digest.update(
            each.sample.sample_id.encode() + hashlib.sha256(read_bytes(each.mask_uri, limits.max_image_bytes)).digest()
        )
    return digest.hexdigest()[:16]


def _records(out_uri: str, work_uri: str) -> dict[str, Row]:
    """Return what an unfinished run has done, or begin one."""
    begun_uri = join(work_uri, "begun")
    if exists(begun_uri):
        names = [name for name in list_names(work_uri) if name.endswith(".json")]
        done = [json.loads(read_bytes(join(work_uri, name), _MAX_RECORD_BYTES)) for name in names]
        return {record["sample_id"]: record for record in done}
    if list_names(out_uri):
        raise ArtifactError(f"{out_uri} holds files already; masks are never overwritten: name another --out")
    write_bytes(begun_uri, b"")
    return {}


def _to_json(record: Row) -> bytes:
    return json.dumps({name: record[name] for name in _TABLE.names}).encode()


def _references(rows: Sequence[ManifestRow], drawn_uri: str, limits: DataConfig) -> list[Reference]:
    """Find the image of every drawn mask, and look at both."""
    drawn = [name for name in list_files(drawn_uri) if name.endswith(".png")]
    by_name = _by_name(rows)
    references = []
    for name in drawn:
        row = by_name.get(name)
        if row is None or row.error is not None:
            what = "no image belongs to this mask" if row is None else f"its image cannot be used: {row.error}"
            raise DataError(
                f"{join(drawn_uri, name)}: {what}. A mask has its image's path inside the data set and the suffix "
                f".png, for example {next(iter(by_name))}"
            )
        try:
            reference = Reference(row.sample, join(drawn_uri, name), np.empty((0, 0), np.complex128))
            image, mask = reference.read(limits)
        except DataError as error:
            raise DataError(f"{join(drawn_uri, name)}: {error.detail}") from error
        if not mask.any():
            raise DataError(f"{join(drawn_uri, name)}: nothing is inside; draw white what is of interest")
        references.append(Reference(row.sample, reference.mask_uri, thumbnail_spectrum(image)))
    if not references:
        raise DataError(
            f"{drawn_uri}: no PNG file is there; draw a mask for at least one image, white what is of interest, under "
            f"the image's path and with the suffix .png, for example {next(iter(by_name))}"
        )
    return references


def _by_name(rows: Sequence[ManifestRow]) -> dict[str, ManifestRow]:
    by_name: dict[str, ManifestRow] = {}
    for row in (row for row in rows if row.error is None):
        other = by_name.setdefault(mask_name(row.path), row)
        if other is not row:
            raise DataError(
                f"{other.path} and {row.path} would share the mask {mask_name(row.path)}; rename one of the images"
            )
    broken = {mask_name(row.path): row for row in rows if row.error is not None}
    return by_name | {name: row for name, row in broken.items() if name not in by_name}
