"""The one place that starts Ray or joins a cluster, and that digs our own errors out of Ray's."""

import fcntl
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._private.utils import get_num_cpus
from ray.data import DataContext
from ray.exceptions import RayError, RayTaskError

from ssad_ray.config import ResourcesConfig
from ssad_ray.errors import ConfigError, InspectionError, UnavailableError

SPARE_CPUS = 2
"""Logical CPUs that actor pools leave free. Ray Data waits forever, without a word, when a pool takes all CPUs and
a read task or the filter of a resumed run finds none."""

_FOLDER_PREFIX = "ssad-"
_LOCK = "driver.lock"


@contextmanager
def session(resources: ResourcesConfig, address: str | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """Give the body a Ray to run on.

    Where this process has Ray already, it is used as it is and left alone.

    Args:
        resources: How many workers will be asked for, and the size of the object store.
        address: None starts a private cluster on this machine that nobody else can reach and that ends with the
            body. `auto` or `host:port` joins a running cluster, which is left as it was.
        dashboard: Whether a private cluster gets Ray's dashboard on 127.0.0.1; Ray Train asks it for states.

    Raises:
        ConfigError: The address is one of Ray Client.
        UnavailableError: Ray does not start, or no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    # What runs in this process is kept off the GPUs here; workers are told by their runtime environment.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if resources.use_gpu is False else {}
    ray_here = _private(resources, dashboard) if address is None else _joined(address)
    with _variables(hidden), _quiet(), ray_here, _ended_by_sigterm():
        yield


def room_for(threads: int) -> int:
    """Return how many workers of so many threads the nodes of the running Ray have CPUs for, all other work aside."""
    nodes = (node for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    return sum(int(node["Resources"].get("CPU", 0)) // threads for node in nodes)


def unwrap(error: BaseException) -> InspectionError | None:
    """Return a copy of our own error that Ray wrapped once or several times, if there is one."""
    pending, seen = [error], set()
    while pending:
        current = pending.pop()
        # An error that Ray copied into a class of its own has our type but not our message.
        if isinstance(current, InspectionError) and not isinstance(current, RayError):
            return type(current)(current.detail)  # without the advice that Ray Data appends to `args`
        seen.add(id(current))
        failures = getattr(current, "worker_failures", {}).values()
        inner = (current.__context__, current.__cause__, getattr(current, "cause", None), *failures)
        pending += [each for each in inner if isinstance(each, BaseException) and id(each) not in seen]
    return None


@contextmanager
def our_errors() -> Iterator[None]:
    """Raise the package's own error in place of Ray's that holds it, and one of ours where Ray itself failed."""
    try:
        yield
    except Exception as error:
        found = unwrap(error)
        # A RayTaskError is an exception of our code that nobody foresaw: its traceback is needed.
        if found is None and isinstance(error, RayError) and not isinstance(error, RayTaskError):
            found = UnavailableError(
                f"Ray failed while it worked: {error}\nIt may have been stopped, or have run out of memory. What is "
                "finished is kept: give the same command again to go on"
            )
        if found is None:
            raise
        raise found from error


@contextmanager
def _private(resources: ResourcesConfig, dashboard: bool) -> Iterator[None]:
    asked = max(resources.train_workers, resources.score_workers or 0, 1) * resources.threads_per_worker
    num_cpus = max(int(get_num_cpus(override_docker_cpu_warning=True)), asked, 2) + SPARE_CPUS
    with _own_folder() as temp_dir, _environment():
        try:
            try:
                with _stderr_to_null():
                    ray.init(
                        address="local",  # None would attach to whatever RAY_ADDRESS or an older session names
                        num_cpus=num_cpus,
                        object_store_memory=resources.object_store_bytes,
                        include_dashboard=dashboard,
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                        _temp_dir=temp_dir,
                    )
            except Exception as error:  # Ray raises plain ones, too
                raise UnavailableError(
                    f"Ray did not start on this machine: {error}\nIt needs about 1 GiB of memory, and space in "
                    f"{temp_dir} and in /dev/shm for resources.object_store_bytes={resources.object_store_bytes}"
                ) from error
            yield
        finally:
            ray.shutdown()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C; Ray's native part would abort, with addresses for an explanation."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _own_folder() -> Iterator[str]:
    """Give a private cluster a folder, because Ray never cleans its own, and remove those of drivers that were killed.

    A driver holds a lock in its folder for as long as it lives.
    """
    root = Path("/tmp")  # noqa: S108  # short, because socket paths below it may have 107 characters
    for lock_path in root.glob(f"{_FOLDER_PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock_path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_path.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=root))
    try:
        unlocked_path = folder / "starting"  # the lock gets its name when it is held, or another driver could take it
        with unlocked_path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked_path.rename(folder / _LOCK)
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address} is an address of Ray Client, through which Ray Data does not run; run the command on a node of "
            "the cluster, with --address auto or host:port"
        )
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (RuntimeError, ValueError, OSError, RayError) as error:
        raise UnavailableError(
            f"no Ray cluster answers at {address!r}: {error}\nAccepted are auto and host:port of a running cluster, "
            "on one of its nodes, with the same Ray and Python; where it asks for a token set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment() -> Iterator[None]:
    """Have every process of a private cluster listen on 127.0.0.1 only, ask for a token there, and keep its memory."""
    # Ray reads two of the variables when it is first imported, hence also the constants of this process.
    variables = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",  # at `error` every pool of actors prints a harmless warning
        # Workers that give the memory of every image back to the system spend a fifth of their time on getting it anew.
        "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    }
    constants = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    # With a token at hand Ray writes none into the home folder. It keeps the first one for the life of the process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        with _variables(variables):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = constants


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the body."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _stderr_to_null() -> Iterator[None]:
    """Hide the line in which Ray's native part tells its log level; what fails is raised, not printed."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's logs and progress bars off the terminal; have it raise a worker's error as it was."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    logger.setLevel(logging.CRITICAL)  # what it logs as an error it also raises
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
