"""Every image of a data set, looked at once: what it is, what is known about it, and what is broken.

A broken image is a row with an error; only a data set that cannot be understood at all raises.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ssad_ray.config import DataConfig
from ssad_ray.core import storage
from ssad_ray.datasets import layouts, user_manifest
from ssad_ray.datasets.duplicates import group_duplicates
from ssad_ray.datasets.entries import Entry, Listing, is_image
from ssad_ray.datasets.inspection import inspect
from ssad_ray.datasets.manifest import ManifestRow

_MAX_THREADS = 8
"""Each thread holds one decoded image, so this bounds memory too."""

UNKNOWN = "unknown"
"""Category of an image that no layout places."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Catalog:
    """What is in a data set.

    Attributes:
        layout: Name of the layout it was read as.
        rows: One per image file, in the order of their paths.
        absent: Images that a list or an annotation names, but that are not there.
        ignored: Number of files that are no image of an accepted format, by suffix.
    """

    layout: str
    rows: tuple[ManifestRow, ...]
    absent: tuple[str, ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()


def catalog(data_uri: str, config: DataConfig, progress: Progress | None = None) -> Catalog:
    """Look at every image of a folder, or of a list of images, once.

    Args:
        data_uri: A folder in any known layout, or a CSV or Parquet list with a column `uri`.
        config: Bounds on a file's bytes and pixels.
        progress: Called with (images done, images in all).

    Raises:
        DataError: No such place, no image in it, or an annotation file that cannot be read.
    """
    root_uri = storage.absolute(data_uri)
    if user_manifest.is_manifest(root_uri):
        entries = _unique(user_manifest.read(root_uri))
        folder_uri = root_uri.rpartition("/")[0]
        return Catalog(user_manifest.NAME, _inspect_all(folder_uri, entries, config, progress))
    files = storage.list_files(root_uri)
    listing = {path: size for path, size in files.items() if not _is_hidden(path)}
    reader = layouts.recognise(data_uri, listing)
    entries = _unique(reader.read(root_uri, listing))
    present = [entry for entry in entries if entry.path in listing]
    rows = _inspect_all(root_uri, [*present, *_unclaimed(present, listing, reader.NAME)], config, progress)
    ignored = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in listing if not is_image(path))
    absent = tuple(entry.path for entry in entries if entry.path not in listing)
    return Catalog(reader.NAME, rows, absent, tuple(sorted(ignored.items())))


def summary(catalog: Catalog) -> dict[str, Any]:
    """Return counts as plain data for printing: what there is, and what is broken and why.

    Keys: layout, images, usable, broken, categories (name → stage → defect type → number of usable images), sizes,
    channels, bit_depths, masks, boxes, templates, duplicate_groups (of copies, not of the layout), errors and warnings
    (path → text), absent, ignored.
    """
    usable = [row for row in catalog.rows if row.error is None]
    categories: dict[str, dict[str, dict[str, int]]] = {}
    for row in usable:
        counts = categories.setdefault(row.category, {}).setdefault(row.source_stage or "no stage", {})
        defect_type = row.defect_type or "unlabelled"
        counts[defect_type] = counts.get(defect_type, 0) + 1
    return {
        "layout": catalog.layout,
        "images": len(catalog.rows),
        "usable": len(usable),
        "broken": len(catalog.rows) - len(usable),
        "categories": categories,
        "sizes": dict(Counter(f"{row.height}x{row.width}" for row in usable).most_common()),
        "channels": dict(Counter(row.channels for row in usable).most_common()),
        "bit_depths": dict(Counter(row.bit_depth for row in usable).most_common()),
        "masks": sum(row.mask_uri is not None for row in usable),
        "boxes": sum(len(row.boxes) for row in usable),
        "templates": sum(row.template_uri is not None for row in usable),
        "duplicate_groups": _num_duplicate_groups(usable),
        "errors": {row.path: row.error for row in catalog.rows if row.error},
        "warnings": {row.path: row.warning for row in usable if row.warning},
        "absent": list(catalog.absent),
        "ignored": dict(catalog.ignored),
    }


def _inspect_all(
    root_uri: str, entries: Sequence[Entry], config: DataConfig, progress: Progress | None
) -> tuple[ManifestRow, ...]:
    rows, thumbnails = [], []
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for row, thumbnail in pool.map(partial(inspect, root_uri, config=config), entries):
            rows.append(row)
            thumbnails.append(thumbnail)
            if progress:
                progress(len(rows), len(entries))
    return tuple(sorted(group_duplicates(rows, thumbnails), key=lambda row: row.sample_id))


def _unique(entries: Iterable[Entry]) -> list[Entry]:
    """Return one entry per path; where two say different things of one image, none is believed."""
    unique: dict[str, Entry] = {}
    for entry in entries:
        if unique.setdefault(entry.path, entry) != entry:
            unique[entry.path] = replace(entry, error="listed more than once, with different facts")
    return list(unique.values())


def _unclaimed(entries: Iterable[Entry], listing: Listing, layout: str) -> Iterator[Entry]:
    """Yield every image file that no entry speaks of: a mask without image, a template alone, a stray picture."""
    claimed = {path for entry in entries for path in (entry.path, entry.mask, entry.template)}
    reason = f"not an image, mask or template that the layout {layout} knows; remove it or correct its place"
    return (Entry(path, UNKNOWN, error=reason) for path in listing if is_image(path) and path not in claimed)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _num_duplicate_groups(rows: Sequence[ManifestRow]) -> int:
    sizes = Counter(row.group for row in rows)
    return sum(sizes[row.sample_id] > 1 for row in rows)
