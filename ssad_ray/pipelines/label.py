"""A calibrated artifact over a set of images -> a sealed label version.

Ray Data writes the verdicts as Parquet parts and notes in a checkpoint which images are done. A killed run, called
again, goes on where it was: no image is lost and none comes twice. While a version is unfinished, the list of its
images and its checkpoint lie in `ROOT/<version>.unfinished/<digest of all that the labels depend on>/`.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import ray
from pyarrow import fs
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig

from ssad_ray.config import NO_PART_OF_RESULTS, DataConfig, RunConfig
from ssad_ray.core.records import Sample, Verdict
from ssad_ray.core.storage import join, list_names, resolve
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.datasets.splits import digest
from ssad_ray.errors import ArtifactError, DataError
from ssad_ray.labels.rows import SCHEMA, WORKER_SCHEMA, from_row, to_row
from ssad_ray.labels.versions import LabelVersion, Lineage, commit_labels, is_sealed, read_lineage, write_labels
from ssad_ray.methods.artifact import load_artifact
from ssad_ray.methods.judging import judge
from ssad_ray.pipelines.run import Announce, Run, timed
from ssad_ray.pipelines.session import session
from ssad_ray.pipelines.stream import (
    Job,
    Progress,
    Row,
    fit_pool,
    input_table,
    ordered_context,
    refuse_too_many,
    runs_here,
    stream,
    through_actors,
)

_PROGRESS_INTERVAL_S = 1.0


@timed("label with")
def label_online(run: Run, labeller: str, announce: Announce) -> str:
    """Label the online stage of a run with an artifact of its, unless that is done; return the version's name.

    Raises:
        ArtifactError: There is a version of its name that another artifact made, that was edited, or of which a part is
            gone.
    """
    root_uri = str(run.labels_path)
    if not is_sealed(root_uri, labeller):
        progress = announce(f"{labeller}: label")
        label(run.model_path(labeller), run.rows("online"), root_uri, labeller, run.config, progress=progress)
        return labeller
    version = read_lineage(root_uri, labeller)
    maker, parent = version.lineage.model, version.lineage.parent
    if maker != labeller or parent is not None:
        origin = maker if parent is None else f"{maker} and edited, from {parent}"
        raise ArtifactError(
            f"{run.labels_path / labeller} was not made by {labeller}, but by {origin}; move it elsewhere, and label "
            "again"
        )
    gone = version.parts.keys() - set(list_names(join(root_uri, labeller)))
    if gone:
        raise ArtifactError(
            f"{run.labels_path / labeller} lacks {min(gone)}; put it back, or remove the folder and label again"
        )
    return labeller


def label(
    artifact_path: Path,
    rows: Sequence[ManifestRow],
    root_uri: str,
    version: str,
    config: RunConfig,
    *,
    parent: str | None = None,
    progress: Progress | None = None,
) -> LabelVersion:
    """Judge images and seal the verdicts as a label version.

    Called again after it was killed, it goes on where it was. Where `runs_here` says so it runs without
    Ray, and starts over.

    Args:
        artifact_path: A calibrated artifact; every node sees it at this path.
        rows: The images, each once. Those the manifest quarantined become verdicts with its `error`.
        root_uri: Where label versions are; every node sees it there.
        version: Name of the new version.
        config: The limits of the data, and the resources.
        parent: The version that this one replaces.
        progress: Called with (images done, images in all), perhaps from another thread.

    Raises:
        ArtifactError: No calibrated artifact, or the version exists already.
        DataError: More than `data.max_error_fraction` of the images failed that the manifest has nothing against.
        UnavailableError: No Ray, or no room for one actor.
    """
    artifact = load_artifact(artifact_path)
    if artifact.calibration is None:
        raise ArtifactError(f"{artifact_path} is not calibrated, so it cannot judge; name the artifact that `fit` made")
    if is_sealed(root_uri, version):
        raise ArtifactError(f"{root_uri} has a label version {version!r} already; use another name")
    config_digest = sha256(config.model_dump_json(exclude=NO_PART_OF_RESULTS).encode()).hexdigest()
    images_digest = digest(row.sample_id for row in rows)
    lineage = Lineage(artifact.name, artifact.calibration, config_digest, images_digest, parent)
    make_worker = partial(Judge, artifact_path, config.data, datetime.now(UTC))
    if runs_here(rows, config.resources):
        results = stream(rows, make_worker, WORKER_SCHEMA, config, progress, refuse)
        return write_labels(root_uri, version, map(from_row, results), lineage)
    job = Job(make_worker, SCHEMA, refuse, config.data.max_image_bytes, config.resources.threads_per_worker)
    filesystem, parts_path = resolve(join(root_uri, version))
    work_path = f"{parts_path}.unfinished"
    _write_parts(job, rows, config, filesystem, parts_path, f"{work_path}/{_key(lineage)}", progress)
    label_version = commit_labels(root_uri, version, lineage)
    filesystem.delete_dir(work_path)
    return label_version


class Judge:
    """The worker: from the bytes of a file to the row of a verdict."""

    def __init__(self, artifact_path: Path, limits: DataConfig, time: datetime) -> None:
        self.artifact, self.limits, self.time = load_artifact(artifact_path), limits, time

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return the row of an image's verdict."""
        verdict, _ = judge(self.artifact, sample, data, self.limits, self.time)
        return to_row(verdict)


