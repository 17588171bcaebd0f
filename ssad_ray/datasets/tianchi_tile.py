"""Tianchi ceramic-tile contest (2021), both rounds, train and test folders.

Round 1: `train_imgs/<tile>_t<time>_CAM<k>.jpg`, `train_annos.json`, `testA_imgs/`. Round 2 adds
`train_template_imgs/<stem>_t.jpg` and comes in parts whose annotation files add up. The photos (and crops) of one tile
are one group. An image without record in a folder that has annotations is anomaly-free. As most images to train on have
one, templates are good images too, each its own template.
"""

import re
from collections.abc import Iterator

from ssad_ray.core.records import GOOD
from ssad_ray.datasets.entries import Entry, Listing, by_stem, image_defect_type, is_image, without_suffix
from ssad_ray.datasets.tianchi_records import Annotation, read_annotations

NAME = "tianchi_tile"

_TYPES = {
    1: "edge",
    2: "corner",
    3: "white dot",
    4: "light block",
    5: "dark dot",
    6: "aperture",
    7: "marker pen",
    8: "scratch",
}
_ANNOTATION = re.compile(r"(?P<part>(?:.+/)?)train_annos[^/]*\.json")
_IMAGE = re.compile(r"(?P<part>(?:.+/)?)(?P<folder>train|test(?!\w*template)\w*)_imgs/(?P<name>[^/]+)")
_TEMPLATE = re.compile(r"(?:.+/)?\w*template_imgs/[^/]+")
_TILE = re.compile(r"(?P<tile>.+?)_t\d+_CAM\d+")


def matches(listing: Listing) -> bool:
    """Return whether there is a `train_annos*.json`, or `train_imgs`/`test*_imgs` named like photos of tiles."""
    if any(_ANNOTATION.fullmatch(path) for path in listing):
        return True
    found = (_IMAGE.fullmatch(path) for path in listing)
    return any(_TILE.match(match["name"]) for match in found if match)


def read(root_uri: str, listing: Listing) -> Iterator[Entry]:
    """Yield every photo, every template, and every photo that is annotated but not there."""
    files = [path for path in listing if _ANNOTATION.fullmatch(path)]
    annotations = read_annotations(root_uri, files, lambda record: _TYPES[int(record["category"])])
    absent = dict(annotations)
    annotated_parts = {match["part"] for path in files if (match := _ANNOTATION.fullmatch(path))}
    templates = {
        stem.rpartition("/")[2]: path for stem, path in by_stem(p for p in listing if _TEMPLATE.fullmatch(p)).items()
    }
    for path in listing:
        match = _IMAGE.fullmatch(path)
        if match and is_image(path):
            absent.pop(match["name"], None)
            is_train = match["folder"] == "train"
            annotation = annotations.get(match["name"], Annotation())
            is_labelled = is_train and match["part"] in annotated_parts
            yield _entry(path, is_train, is_labelled, annotation, templates)
    for path in templates.values():
        yield Entry(path, "tile", source_stage="train", defect_type=GOOD, template=path)
    for name in absent:
        yield Entry(path=name, category="tile")


def _entry(path: str, is_train: bool, is_labelled: bool, annotation: Annotation, templates: dict[str, str]) -> Entry:
    stem = without_suffix(path).rpartition("/")[2]
    tile = _TILE.match(stem)
    boxes = tuple(annotation.boxes)
    template = templates.get(f"{stem}_t")
    missing_template = f"no template {stem}_t" if is_train and templates and template is None else None
    return Entry(
        path=path,
        category="tile",
        source_stage="train" if is_train else "test",
        defect_type=image_defect_type(boxes) or (GOOD if is_labelled else None),
        boxes=boxes,
        size=annotation.size,
        template=template,
        group=f"tile {tile['tile']}" if tile else None,
        error=annotation.error,
        warning="; ".join(filter(None, (annotation.warning, missing_template))) or None,
    )
