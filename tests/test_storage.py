import os
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from ssad_ray.core import storage
from ssad_ray.errors import DataError, UnavailableError


@pytest.fixture(params=["local", "file://", "memory://"])
def root(request, tmp_path):
    """The same behaviour is asked of every kind of address."""
    yield {
        "local": str(tmp_path / "瓶子 a"),
        "file://": f"file://{urllib.parse.quote(str(tmp_path / '瓶子 a'))}",
        "memory://": f"memory://{tmp_path.name}",
    }[request.param]
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("name", ["a.png", "深 处/ü#1%20?.png", "a/b/c.txt"])
def test_what_is_written_is_read_listed_and_exists(root, name):
    root = storage.absolute(root)
    storage.write_bytes(storage.join(root, name), b"12345")
    assert storage.read_bytes(storage.join(root, name), 5) == b"12345"
    assert storage.list_files(root) == {name: 5}
    assert storage.exists(storage.join(root, name))
    assert not storage.exists(storage.join(root, "other"))


def test_a_listing_is_recursive_and_sorted(root):
    root = storage.absolute(root)
    for name in ("b/2.png", "a.png", "b/1.png"):
        storage.write_bytes(storage.join(root, name), b"x")
    assert list(storage.list_files(root)) == ["a.png", "b/1.png", "b/2.png"]


def test_a_file_over_the_limit_is_refused_with_both_sizes(root):
    uri = storage.join(storage.absolute(root), "large")
    storage.write_bytes(uri, bytes(100))
    with pytest.raises(DataError, match="100 bytes; at most 99"):
        storage.read_bytes(uri, 99)


def test_a_missing_file_and_a_missing_folder_are_data_errors(root):
    with pytest.raises(DataError, match=r"no such file.*check the path"):
        storage.read_bytes(storage.join(root, "none"), 10)
    with pytest.raises(DataError, match="a folder is needed"):
        storage.list_files(storage.join(root, "none"))


def test_a_folder_is_no_file_and_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="Directory"):
        storage.read_bytes(str(tmp_path), 10)
    with pytest.raises(DataError, match="this is a file"):
        storage.list_files(str(tmp_path / "file"))


def test_a_compressed_file_comes_as_it_is(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b not really")
    assert storage.read_bytes(str(tmp_path / "a.gz"), 100) == b"\x1f\x8b not really"


def test_a_file_that_grows_while_it_is_read_is_not_returned_cut(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"123")
    announced = storage.resolve(str(path))[0].get_file_info(str(path))
    path.write_bytes(b"12345")
    store = SimpleNamespace(get_file_info=lambda _: announced, open_input_stream=LocalFileSystem().open_input_stream)
    monkeypatch.setattr(storage, "resolve", lambda uri: (store, uri))
    with pytest.raises(DataError, match="more than the 3 bytes it had a moment ago"):
        storage.read_bytes(str(path), 99)


def test_an_unknown_scheme_names_the_accepted_ones():
    with pytest.raises(DataError, match=r"nope://host: cannot be opened.*s3://"):
        storage.read_bytes("nope://host/a.png", 10)


def test_a_local_write_leaves_nothing_but_the_file(tmp_path):
    storage.write_bytes(str(tmp_path / "a"), b"1")
    storage.write_bytes(str(tmp_path / "a"), b"22")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"22"}


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_bytes(b"x")
    for place in ("file/a", "full", "\udcff", "\0"):
        with pytest.raises(UnavailableError, match="cannot be written"):
            storage.write_bytes(str(tmp_path / place), b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_address_that_cannot_be_asked_for_is_unavailable(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for ask, address in ((storage.exists, "\udcff"), (storage.list_files, "\0"), (storage.list_names, "file")):
        with pytest.raises(UnavailableError, match="cannot be reached"):
            ask(str(tmp_path / address))
    assert storage.list_names(str(tmp_path)) == ["file"]
    assert storage.list_names(str(tmp_path / "nothing")) == []


def test_linked_folders_are_listed_and_loops_end(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"12")
    (tmp_path / "data" / "sub" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dangling.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "itself.png").symlink_to(tmp_path / "data" / "itself.png")
    listed = storage.list_files(str(tmp_path / "data"))
    assert listed == {"again/b.png": 2, "dangling.png": 0, "itself.png": 0, "linked/b.png": 2}
    with pytest.raises(DataError, match="no such file"):
        storage.read_bytes(str(tmp_path / "data" / "dangling.png"), 10)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, who may run this, may read every folder
    with pytest.raises(DataError, match=r"sub: cannot be listed \(Permission denied\)"):
        storage.list_files(str(tmp_path))


def test_a_name_that_is_not_utf8_is_listed_escaped_and_does_not_break_the_listing(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "good.png").write_bytes(b"1")
    listed = storage.list_files(str(tmp_path))
    assert set(listed) == {"\\udcff.png", "good.png"}
    with pytest.raises(DataError, match="no such file"):
        storage.read_bytes(storage.join(str(tmp_path), "\\udcff.png"), 10)


def test_relative_addresses_become_absolute_and_absolute_ones_stand_for_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("data") == str(tmp_path / "data")
    assert storage.absolute("s3://bucket/a b") == "s3://bucket/a b"
    assert storage.join("s3://bucket/x", "/abs.png") == "/abs.png"
    assert storage.join("/x", "s3://bucket/a.png") == "s3://bucket/a.png"


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_file_addresses_are_percent_decoded(name):
    if name not in (".", ".."):
        assert storage.absolute(f"file:///d/{urllib.parse.quote(name)}") == f"/d/{name}"
