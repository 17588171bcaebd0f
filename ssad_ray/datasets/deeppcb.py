"""DeepPCB layout: `group<G>/<G>/<id>_test.jpg`, `<id>_temp.jpg` and boxes in `group<G>/<G>_not/<id>.txt`.

A line of boxes is `x1 y1 x2 y2 type`; spaces, as in the files, or commas, as in their description. The optional lists
`trainval.txt` and `test.txt` name images without `_test`. There is no defect-free test image; good are the templates,
each its own template.
"""

import re
from collections.abc import Iterator

from ssad_ray.core.records import GOOD, TrueBox
from ssad_ray.datasets.entries import Entry, Listing, SourceStage, image_defect_type, read_text
from ssad_ray.errors import DataError

NAME = "deeppcb"

_TYPES = {"1": "open", "2": "short", "3": "mousebite", "4": "spur", "5": "copper", "6": "pin-hole"}
_IMAGE = re.compile(r"(?P<stem>(?P<folder>(?:.+/)?group[^/]+/[^/]+)/(?P<id>[^/]+))_test\.jpg")
_LISTS: dict[str, SourceStage] = {"trainval.txt": "train", "test.txt": "test"}


def matches(listing: Listing) -> bool:
    """Return whether some `<id>_test.jpg` of a `group…` folder has its `<id>_temp.jpg`."""
    found = (_IMAGE.fullmatch(path) for path in listing)
    return any(f"{match['stem']}_temp.jpg" in listing for match in found if match)


def read(root_uri: str, listing: Listing) -> Iterator[Entry]:
    """Yield every `_test` image, its template, and every image of the lists that is not there."""
    stages = _listed_stages(root_uri, listing)
    for path in listing:
        match = _IMAGE.fullmatch(path)
        if match is None:
            continue
        template = f"{match['stem']}_temp.jpg"
        boxes, error, warning = _read_boxes(root_uri, f"{match['folder']}_not/{match['id']}.txt", listing)
        yield Entry(
            path=path,
            category="pcb",
            source_stage=stages.pop(match["stem"], None),
            defect_type=image_defect_type(boxes),
            boxes=boxes,
            template=template if template in listing else None,
            error=error,
            warning=warning if template in listing else "; ".join(filter(None, (warning, f"no template {template}"))),
        )
        if template in listing:
            yield Entry(template, "pcb", source_stage="train", defect_type=GOOD, template=template)
    for stem, stage in stages.items():
        yield Entry(path=f"{stem}_test.jpg", category="pcb", source_stage=stage)


def _read_boxes(root_uri: str, path: str, listing: Listing) -> tuple[tuple[TrueBox, ...], str | None, str | None]:
    """Return the boxes of an annotation file, why it cannot be used, and what else is odd about it."""
    if path not in listing:
        return (), None, f"no annotation {path}"
    boxes: list[TrueBox] = []
    try:
        lines = [line for line in read_text(root_uri, path).splitlines() if line.strip()]
    except DataError as error:
        return (), error.detail, None
    for number, line in enumerate(lines, 1):
        match re.split(r"[\s,]+", line.strip()):
            case [x0, y0, x1, y1, kind] if kind in _TYPES:
                try:
                    boxes.append(TrueBox((float(x0), float(y0), float(x1), float(y1)), _TYPES[kind]))
                    continue
                except ValueError:
                    pass
        return (), f"{path} line {number}: {line!r}; needed are x1 y1 x2 y2 and a type from 1 to 6", None
    distinct = tuple(dict.fromkeys(boxes))
    repeated = len(boxes) - len(distinct)
    if not lines:
        return (), None, f"the annotation {path} is empty"
    return distinct, None, f"{repeated} repeated boxes dropped" if repeated else None


def _listed_stages(root_uri: str, listing: Listing) -> dict[str, SourceStage]:
    """Return the stage of every image that a list names, by path without `_test.jpg`."""
    stages: dict[str, SourceStage] = {}
    for path in listing:
        folder, separator, name = path.rpartition("/")
        if name in _LISTS:
            images = (line.split()[0] for line in read_text(root_uri, path).splitlines() if line.strip())
            stages |= {folder + separator + image.removesuffix(".jpg"): _LISTS[name] for image in images}
    return stages
