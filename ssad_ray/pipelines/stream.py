"""Images through a pool of Ray actors: addresses go in, one row per image comes out.

An actor reads, decodes, tiles and scores by itself: no file crosses the object store, only what a worker returns, and
memory does not grow with the number of images. Nothing that one image does ends the run: an exception becomes a row
with `error`, and so does an image that kills the process of its actor.
"""

import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from ssad_ray.config import ResourcesConfig, RunConfig
from ssad_ray.core.records import Sample
from ssad_ray.core.storage import read_bytes
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import DataError, InspectionError, UnavailableError
from ssad_ray.methods.devices import make_repeatable
from ssad_ray.pipelines.member import worker_environment
from ssad_ray.pipelines.session import SPARE_CPUS, our_errors, room_for, session

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

Worker = Callable[[Sample, bytes], Mapping[str, Any]]
"""Turns an image's encoded file into a row; whatever it raises becomes the row's `error`."""

Row = dict[str, Any]

Refuse = Callable[[Sample, str], Row]
"""Makes the row of an image that was not worked on, from its sample and the reason."""

_MAX_ATTEMPTS = 2
"""Processes that may die over one image. More than one, because a process is also killed when memory is short."""

_FEW_IMAGES = 128
"""Up to so many images are done before a pool of actors has started."""

_MAX_BYTES_HELD = 8 << 20
"""Rows are handed over together, because that costs a millisecond, unless they hold large bytes."""

_MAX_IMAGES_PER_TASK = 16
_TASKS_PER_ACTOR = 8


def null_row(sample: Sample, error: str) -> Row:
    """Return the row of an image that was not worked on; what is missing here is None in the table."""
    return {"sample_id": sample.sample_id, "error": error}


def stream(
    rows: Sequence[ManifestRow],
    make_worker: Callable[[], Worker],
    schema: pa.Schema,
    config: RunConfig,
    progress: Progress | None = None,
    refuse: Refuse = null_row,
) -> Iterator[Row]:
    """Yield one row per image in the order of the manifest; the number of workers changes nothing in them.

    Runs in the session of the caller, or in a private one; where `runs_here` says so, the same code runs in this
    process, without Ray.

    Args:
        rows: The images. Those the manifest quarantined are not opened; their `error` is passed on.
        make_worker: Called once per actor. It is pickled: let it name large things by their path.
        schema: What a worker returns.
        config: The limits of the data, and the resources.
        progress: Called in this thread, first with no image done.
        refuse: Makes the row of an image that was not worked on.

    Returns:
        `sample_id`, the columns of the schema, and `error`: None, or why there is nothing in the columns.

    Raises:
        DataError: Of the images that the manifest has nothing against, more than `data.max_error_fraction` failed.
        UnavailableError: Ray does not start, or the cluster has too few CPUs or no GPU.
        InspectionError: What `make_worker` raised.
    """
    schema = pa.schema([pa.field("sample_id", pa.string()), *schema, pa.field("error", pa.string())])
    job = Job(make_worker, schema, refuse, config.data.max_image_bytes, config.resources.threads_per_worker)
    results = _in_this_process(job, rows) if runs_here(rows, config.resources) else _in_actors(job, rows, config)
    if progress is not None:
        progress(0, len(rows))
    num_failed, num_sound = 0, sum(image.error is None for image in rows)
    for done, (image, row) in enumerate(zip(rows, results, strict=True), start=1):
        if row["error"] is not None and image.error is None:
            num_failed += 1
            refuse_too_many(num_failed, num_sound, config.data.max_error_fraction, row)
        if progress is not None:
            progress(done, len(rows))
        yield row


def refuse_too_many(num_failed: int, num_images: int, max_fraction: float, failure: Row) -> None:
    """Raise where so many images failed that it is not they who are broken."""
    if num_failed > max_fraction * num_images:
        raise DataError(
            f"{num_failed} of {num_images} images failed that were sound when catalogued, one of them "
            f"{failure['sample_id']}: {failure['error']}. See to the cause and run the same command again; "
            f"data.max_error_fraction, now {max_fraction:g}, says how many may fail"
        )


