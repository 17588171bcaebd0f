"""A plain folder of images; good images alone are enough.

- Images right in the folder, without a sub-folder of good ones: all good.
- `good`, `ok`, `normal` or `train` as a first-level sub-folder: good. Then every other sub-folder names a defect type,
  except `unlabelled`, `online`, `test` and the like; images right in the folder are unlabelled.
- Other sub-folders, and none of the good ones: unlabelled.

Masks may stand under `ground_truth` or `masks`, at the image's path, with or without `_mask` before the suffix.
"""

from collections.abc import Iterator

from ssad_ray.core.records import GOOD
from ssad_ray.datasets.entries import Entry, Listing, by_stem, folder_name, is_image, without_suffix

NAME = "folder"

_GOOD_FOLDERS = {"good", "ok", "normal", "train"}
_UNLABELLED_FOLDERS = {"unlabelled", "unlabeled", "unknown", "online", "test"}
_MASK_FOLDERS = ("ground_truth", "masks")


def matches(listing: Listing) -> bool:
    """Return whether there is any image."""
    return any(map(is_image, listing))


def read(root_uri: str, listing: Listing) -> Iterator[Entry]:
    """Yield every image that is no mask."""
    masks = by_stem(path for path in listing if path.partition("/")[0] in _MASK_FOLDERS)
    images = [path for path in listing if is_image(path) and path.partition("/")[0] not in _MASK_FOLDERS]
    has_good = any(path.partition("/")[0].lower() in _GOOD_FOLDERS and "/" in path for path in images)
    for path in images:
        stem = without_suffix(path)
        candidates = (f"{folder}/{stem}{ending}" for folder in _MASK_FOLDERS for ending in ("_mask", ""))
        yield Entry(
            path=path,
            category=folder_name(root_uri),
            defect_type=_defect_type(path, has_good),
            mask=next((masks[candidate] for candidate in candidates if candidate in masks), None),
        )


def _defect_type(path: str, has_good: bool) -> str | None:
    """Return what the first-level folder says about an image."""
    folder, separator, _ = path.partition("/")
    if not separator:
        return None if has_good else GOOD
    if folder.lower() in _GOOD_FOLDERS:
        return GOOD
    return folder if has_good and folder.lower() not in _UNLABELLED_FOLDERS else None
