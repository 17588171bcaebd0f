"""BeanTech (BTAD) layout: `<product>/train/ok`, `<product>/test/{ok,ko}`, `<product>/ground_truth/ko/<stem>.*`.

Images and masks are .bmp or .png, differently by product, so masks are looked up by stem.
"""

import re
from collections.abc import Iterator

from ssad_ray.datasets.entries import Entry, Listing, is_image
from ssad_ray.datasets.mvtec import read_staged

NAME = "btad"

_MARK = re.compile(r"(?:.+/)?(?:train/ok|test/ok|test/ko)/[^/]+")


def matches(listing: Listing) -> bool:
    """Return whether there is a `train/ok`, `test/ok` or `test/ko` folder with images."""
    return any(_MARK.fullmatch(path) and is_image(path) for path in listing)


def read(root_uri: str, listing: Listing) -> Iterator[Entry]:
    """Yield every image of the `train` and `test` folders."""
    return read_staged(root_uri, listing, good="ok")
