"""A label version and a mask per image -> a version without the regions that lie outside of them.

Thresholds stay as they are: they promise a rate of false alarms for whole images, and leaving regions out can only
lower it.
"""

from dataclasses import replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from ssad_ray.core.images import decode_mask
from ssad_ray.core.masks import decode_mask as decode_region
from ssad_ray.core.masks import mask_box
from ssad_ray.core.records import DefectRegion, Verdict, path_of
from ssad_ray.core.storage import join, list_files, read_bytes
from ssad_ray.errors import DataError
from ssad_ray.labels.versions import is_sealed, read_labels, read_lineage, write_labels
from ssad_ray.pipelines.propagate_masks import UNFINISHED, mask_name
from ssad_ray.pipelines.run import Run

_HOW = "make them with `ssad propagate-masks`"


def keep_inside(run: Run, version: str, masks_uri: str) -> tuple[str, int]:
    """Write the label version of what lies inside the masks, unless it is there; a region inside by one pixel stays.

    An anomalous image of which no region is left is not anomalous any more; its score stays. Of an image without a mask
    nothing is left out.

    Args:
        run: Whose labels.
        version: The label version to begin with.
        masks_uri: Folder of masks, named as `propagate_masks` names them.

    Returns:
        The version's name, `<version>-roi-<digest of the masks>`, and of how many images with regions there is no mask.

    Raises:
        DataError: The folder is unfinished, there is no mask for any image with regions, or one of another size than
            its image.
    """
    root_uri, max_bytes = str(run.labels_path), run.config.data.max_image_bytes
    present = masks_in(masks_uri)
    names = [_name(verdict) for verdict in read_labels(root_uri, version) if verdict.regions]
    found = [name for name in names if name in present]
    if names and not found:
        raise DataError(
            f"{masks_uri}: has no mask for any of the {len(names)} images with regions, such as {names[0]}; {_HOW}"
        )
    digest = sha256()
    for name in found:
        digest.update(name.encode() + sha256(read_bytes(join(masks_uri, name), max_bytes)).digest())
    new = f"{version}-roi-{digest.hexdigest()[:8]}"
    if not is_sealed(root_uri, new):
        lineage = replace(read_lineage(root_uri, version).lineage, parent=version)
        verdicts = read_labels(root_uri, version)
        kept = (_inside(each, masks_uri, max_bytes) if _name(each) in present else each for each in verdicts)
        write_labels(root_uri, new, kept, lineage)
    return new, len(names) - len(found)


def masks_in(masks_uri: str) -> set[str]:
    """Return the paths of the masks in a folder.

    Raises:
        DataError: The folder is unfinished, or has none.
    """
    files = list_files(masks_uri)
    if any(name.startswith(UNFINISHED) for name in files):
        raise DataError(f"{masks_uri}: is unfinished; give the `ssad propagate-masks` command that began it again")
    masks = {name for name in files if name.endswith(".png")}
    if not masks:
        raise DataError(f"{masks_uri}: has no mask, a file that ends in .png; {_HOW}")
    return masks


def _inside(verdict: Verdict, masks_uri: str, max_bytes: int) -> Verdict:
    if not verdict.regions:
        return verdict
    uri = join(masks_uri, _name(verdict))
    try:
        inside = decode_mask(read_bytes(uri, max_bytes), verdict.height, verdict.width)
    except DataError as error:
        raise DataError(f"{uri}: {error.detail}") from error
    kept = tuple(region for region in verdict.regions if _reaches(region, inside))
    return replace(verdict, regions=kept, is_anomalous=verdict.is_anomalous and bool(kept))


def _reaches(region: DefectRegion, inside: NDArray[np.bool_]) -> bool:
    x0, y0, x1, y1 = box = mask_box(region.mask)
    return bool((decode_region(region.mask, box) & inside[y0:y1, x0:x1]).any())


def _name(verdict: Verdict) -> str:
    return mask_name(path_of(verdict.sample_id))
