"""Where writing what was learnt fails, and why."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ssad_ray.errors import UnavailableError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system says while something is written into an error of this package."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UnavailableError(f"{path}: cannot be written ({error}); check the permissions and the space") from error
