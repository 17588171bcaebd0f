"""The annotation lists of both Tianchi contests: one flat JSON list, one record per box, bbox = [x0, y0, x1, y1]."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ssad_ray.core.records import TrueBox
from ssad_ray.datasets.entries import read_records
from ssad_ray.errors import DataError


@dataclass(slots=True)
class Annotation:
    """All records of one image name, over all annotation files.

    Attributes:
        boxes: Distinct boxes in the order of their records.
        size: (height, width) that the records claim, where they claim one.
        num_repeated: Records dropped because the same one came before.
        error: Why the records cannot be used.
    """

    boxes: dict[TrueBox, None] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    num_repeated: int = 0
    error: str | None = None

    @property
    def warning(self) -> str | None:
        """What was repaired."""
        return f"{self.num_repeated} repeated boxes dropped" if self.num_repeated else None


def read_annotations(
    root_uri: str, paths: Iterable[str], defect_type_of: Callable[[dict[str, Any]], str]
) -> dict[str, Annotation]:
    """Return the annotation of every image name, all files taken together.

    Args:
        root_uri: Root of the data set.
        paths: Annotation files; files of the same name in different folders add up.
        defect_type_of: Names the defect type of a record; raises KeyError for what it does not know.

    Raises:
        DataError: A file is not a JSON list, or a record does not name its image.
    """
    annotations: dict[str, Annotation] = {}
    for path in paths:
        for index, record in enumerate(read_records(root_uri, path)):
            if not isinstance(record, dict) or not isinstance(record.get("name"), str):
                raise DataError(f"{path} record {index}: {str(record)[:200]}; a record needs the `name` of its image")
            # Only the last part: no record can point outside the data set.
            name = PurePosixPath(record["name"]).name
            _add(annotations.setdefault(name, Annotation()), record, defect_type_of, f"{path} record {index}")
    return annotations


def _add(
    annotation: Annotation, record: dict[str, Any], defect_type_of: Callable[[dict[str, Any]], str], where: str
) -> None:
    try:
        x0, y0, x1, y1 = map(float, record["bbox"])
        box = TrueBox((x0, y0, x1, y1), defect_type_of(record))
        size = (int(record["image_height"]), int(record["image_width"])) if "image_height" in record else None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        annotation.error = f"{where}: {str(record)[:200]}; bbox = [x0, y0, x1, y1] and a known defect type are needed"
        annotation.error += f" ({type(error).__name__}: {error})"
        return
    if size is not None and annotation.size not in (None, size):
        annotation.error = f"{where}: claims the size {size}, an earlier record {annotation.size} (H, W)"
    annotation.size = size or annotation.size
    annotation.num_repeated += box in annotation.boxes
    annotation.boxes[box] = None
