"""The readers, in order of recognition: the particular layouts before the general ones."""

from ssad_ray.datasets import btad, deeppcb, folder, magnetic_tile, mvtec, tianchi_fabric, tianchi_tile
from ssad_ray.datasets.entries import IMAGE_SUFFIXES, Listing, Reader
from ssad_ray.errors import DataError

READERS: tuple[Reader, ...] = (deeppcb, magnetic_tile, tianchi_fabric, tianchi_tile, btad, mvtec, folder)


def recognise(root_uri: str, listing: Listing) -> Reader:
    """Return the first reader whose layout the listing is of.

    Raises:
        DataError: There is no image at all.
    """
    for reader in READERS:
        if reader.matches(listing):
            return reader
    suffixes = " ".join(IMAGE_SUFFIXES)
    raise DataError(f"{root_uri}: no image among {len(listing)} files; accepted suffixes are {suffixes}")
