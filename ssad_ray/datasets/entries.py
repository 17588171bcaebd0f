"""What a reader says about a file before it is opened, and the small vocabulary that all readers share."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol

from ssad_ray.core import storage
from ssad_ray.core.records import TrueBox
from ssad_ray.errors import DataError

Listing = Mapping[str, int]
"""Size in bytes of every file of a data set, by path relative to its root, sorted."""

SourceStage = Literal["train", "test"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MIXED = "mixed"
"""The defect type of an image whose boxes name several."""

_MAX_ANNOTATION_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as the layout describes it; nothing here has been checked against the file.

    Attributes:
        path: Relative to the root, or an address of its own.
        source_stage: Stage the data set ships the image in; None where it ships none.
        defect_type: `"good"`, a defect type, or None where nothing is known.
        size: (height, width) that the annotation claims.
        group: Images of one group stay together in a split; None where the layout does not say.
        error: Why the image cannot be used, where the layout alone shows it.
        warning: What was repaired or is missing; the image is used.
    """

    path: str
    category: str
    source_stage: SourceStage | None = None
    defect_type: str | None = None
    mask: str | None = None
    boxes: tuple[TrueBox, ...] = ()
    size: tuple[int, int] | None = None
    template: str | None = None
    group: str | None = None
    error: str | None = None
    warning: str | None = None


class Reader(Protocol):
    """A module that knows one folder layout."""

    NAME: str

    def matches(self, listing: Listing) -> bool:
        """Return whether the paths are of this layout."""

    def read(self, root_uri: str, listing: Listing) -> Iterator[Entry]:
        """Yield an entry for every image that the layout knows of, also for those that are named but absent."""


def is_image(path: str) -> bool:
    """Return whether the name has the suffix of an accepted image format."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def without_suffix(path: str) -> str:
    """Return the path less its last suffix."""
    return str(PurePosixPath(path).with_suffix(""))


def by_stem(paths: Iterator[str]) -> dict[str, str]:
    """Return the image paths by their path without suffix; of several the alphabetically first."""
    return {without_suffix(path): path for path in sorted(paths, reverse=True) if is_image(path)}


def folder_name(uri: str) -> str:
    """Return the last part of an address, to name what has no other name."""
    return uri.rstrip("/").rpartition("/")[2] or "images"


def image_defect_type(boxes: tuple[TrueBox, ...]) -> str | None:
    """Return the one defect type that the boxes name, `"mixed"` for several, None without boxes."""
    types = {box.defect_type for box in boxes}
    return types.pop() if len(types) == 1 else (MIXED if types else None)


def read_text(root_uri: str, path: str) -> str:
    """Return an annotation file as text (UTF-8, with or without a byte-order mark).

    Raises:
        DataError: The file is missing, too large or not UTF-8.
    """
    uri = storage.join(root_uri, path)
    try:
        return storage.read_bytes(uri, _MAX_ANNOTATION_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{uri}: not UTF-8 text ({error}); save the annotation as UTF-8") from error


def read_records(root_uri: str, path: str) -> list[Any]:
    """Return a JSON annotation file that holds one flat list.

    Raises:
        DataError: The file is missing, not JSON, or its top level is not a list.
    """
    try:
        loaded = json.loads(read_text(root_uri, path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{storage.join(root_uri, path)}: not JSON ({error}); download the file again") from error
    if not isinstance(loaded, list):
        kind = type(loaded).__name__
        raise DataError(f"{storage.join(root_uri, path)}: holds a {kind}; a list with one record per box is needed")
    return loaded
