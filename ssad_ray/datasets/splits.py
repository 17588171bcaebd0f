"""Which images train, which arrive in the stream, which judge: by category, seeded, and without leaks.

Protocols:

- `routine1`: the papers' few images. Train 10 good; online 4 good and 8 defective; test 12 other defective; the rest
  is unused. Defective images are spread evenly over families of defect types (`broken` of `broken_large`), then over
  the types of a family: MVTec bottle comes out as the papers' 4 normal, 4 broken, 4 contamination.
- `routine1_full_test`: the same train and online images; test is every other image that the data set ships for test
  (of a data set without stages: every other image), so that metrics which need good images exist.
- `full`: train is every good image shipped for train (of a data set without stages: half of the good ones); all
  others go half to online, half to test, each defect type by itself.
- `routine2`: the papers' large stages, whose sizes they do not give: as `full`, judged by boxes, with the detector
  that fits the data set (`Run.detector` in `ssad_ray/pipelines/run.py`).

A template among the images is good, and trains under every protocol: whoever judges images of its pattern is given it.

A data set has stages if it ships images of known type for test.

Images without known defect type cannot judge: `full` sends them online, routine 1 leaves them out; good images with
nothing but such company all train. A group never has images in two of train, online and test. Order
comes from hashes of (seed, group), so a further image moves at most the images next to a boundary.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from ssad_ray.core import storage
from ssad_ray.core.records import GOOD, Stage
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import ConfigError, DataError

Protocol = Literal["routine1", "routine1_full_test", "full", "routine2"]
Stages = dict[str, Stage]

_TRAIN_GOOD = 10
_ONLINE_GOOD = 4
_ONLINE_DEFECTIVE = 8
_TEST_DEFECTIVE = 12
_LEAST_TRAIN_GOOD = 4
"""Fewer cannot be cross-fitted."""

_MAX_SPLIT_BYTES = 1 << 30


def split(rows: Iterable[ManifestRow], protocol: Protocol, seed: int) -> Stages:
    """Return the stage of every row by sample_id; broken rows are unused.

    Raises:
        ConfigError: No such protocol.
        DataError: A category has too few good or defective images for the protocol.
    """
    if protocol not in get_args(Protocol):
        raise ConfigError(f"no protocol {protocol!r}; known are {', '.join(get_args(Protocol))}")
    rows = list(rows)
    stages: Stages = {row.sample_id: "unused" for row in rows}
    categories: defaultdict[str, list[ManifestRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (_order(seed, row.group), _order(seed, row.sample_id))):
        if row.error is None:
            categories[row.category].append(row)
    if not categories:
        raise DataError(f"none of the {len(rows)} images can be used; `ssad catalog` says why")
    for usable in categories.values():
        if protocol in ("full", "routine2"):
            stages |= _halves(usable)
        else:
            stages |= _routine1(usable, tests_all=protocol == "routine1_full_test")
    return stages


def save_split(stages: Stages, data_uri: str, protocol: Protocol, seed: int, uri: str) -> None:
    """Write a split as JSON, with where its images come from and the digest of the samples it was made for."""
    origin = {"data": data_uri, "protocol": protocol, "seed": seed}
    content = {**origin, "digest": digest(stages), "stages": dict(sorted(stages.items()))}
    storage.write_bytes(uri, json.dumps(content, ensure_ascii=False, indent=1).encode())


def load_split(uri: str, rows: Iterable[ManifestRow]) -> Stages:
    """Read a split and check that it was made for exactly these rows.

    Raises:
        DataError: No such file, not a split, or one of other samples.
    """
    try:
        content = json.loads(storage.read_bytes(uri, _MAX_SPLIT_BYTES))
        stages: Stages = content["stages"]
        stored = content["digest"]
        is_sound = set(stages.values()) <= set(get_args(Stage)) and digest(stages) == stored
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{uri}: not a split ({type(error).__name__}: {error}); make it anew from its seed") from error
    if not is_sound:
        raise DataError(f"{uri}: was changed since it was written, its digest does not fit; make it anew from its seed")
    ids = {row.sample_id for row in rows}
    if ids != stages.keys():
        raise DataError(
            f"{uri}: is of {len(stages)} samples, {len(ids & stages.keys())} of them among the {len(ids)} that came; "
            "use the data it was made for, or make a new split"
        )
    return stages


def digest(sample_ids: Iterable[str]) -> str:
    """Return a hexadecimal digest of a set of samples."""
    return hashlib.sha256("\n".join(sorted(sample_ids)).encode()).hexdigest()


def _routine1(rows: Sequence[ManifestRow], tests_all: bool) -> Stages:
    """Draw the papers' numbers of images from one category, in the order of `rows`."""
    has_stages = _has_stages(rows)
    good = [row for row in rows if row.defect_type == GOOD]
    judged = [row for row in good if not row.is_template]
    defective = [row for row in rows if row.defect_type not in (GOOD, None)]
    draws: tuple[tuple[Stage, list[ManifestRow], int], ...] = (
        ("train", [row for row in good if row.source_stage == "train" or not has_stages], _TRAIN_GOOD),
        ("online", sorted(judged, key=lambda row: row.source_stage == "train"), _ONLINE_GOOD),
        ("online", defective, _ONLINE_DEFECTIVE),
        ("test", defective, _TEST_DEFECTIVE),
    )
    owners: dict[str, Stage] = {}
    stages: Stages = {}
    for stage, pool, count in draws:
        drawn = _draw([row for row in pool if row.sample_id not in stages], stage, count, owners)
        if len(drawn) < count:
            kind = "defective" if pool is defective else "good"
            raise DataError(
                f"category {rows[0].category}: routine 1 needs {count} {kind} images for {stage}; {len(pool)} came, "
                f"{len(drawn)} of them free. In all it needs {_TRAIN_GOOD} + {_ONLINE_GOOD} good and "
                f"{_ONLINE_DEFECTIVE} + {_TEST_DEFECTIVE} defective images; add some or use the protocol full"
            )
        stages |= dict.fromkeys(drawn, stage)
    if tests_all:
        rest = (row for row in [*judged, *defective] if row.source_stage == "test" or not has_stages)
        stages |= {row.sample_id: "test" for row in rest if owners.get(row.group, "test") == "test"}
    return stages