def refuse(sample: Sample, error: str) -> Row:
    """Return the row of an image that could not be judged."""
    return to_row(Verdict(sample.sample_id, sample.uri, 0, 0, None, None, None, error=error))


def _key(lineage: Lineage) -> str:
    return sha256(repr(lineage).encode()).hexdigest()[:16]


def _write_parts(
    job: Job,
    rows: Sequence[ManifestRow],
    config: RunConfig,
    filesystem: fs.FileSystem,
    parts_path: str,
    work_path: str,
    progress: Progress | None,
) -> None:
    images_path, checkpoint_path = f"{work_path}/images.parquet", f"{work_path}/done"
    filesystem.create_dir(work_path, recursive=True)
    pq.write_table(input_table(rows), images_path, filesystem=filesystem)
    checkpoint = _Checkpoint(filesystem, checkpoint_path)
    checkpoint.remove_unfinished(parts_path)
    with session(config.resources):
        pool = fit_pool(config.resources)
        context = ordered_context()
        context.checkpoint_config = CheckpointConfig(
            id_column="sample_id",
            checkpoint_path=checkpoint_path,
            override_filesystem=filesystem,
            delete_checkpoint_on_success=False,
        )
        # The actor that skips what is done may not take more than the CPU that is left free for it.
        context.checkpoint_config.checkpoint_actor_pool_max_size = 1
        context.checkpoint_config.checkpoint_actor_memory_bytes = 64 << 20
        with DataContext.current(context):
            # Only of a data set that is read from files does Ray Data skip what is done.
            images = ray.data.read_parquet(images_path, filesystem=filesystem)
            images = images.repartition(target_num_rows_per_block=pool.images_per_task(len(rows)))
        with _told(checkpoint.num_done, len(rows), progress), through_actors(images, job, pool) as results:
            results.write_parquet(parts_path, filesystem=filesystem, compression="zstd")
    checkpoint.remove_unfinished(parts_path)
    _refuse_failures(checkpoint, rows, parts_path, config.data.max_error_fraction)
    if checkpoint.num_done() != len(rows):
        raise ArtifactError(
            f"{parts_path}: {checkpoint.num_done()} verdicts for {len(rows)} images; another run wrote here too, or "
            f"images are named twice. Remove {parts_path} and {work_path}, and label again"
        )


def _refuse_failures(
    checkpoint: "_Checkpoint", rows: Sequence[ManifestRow], parts_path: str, max_fraction: float
) -> None:
    """Raise where too many images failed; called again, those of the parts that hold such ones are tried again."""
    places = {row.sample_id: place for place, row in enumerate(rows) if row.error is None}
    errors = checkpoint.errors(parts_path)
    failures = [(places[row["sample_id"]], stem, row) for stem, row in errors if row["sample_id"] in places]
    try:
        if failures:
            refuse_too_many(len(failures), len(places), max_fraction, min(failures)[2])
    except DataError:
        for stem in {stem for _, stem, _ in failures}:
            checkpoint.forget(stem)
        raise


class _Checkpoint:
    """What Ray Data notes of each part when it is whole: a file of the same stem with the ids of the part's rows."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self.filesystem, self.path = filesystem, path
        self._num_rows: dict[str, int] = {}

    def num_done(self) -> int:
        """Return the number of images in whole parts."""
        return sum(self._whole_parts().values())

    def remove_unfinished(self, parts_path: str) -> None:
        """Remove parts that are not whole, or are of a run with another model or other images."""
        whole = tuple(self._whole_parts())
        for info in self._files(parts_path):
            if not info.base_name.startswith(whole):
                self.filesystem.delete_file(info.path)

    def errors(self, parts_path: str) -> Iterator[tuple[str, Row]]:
        """Yield the stem of the part, `sample_id` and `error` of every image that could not be judged."""
        whole = self._whole_parts()
        for info in self._files(parts_path):
            stem = next(stem for stem in whole if info.base_name.startswith(stem))
            table = pq.read_table(info.path, filesystem=self.filesystem, columns=["sample_id", "error"])
            yield from ((stem, row) for row in table.to_pylist() if row["error"] is not None)

    def forget(self, stem: str) -> None:
        """Take back that a part is whole; `remove_unfinished` then removes it."""
        self.filesystem.delete_file(f"{self.path}/{stem}.parquet")
        del self._num_rows[stem]

    def _whole_parts(self) -> dict[str, int]:
        """Return the rows of each whole part, by stem."""
        for info in self._files(self.path):
            stem = info.base_name.removesuffix(".parquet")
            if stem not in self._num_rows and not stem.endswith(".pending"):
                self._num_rows[stem] = pq.read_metadata(info.path, filesystem=self.filesystem).num_rows
        return self._num_rows

    def _files(self, path: str) -> list[fs.FileInfo]:
        infos = self.filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return [info for info in infos if info.extension == "parquet"]


@contextmanager
def _told(num_done: Callable[[], int], total: int, progress: Progress | None) -> Iterator[None]:
    """Tell the progress now and then while the body runs; it waits for Ray in the meantime."""
    if progress is None:
        yield
        return
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_PROGRESS_INTERVAL_S):
            with suppress(OSError):
                progress(num_done(), total)

    progress(num_done(), total)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        progress(num_done(), total)
