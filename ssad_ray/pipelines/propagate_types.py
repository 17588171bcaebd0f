"""A label version and the defect types of a few of its regions -> a version in which the others are named, too.

RUN/labels/<version>/     the regions as they were, with `defect_type` where it is known
RUN/types/<version>.csv   `region_id`, `defect_type`, `share` and `named_by`, the least certain first
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ssad_ray.config import DataConfig
from ssad_ray.core.images import decode
from ssad_ray.core.records import NOBODY, DefectRegion, Sample, Verdict
from ssad_ray.core.region_features import describe
from ssad_ray.core.spreading import UNNAMED, spread
from ssad_ray.errors import ArtifactError, ConfigError, DataError
from ssad_ray.labels.named import read_named
from ssad_ray.labels.versions import is_sealed, read_labels, read_lineage, write_labels
from ssad_ray.methods.showing import with_template
from ssad_ray.pipelines.run import Announce, Run, write_text
from ssad_ray.pipelines.stream import Row, stream

_SCHEMA = pa.schema([("region_ids", pa.list_(pa.string())), ("features", pa.binary())])


@dataclass(frozen=True, slots=True)
class Named:
    """What a region is called.

    Attributes:
        defect_type: None where it is not certain enough.
        share: Of the most likely type among all types, in [0, 1]; 1 where a person named it.
        named_by: A person, or `auto`.
    """

    defect_type: str | None
    share: float
    named_by: str


def propagate_types(
    run: Run, version: str, named_uri: str, new: str, person: str, least_share: float, announce: Announce
) -> Counter[str | None]:
    """Spread the types of named regions to those that look alike, and write both as a new label version.

    What a person named in an earlier version counts as named, too. A region that a person made or named is changed by
    names that a person gives, and by nothing else.

    Args:
        run: Whose online stage was labelled.
        version: The label version.
        named_uri: What the person calls some of its regions; see `read_named`.
        new: Name of the new version.
        person: Who named them.
        least_share: A type with a smaller share stays unknown.
        announce: Where progress is shown.

    Returns:
        How many regions have each type; None counts those of unknown type.

    Raises:
        ArtifactError: No such label version, or the new one exists already.
        DataError: A named region is not in the version, or none of their images can be read.
        ConfigError: The person is called `auto`, or not at all.
    """
    if person == NOBODY or not person.strip():
        raise ConfigError(f"a person cannot be called {person!r}; {NOBODY!r} stands for nobody: give another --person")
    root_uri = str(run.labels_path)
    lineage = replace(read_lineage(root_uri, version).lineage, parent=version)
    if is_sealed(root_uri, new):
        raise ArtifactError(f"{root_uri} has a label version {new!r} already; give the new one another --name")
    verdicts = list(read_labels(root_uri, version))
    given = _given(verdicts, read_named(named_uri), person, named_uri, version)
    named = _spread(_features(run, verdicts, announce, version), given, least_share)
    time = datetime.now(UTC).isoformat()
    write_text(run.types_path(new), _table(named))
    write_labels(root_uri, new, (_renamed(each, named, time) for each in verdicts), lineage)
    return Counter(each.defect_type for each in named.values())


class RegionDescriber:
    """The worker: describes the regions of an image."""

    def __init__(self, root_uri: str, version: str, limits: DataConfig, with_templates: bool) -> None:
        self.regions = {each.sample_id: each.regions for each in read_labels(root_uri, version) if each.regions}
        self.limits, self.with_templates = limits, with_templates

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return the ids and the features of the regions."""
        image = decode(data, self.limits.max_image_px)
        shown = with_template(image, sample, self.limits) if self.with_templates else image
        regions = self.regions[sample.sample_id]
        features = np.stack([describe(shown, region.mask) for region in regions])
        return {"region_ids": [region.region_id for region in regions], "features": features.tobytes()}


def _given(
    verdicts: Sequence[Verdict], named: Mapping[str, str], person: str, named_uri: str, version: str
) -> dict[str, Named | None]:
    """Return every region's name as a person gave it, now or before; None for those that no person has touched."""
    regions = {region.region_id: region for verdict in verdicts for region in verdict.regions}
    unknown = [region_id for region_id in named if region_id not in regions]
    if unknown:
        raise DataError(
            f"{named_uri}: {len(unknown)} of the named regions are not in the label version {version}, the first is "
            f"{unknown[0]!r}; its regions are called like {next(iter(regions), 'nothing: it has none')!r}"
        )
    before = {
        region_id: Named(region.defect_type, float(region.defect_type is not None), region.provenance.actor)
        for region_id, region in regions.items()
        if region.provenance.actor != NOBODY
    }
    now = {region_id: Named(defect_type, 1.0, person) for region_id, defect_type in named.items()}
    return dict.fromkeys(regions) | before | now


def _features(
    run: Run, verdicts: Sequence[Verdict], announce: Announce, version: str
) -> dict[str, NDArray[np.float32]]:
    """Return the features of all regions of images that can be read."""
    with_regions = {verdict.sample_id for verdict in verdicts if verdict.regions}
    rows = [row for row in run.rows("online") if row.sample_id in with_regions]
    # Features are of one kind: with templates only if every image has one.
    with_templates = all(row.template_uri is not None for row in rows)
    worker = partial(RegionDescriber, str(run.labels_path), version, run.config.data, with_templates)
    features: dict[str, NDArray[np.float32]] = {}
    for row in stream(rows, worker, _SCHEMA, run.config, announce("describe regions")):
        if row["error"] is None:
            of_image = np.frombuffer(row["features"], np.float32).reshape(len(row["region_ids"]), -1)
            features.update(zip(row["region_ids"], of_image, strict=True))
    return features


def _spread(
    features: Mapping[str, NDArray[np.float32]], given: Mapping[str, Named | None], least_share: float
) -> dict[str, Named]:
    """Name the regions that no person named; without features a region stays unknown."""
    types = sorted({each.defect_type for region_id in features if (each := given[region_id]) and each.defect_type})
    if not types:
        raise DataError("none of the named regions is of an image that can be read; name others")
    known = [given[region_id] for region_id in features]
    names = np.array([types.index(each.defect_type) if each and each.defect_type else UNNAMED for each in known])
    found, shares = spread(np.stack(list(features.values())), names)
    guessed = {
        region_id: Named(types[name] if name != UNNAMED and share >= least_share else None, float(share), NOBODY)
        for region_id, name, share in zip(features, found.tolist(), shares.tolist(), strict=True)
    }
    return {region_id: each or guessed.get(region_id, Named(None, 0.0, NOBODY)) for region_id, each in given.items()}


def _renamed(verdict: Verdict, named: Mapping[str, Named], time: str) -> Verdict:
    return replace(verdict, regions=tuple(_named(region, named[region.region_id], time) for region in verdict.regions))


def _named(region: DefectRegion, named: Named, time: str) -> DefectRegion:
    if (region.defect_type, region.provenance.actor) == (named.defect_type, named.named_by):
        return region
    provenance = replace(region.provenance, parent=region.region_id, actor=named.named_by, time=time)
    return replace(region, defect_type=named.defect_type, provenance=provenance)


def _table(named: Mapping[str, Named]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["region_id", "defect_type", "share", "named_by"])
    for region_id, each in sorted(named.items(), key=lambda item: (item[1].share, item[1].named_by != NOBODY)):
        writer.writerow([region_id, each.defect_type or "", f"{each.share:.3f}", each.named_by])
    return text.getvalue()
