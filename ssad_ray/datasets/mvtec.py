"""MVTec AD layout: `<category>/train/good`, `<category>/test/<defect type>`, `<category>/ground_truth/<defect type>`.

The root may be one category, a folder of categories, or anything above. A mask is `NNN_mask.*` or `NNN.*`.
"""

import re
from collections.abc import Iterator

from ssad_ray.core.records import GOOD
from ssad_ray.datasets.entries import Entry, Listing, by_stem, folder_name, is_image, without_suffix

NAME = "mvtec"

_IMAGE = re.compile(r"(?P<prefix>(?:.+?/)?)(?P<stage>train|test)/(?P<defect>[^/]+)/(?P<rest>.+)")
_MARK = re.compile(r"(?:.+/)?(?:train|test)/good/[^/]+")


def matches(listing: Listing) -> bool:
    """Return whether there is a `train/good` or `test/good` folder with images."""
    return any(_MARK.fullmatch(path) and is_image(path) for path in listing)


def read(root_uri: str, listing: Listing) -> Iterator[Entry]:
    """Yield every image of the `train` and `test` folders."""
    return read_staged(root_uri, listing, good=GOOD)


def read_staged(root_uri: str, listing: Listing, good: str) -> Iterator[Entry]:
    """Yield every image of `train/<type>` and `test/<type>`, where the type `good` means anomaly-free."""
    masks = by_stem(path for path in listing if "ground_truth/" in path)
    masked_prefixes = {path.partition("ground_truth/")[0] for path in masks}
    for path in listing:
        match = _IMAGE.fullmatch(path)
        if match is None or not is_image(path) or "ground_truth/" in path:
            continue
        prefix, defect = match["prefix"], match["defect"]
        is_train = match["stage"] == "train"
        stem = f"{prefix}ground_truth/{defect}/{without_suffix(match['rest'])}"
        # Numbers restart in each folder, so a mask of test/good/000 is not one of train/good/000.
        mask = None if is_train else masks.get(f"{stem}_mask") or masks.get(stem)
        is_bare = mask is None and defect != good and prefix in masked_prefixes
        yield Entry(
            path=path,
            category=folder_name(prefix or root_uri),
            source_stage="train" if is_train else "test",
            defect_type=GOOD if defect == good else defect,
            mask=mask,
            warning=f"no mask found as {stem}_mask.*" if is_bare else None,
        )
