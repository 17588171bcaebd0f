"""The one place that opens addresses: local paths, `file://`, and whatever store pyarrow or fsspec knows.

An address is a plain path or `scheme://authority/key`. Of a store's address everything after the authority is taken
literally, so keys may hold spaces, `#`, `%` and any script; only `file://` addresses are percent-decoded.
"""

import functools
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import fsspec
from pyarrow import ArrowException, fs

from ssad_ray.errors import ConfigError, DataError, UnavailableError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def absolute(uri: str | os.PathLike[str]) -> str:
    """Return an address that means the same from every folder: an absolute path, or a `scheme://` address as it is."""
    text = os.fspath(uri)
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "file":
        return text
    return str(Path("/" + unquote(rest.partition("/")[2]) if separator else text).absolute())


def join(root_uri: str, relative: str) -> str:
    """Return the address of a path inside a root; a path that is absolute or has a scheme stands for itself."""
    if "://" in relative or relative.startswith("/"):
        return relative
    return f"{root_uri.rstrip('/')}/{relative}"


def is_name(name: str) -> bool:
    """Whether a name can be part of a path and leads nowhere else."""
    return _NAME.fullmatch(name) is not None


def checked_name(name: str, what: str) -> str:
    """Return a name if it is one.

    Raises:
        ConfigError: It is none; `what` says of what it should be the name.
    """
    if not is_name(name):
        raise ConfigError(
            f"{name!r} cannot name {what}; accepted are 1 to 100 letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit"
        )
    return name


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of an address and the path inside it.

    Raises:
        DataError: Neither pyarrow nor fsspec knows the scheme, or the scheme's package is not installed.
        UnavailableError: The store does not answer.
    """
    text = absolute(uri)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return fs.LocalFileSystem(), text
    authority, _, key = rest.partition("/")
    filesystem, root = _open_store(f"{scheme}://{authority}")
    return filesystem, f"{root.rstrip('/')}/{key}"


def exists(uri: str) -> bool:
    """Return whether the address names a file or a folder."""
    filesystem, path = resolve(uri)
    with _answering(uri):
        return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def read_bytes(uri: str, max_bytes: int) -> bytes:
    """Return a file's content; a larger file is refused before it is read.

    Raises:
        DataError: No such file, a folder, a file of more than `max_bytes`, one that grows while it is read, or one
            that cannot be read.
    """
    filesystem, path = resolve(uri)
    try:
        info = filesystem.get_file_info(path)
        if info.type != fs.FileType.File:
            raise DataError(f"{uri}: no such file ({info.type.name}); check the path and that this machine can see it")
        announced = max_bytes if info.size is None else info.size  # a store may not know the size
        if announced <= max_bytes:
            with filesystem.open_input_stream(path, compression=None) as stream:
                data: bytes = stream.read(announced + 1)
            if len(data) <= announced:
                return data
    except (OSError, UnicodeError, ArrowException) as error:
        raise DataError(f"{uri}: cannot be read ({error}); check the address and the permissions") from error
    if announced < max_bytes:
        raise DataError(f"{uri}: more than the {announced} bytes it had a moment ago; wait until it is written")
    raise DataError(f"{uri}: {info.size or 'too many'} bytes; at most {max_bytes} are accepted here")


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file and the folders above it; a local file appears whole or not at all.

    Raises:
        UnavailableError: The place cannot be written.
    """
    filesystem, path = resolve(uri)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    target = f"{path}.{secrets.token_hex(4)}.partial" if is_local else path
    try:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(target, compression=None) as stream:
            stream.write(data)
        if is_local:
            filesystem.move(target, path)
    except (OSError, UnicodeError, ArrowException) as error:
        if is_local:
            with suppress(OSError, ValueError):
                Path(target).unlink()
        raise UnavailableError(f"{uri}: cannot be written ({error}); check the permissions and the space") from error


def list_names(uri: str) -> list[str]:
    """Return the names of the files and folders that stand in a folder, sorted; none where there is no such folder.

    Raises:
        UnavailableError: It is a file, or the store does not answer.
    """
    filesystem, path = resolve(uri)
    with _answering(uri):
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos)


def list_files(uri: str) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by relative path, sorted.

    Raises:
        DataError: The folder does not exist, is a file, or holds a folder that may not be read.
        UnavailableError: The store does not answer.
    """
    filesystem, path = resolve(uri)
    with _answering(uri):
        found = filesystem.get_file_info(path).type
    if found != fs.FileType.Directory:
        present = "nothing is there" if found == fs.FileType.NotFound else f"this is a {found.name.lower()}"
        raise DataError(f"{uri}: a folder is needed here, but {present}; check the path")
    if isinstance(filesystem, fs.LocalFileSystem):
        # A name that is not UTF-8 is shown escaped, and reading it then says that there is no such file.
        sizes = ((os.path.relpath(file, path), size) for file, size in _walk(path, frozenset()))
        return dict(sorted((name.encode("utf-8", "backslashreplace").decode(), size) for name, size in sizes))
    prefix = path.strip("/") + "/"
    with _answering(uri):
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    files = ((info.path.lstrip("/").removeprefix(prefix), info.size or 0) for info in infos if info.is_file)
    return dict(sorted(files))


def _walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Yield path and size of every file below a folder; links are followed, but not to a folder above them."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_symlink() and not Path(entry.path).exists():
                yield entry.path, 0  # leads nowhere, or to itself, which reading it says
            elif entry.is_dir():
                yield from _walk(entry.path, above | {real})
            elif entry.is_file():
                yield entry.path, entry.stat().st_size
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check the permissions") from error


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Turn what a store says when it is asked what is there into an error of this package."""
    try:
        yield
    except (OSError, UnicodeError, ArrowException) as error:
        raise UnavailableError(
            f"{uri}: cannot be reached ({error}); check the address and, of a store, network and credentials"
        ) from error


@functools.cache
def _open_store(root: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of `scheme://authority` and the path of the authority inside it."""
    try:
        with _answering(root):
            with suppress(ArrowException, ValueError):  # not a scheme of pyarrow's
                return cast(tuple[fs.FileSystem, str], fs.FileSystem.from_uri(root))
            handler, path = fsspec.core.url_to_fs(root)
    except (ValueError, TypeError, ImportError) as error:
        raise DataError(
            f"{root}: cannot be opened ({error}); accepted are local paths, file://, s3://, gs://, hdfs:// and the "
            "schemes of fsspec whose package is installed"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(handler)), path
