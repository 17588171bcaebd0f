"""Tianchi fabric contest (guangdong1, 2019), both rounds, train and test folders.

Round 1: `defect_Images/*.jpg`, `normal_Images/*.jpg`, `Annotations/anno_train.json`; plain cloth, no template.
Round 2: `{defect,normal}/<stem>/{<stem>.jpg,template_<P>.jpg}` over several parts whose annotation files add up; the
test folders lack `defect`. All images with the pattern P = `<stem>` up to its first `_` share one template, so they are
one group. Defect types keep their Chinese names.
"""

import re
from collections.abc import Iterator
from typing import Any

from ssad_ray.core.records import GOOD
from ssad_ray.datasets.entries import Entry, Listing, image_defect_type, is_image, without_suffix
from ssad_ray.datasets.tianchi_records import Annotation, read_annotations

NAME = "tianchi_fabric"

_ANNOTATION = re.compile(r"(?:.+/)?anno_train[^/]*\.json")
_OWN_FOLDER = re.compile(r"(?P<folder>(?:.+/)?(?P<stem>[^/]+))/(?P=stem)\.[^./]+")
_TEMPLATE = "template_"


def matches(listing: Listing) -> bool:
    """Return whether there is an `anno_train*.json`, or an image in a folder of its name next to a template."""
    if any(_ANNOTATION.fullmatch(path) for path in listing):
        return True
    template_folders = {path.rpartition("/")[0] for path in listing if _is_template(path)}
    found = (_OWN_FOLDER.fullmatch(path) for path in listing)
    return any(match["folder"] in template_folders for match in found if match)


def read(root_uri: str, listing: Listing) -> Iterator[Entry]:
    """Yield every image that is no template, and every image that is annotated but not there."""
    files = [path for path in listing if _ANNOTATION.fullmatch(path)]
    annotations = read_annotations(root_uri, files, _defect_type)
    absent = dict(annotations)
    templates: dict[str, list[str]] = {}
    for path in filter(_is_template, listing):
        templates.setdefault(path.rpartition("/")[0], []).append(path)
    for path in listing:
        if is_image(path) and not _is_template(path):
            absent.pop(path.rpartition("/")[2], None)
            beside = templates.get(path.rpartition("/")[0], [])
            has_pattern = bool(beside or (templates and _OWN_FOLDER.fullmatch(path)))
            yield _entry(path, annotations, beside, has_pattern)
    for name in absent:
        yield Entry(path=name, category="fabric")


def _entry(path: str, annotations: dict[str, Annotation], templates: list[str], has_pattern: bool) -> Entry:
    """Join what the folder names and the annotation say of one image."""
    folder, _, name = path.rpartition("/")
    pattern = without_suffix(name).partition("_")[0] if has_pattern else None
    wanted = f"{_TEMPLATE}{pattern}"
    template = next((path for path in templates if without_suffix(path).rpartition("/")[2] == wanted), None)
    annotation = annotations.get(name, Annotation())
    boxes = tuple(annotation.boxes)
    folders = folder.lower().split("/")
    is_normal = any(part.startswith("normal") for part in folders)
    is_defective = any(part.startswith("defect") for part in folders)
    error, warning = annotation.error, annotation.warning
    if is_normal and boxes:
        error = f"in a folder of normal images, but annotated with {len(boxes)} boxes"
    elif is_defective and not boxes and not error:
        warning = "in a folder of defective images, but without annotation"
    if has_pattern and template is None:
        warning = "; ".join(filter(None, (warning, f"no template {wanted}")))
    return Entry(
        path=path,
        category="fabric",
        source_stage="train" if is_normal or is_defective else None,
        defect_type=GOOD if is_normal else image_defect_type(boxes),
        boxes=boxes,
        size=annotation.size,
        template=template,
        group=f"pattern {pattern}" if pattern else None,
        error=error,
        warning=warning,
    )


def _is_template(path: str) -> bool:
    return path.rpartition("/")[2].startswith(_TEMPLATE) and is_image(path)


def _defect_type(record: dict[str, Any]) -> str:
    return str(record["defect_name"])