def runs_here(rows: Sequence[ManifestRow], resources: ResourcesConfig) -> bool:
    """Whether images are worked on in this process: when that is asked for, or when nothing is and they are few."""
    if resources.score_workers is None:
        return len(rows) <= _FEW_IMAGES
    return resources.score_workers == 0


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with every image.

    Attributes:
        make_worker: Called once per actor.
        schema: All columns of the resulting rows.
        refuse: Makes the row of an image that was not worked on.
        max_image_bytes: Larger files are refused.
        num_threads: CPU threads, and logical CPUs, of each actor.
    """

    make_worker: Callable[[], Worker]
    schema: pa.Schema
    refuse: Refuse
    max_image_bytes: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors that a cluster has room for: how many, the GPUs of each, and its runtime environment."""

    size: int
    num_gpus: int
    runtime_env: Mapping[str, Any]

    def images_per_task(self, num_images: int) -> int:
        """Return a number large enough to hide a task's cost, small enough to share work and to show progress."""
        return max(1, min(_MAX_IMAGES_PER_TASK, num_images // (self.size * _TASKS_PER_ACTOR)))


def fit_pool(resources: ResourcesConfig) -> Pool:
    """Fit the asked number of actors into the cluster, less the CPUs that Ray Data's own tasks need.

    Raises:
        UnavailableError: Not even one actor fits.
    """
    total, threads = ray.cluster_resources(), resources.threads_per_worker  # type: ignore[no-untyped-call]
    num_cpus = int(total.get("CPU", 0))
    num_gpus = 0 if resources.use_gpu is False else int(total.get("GPU", 0))
    if resources.use_gpu and not num_gpus:
        raise UnavailableError("resources.use_gpu is true and the cluster has no GPU; set it to null or false")
    room = min(room_for(threads), (num_cpus - SPARE_CPUS) // threads)
    if room < 1:
        raise UnavailableError(
            f"the cluster has {num_cpus} logical CPUs; scoring needs {threads} on one node "
            f"(resources.threads_per_worker) and {SPARE_CPUS} for Ray Data's own tasks. Start nodes with more, for "
            "example ray start --num-cpus=4"
        )
    room = min(room, num_gpus) if num_gpus else room
    environment = worker_environment(num_gpus > 0 or "GPU" not in total)
    return Pool(min(resources.score_workers or room, room), 1 if num_gpus else 0, environment)


def input_table(rows: Sequence[ManifestRow]) -> pa.Table:
    """Return what an actor is told about images: the fields of `Sample` and why it is quarantined; no ground truth."""
    names = ("sample_id", "uri", "category", "group", "template_uri", "error")
    records = [{**asdict(row.sample), "error": row.error} for row in rows]
    return pa.Table.from_pylist(records, schema=pa.schema([(name, pa.string()) for name in names]))


def ordered_context() -> DataContext:
    """Return a copy of the current context, under which a data set keeps its order."""
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    return context


@contextmanager
def through_actors(images: Dataset, job: Job, pool: Pool) -> Iterator[Dataset]:
    """Give the body the rows that a job makes of images (the columns of `input_table`), to be consumed there."""
    run_id = uuid.uuid4().hex
    try:
        with our_errors():
            yield images.map_batches(
                _Actor,
                fn_constructor_args=(job, run_id),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=pool.size, max_tasks_in_flight_per_actor=2),
                num_cpus=job.num_threads,
                num_gpus=pool.num_gpus,
                runtime_env=dict(pool.runtime_env),
                udf_modifying_row_count=False,
            )
    finally:
        for marker in Path(tempfile.gettempdir()).glob(_marker(run_id, "*").name):
            marker.unlink(missing_ok=True)


def _in_this_process(job: Job, rows: Sequence[ManifestRow]) -> Iterator[Row]:
    actor = _Actor(job, run_id=None)
    for row in rows:
        for table in actor(input_table([row])):
            yield from table.to_pylist()


def _in_actors(job: Job, rows: Sequence[ManifestRow], config: RunConfig) -> Iterator[Row]:
    if not rows:
        return
    with session(config.resources):
        pool = fit_pool(config.resources)
        step = pool.images_per_task(len(rows))
        with DataContext.current(ordered_context()):
            images = ray.data.from_arrow([input_table(rows[at : at + step]) for at in range(0, len(rows), step)])
        with through_actors(images, job, pool) as results:
            tables: Iterable[pa.Table] = results.iter_batches(batch_size=None, batch_format="pyarrow")
            for table in tables:
                for at in range(len(table)):  # one by one, because a row may hold an anomaly map
                    yield from table.slice(at, 1).to_pylist()


class _Actor:
    """Holds a worker, and keeps every failure of an image inside the row of that image."""

    def __init__(self, job: Job, run_id: str | None) -> None:
        make_repeatable(job.num_threads)
        self.job, self.run_id = job, run_id
        self.failure: Exception | None = None
        actor_id = ray.get_runtime_context().get_actor_id() if run_id else "of this process"
        try:
            with self._attempt(f"the worker of actor {actor_id}"):
                self.worker = job.make_worker()
        except Exception as failure:
            self.failure = failure  # raised here, Ray would make a text of it, and first try again

    def __call__(self, images: pa.Table) -> Iterator[pa.Table]:
        if self.failure is not None:
            raise self.failure
        rows: list[Row] = []
        num_bytes = 0
        for image in images.to_pylist():
            rows.append(self._row(**image))
            num_bytes += sum(len(value) for value in rows[-1].values() if isinstance(value, bytes))
            if num_bytes > _MAX_BYTES_HELD:
                yield pa.Table.from_pylist(rows, schema=self.job.schema)
                rows, num_bytes = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=self.job.schema)

    def _row(self, error: str | None, **fields: Any) -> Row:
        sample = Sample(**fields)
        if error is not None:
            return self.job.refuse(sample, error)
        try:
            with self._attempt(sample.sample_id):
                data = read_bytes(sample.uri, self.job.max_image_bytes)
                if not sample.is_of(data):
                    raise DataError(f"{sample.uri} changed since it was catalogued; put it back, or begin a new run")
                return {"sample_id": sample.sample_id, **self.worker(sample, data)}
        except InspectionError as refusal:
            return self.job.refuse(sample, refusal.detail)
        except Exception as failure:
            return self.job.refuse(sample, f"{type(failure).__name__}: {failure}")

    def _attempt(self, name: str) -> AbstractContextManager[None]:
        return _attempt(self.run_id, name) if self.run_id else nullcontext()


@contextmanager
def _attempt(run_id: str, name: str) -> Iterator[None]:
    """Leave a mark on the node's disk that only a dying process does not take away.

    Ray starts a dead actor anew and gives it the same images, again and again. The mark carries the run, so that
    what a killed run left behind counts for nothing.
    """
    marker = _marker(run_id, uuid.uuid5(uuid.NAMESPACE_OID, name).hex)
    with marker.open("ab") as file:
        if file.tell() >= _MAX_ATTEMPTS:
            raise DataError(f"{name} killed {_MAX_ATTEMPTS} processes in a row; leave it out, or give more memory")
        file.write(b".")
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def _marker(run_id: str, name: str) -> Path:
    return Path(tempfile.gettempdir(), f"ssad-{run_id}-{name}")