def _draw(pool: Sequence[ManifestRow], stage: Stage, count: int, owners: dict[str, Stage]) -> list[str]:
    """Return up to `count` samples, evenly over families of defect types and the types in them; claim their groups."""
    queues: defaultdict[str, list[ManifestRow]] = defaultdict(list)
    for row in reversed(pool):
        queues[row.defect_type or ""].append(row)
    drawn: list[str] = []
    num_drawn: Counter[str] = Counter()
    while queues and len(drawn) < count:
        defect_type = min(queues, key=lambda name: (num_drawn[f"{_family(name)}_*"], num_drawn[name], name))
        row = queues[defect_type].pop()
        if not queues[defect_type]:
            del queues[defect_type]
        if owners.setdefault(row.group, stage) == stage:
            drawn.append(row.sample_id)
            num_drawn.update((defect_type, f"{_family(defect_type)}_*"))
    return drawn


def _family(defect_type: str) -> str:
    return defect_type.partition("_")[0]


def _halves(rows: Sequence[ManifestRow]) -> Stages:
    """Divide one category: good images to train, each other defect type in halves; groups in the order of `rows`."""
    category, has_stages = rows[0].category, _has_stages(rows)
    templates = {row.sample_id for row in rows if row.is_template}
    rows = [row for row in rows if not row.is_template]
    groups: defaultdict[str, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    trainable = {r.sample_id for r in rows if r.defect_type == GOOD and (r.source_stage == "train" or not has_stages)}
    least = _LEAST_TRAIN_GOOD - len(templates)
    if len(trainable) < least:
        raise DataError(
            f"category {category}: {len(trainable)} good images to train on came, at least {least} are needed; "
            "add good images"
        )
    has_defective = any(row.defect_type not in (GOOD, None) for row in rows)
    has_unlabelled = any(row.defect_type is None for row in rows)
    takes_all = has_stages or (has_unlabelled and not has_defective)
    target = len(trainable) if takes_all else max(least, len(trainable) // 2)
    stages: Stages = {}
    rest: list[list[ManifestRow]] = []
    # Groups with other images come last and only in need: what is not trained on in them is lost to other stages.
    for group in sorted(groups.values(), key=lambda group: not _ids(group) <= trainable):
        usable = _ids(group) & trainable
        if usable and len(stages) < (target if usable == _ids(group) else least):
            stages |= dict.fromkeys(usable, "train")
        else:
            rest.append(group)
    trained: Stages = dict.fromkeys(templates, "train")
    return trained | stages | _online_and_test(rest)


def _online_and_test(groups: Iterable[Sequence[ManifestRow]]) -> Stages:
    """Send half of the images of each defect type online, the others to test; groups stay whole."""
    strata: defaultdict[str, list[Sequence[ManifestRow]]] = defaultdict(list)
    stages: Stages = {}
    for group in groups:
        types = [row.defect_type for row in group]
        if None in types:
            stages |= dict.fromkeys(_ids(group), "online")
        else:
            strata[max(map(str, types), key=lambda name: (types.count(name), name))].append(group)
    lead = 0
    for _, members in sorted(strata.items()):
        num_images = sum(map(len, members))
        # Of an odd number, the stage that has had fewer so far gets the larger half.
        quota = (num_images + (1 if lead <= 0 else -1) * (num_images % 2)) / 2
        num_online = 0
        for group in members:
            is_online = num_online + len(group) / 2 <= quota
            num_online += len(group) * is_online
            stages |= dict.fromkeys(_ids(group), "online" if is_online else "test")
        lead += 2 * num_online - num_images
    return stages


def _has_stages(rows: Iterable[ManifestRow]) -> bool:
    """Whether a data set is divided already: of one that ships nothing to judge by, part of the good images judge."""
    return any(row.source_stage == "test" and row.defect_type is not None for row in rows)


def _ids(rows: Iterable[ManifestRow]) -> set[str]:
    return {row.sample_id for row in rows}


def _order(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
