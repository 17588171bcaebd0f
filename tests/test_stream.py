import hashlib
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from ray import cloudpickle

from ssad_ray.config import RunConfig
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import ArtifactError, DataError
from ssad_ray.pipelines import stream as stream_module
from ssad_ray.pipelines.session import session
from ssad_ray.pipelines.stream import stream

SCHEMA = pa.schema([("digest", pa.string()), ("parts", pa.list_(pa.int64()))])


class Digester:
    """A worker that some files make fail and some kill."""

    def __init__(self, factor):
        if factor is None:
            raise ArtifactError("the factor is missing")
        self.factor = factor

    def __call__(self, sample, data):
        if data == b"kill":
            os._exit(1)
        if data == b"fail":
            raise KeyError(sample.category)
        return {"digest": hashlib.sha256(data).hexdigest(), "parts": [self.factor] * len(data)}


def config(workers, **data):
    return RunConfig(data=data, resources={"score_workers": workers, "object_store_bytes": 128 << 20})


def rows_of(folder, contents):
    rows = []
    for number, content in enumerate(contents):
        path = folder / f"{number:03d}.bin"
        path.write_bytes(content)
        rows.append(ManifestRow(f"{path.name}@{number}", str(path), "bolt", "g"))
    return rows


def digests(rows, workers, progress=None):
    return list(stream(rows, partial(Digester, 3), SCHEMA, config(workers, max_image_bytes=1024), progress))


@pytest.fixture
def rows(tmp_path):
    rows = rows_of(tmp_path, [bytes(number) for number in range(1, 30)] + [b"fail", bytes(1025)])
    gone = ManifestRow("gone", str(tmp_path / "gone.bin"), "bolt", "g")
    quarantined = ManifestRow("bad", rows[0].uri, "bolt", "g", error="not an image")
    return [*rows[:5], gone, quarantined, *rows[5:]]


@pytest.fixture(scope="module")
def ray_session():
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not have this folder on their path
    with session(config(2).resources):
        yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_every_image_gives_one_row_in_order_whatever_is_wrong_with_it(rows):
    steps = []
    results = digests(rows, 0, lambda done, total: steps.append((done, total)))
    assert [result["sample_id"] for result in results] == [row.sample_id for row in rows]
    errors = {result["sample_id"]: result["error"] for result in results if result["error"]}
    assert set(errors) == {"gone", "bad", "029.bin@29", "030.bin@30"}
    assert errors["bad"] == "not an image"
    assert errors["029.bin@29"] == "KeyError: 'bolt'"
    assert "no such file" in errors["gone"]
    assert "at most 1024" in errors["030.bin@30"]
    assert all(result["digest"] is None and result["parts"] is None for result in results if result["error"])
    assert results[0]["parts"] == [3]
    assert steps == [(done, len(rows)) for done in range(len(rows) + 1)]


def test_an_image_that_was_replaced_is_not_taken_for_the_old_one(tmp_path):
    (row,) = rows_of(tmp_path, [b"good"])
    row = replace(row, sample_id=f"000.bin@{hashlib.sha256(b'good').hexdigest()[:12]}")
    others = rows_of(tmp_path, [b"good", b"a", b"b"])[1:]
    assert digests([row, *others], 0)[0]["error"] is None
    Path(row.uri).write_bytes(b"bad")
    assert "changed since it was catalogued" in digests([row, *others], 0)[0]["error"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_a_failure_of_most_images_is_no_fault_of_theirs(tmp_path, workers, request):
    if workers:
        request.getfixturevalue("ray_session")
    rows = rows_of(tmp_path, [b"a", b"fail", b"fail", b"b", b"fail"])
    quarantined = [ManifestRow(f"bad{number}", "", "bolt", "g", error="not an image") for number in range(9)]
    with pytest.raises(DataError, match=r"3 of 5 images failed .*one of them 004\.bin@4: KeyError: 'bolt'"):
        digests([*quarantined, *rows], workers)
    assert len(digests([*quarantined, *rows[:4]], workers)) == 13


def test_without_images_there_are_no_rows():
    assert digests([], 0) == digests([], 2) == []


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "images_per_task"), [(1, 7), (2, 1)])
def test_neither_workers_nor_tasks_change_a_row(rows, workers, images_per_task, monkeypatch, ray_session):
    monkeypatch.setattr(stream_module.Pool, "images_per_task", lambda *_: images_per_task)
    steps = []
    assert digests(rows, workers, lambda done, total: steps.append((done, total))) == digests(rows, 0)
    assert steps == [(done, len(rows)) for done in range(len(rows) + 1)]


@pytest.mark.ray
def test_an_image_that_kills_its_process_becomes_a_row_and_the_others_are_judged(tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr(stream_module.Pool, "images_per_task", lambda *_: 2)
    rows = rows_of(tmp_path, [b"a", b"kill", b"b", b"c"])
    results = digests(rows, 1)
    assert [result["sample_id"] for result in results] == [row.sample_id for row in rows]
    assert [bool(result["error"]) for result in results] == [False, True, False, False]
    assert "killed 2 processes in a row" in results[1]["error"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("make_worker", "error", "text"),
    [
        (partial(Digester, None), ArtifactError, r"^the factor is missing$"),
        (partial(os._exit, 1), DataError, "the worker of actor .* killed 2 processes in a row"),
    ],
)
def test_a_worker_that_cannot_be_made_ends_the_run(rows, make_worker, error, text, ray_session):
    with pytest.raises(error, match=text):
        list(stream(rows, make_worker, SCHEMA, config(1)))


@pytest.mark.ray
def test_a_stream_can_be_left_early_and_another_one_started(rows, ray_session):
    for _ in range(2):
        results = stream(rows, partial(Digester, 3), SCHEMA, config(2))
        assert next(results)["sample_id"] == rows[0].sample_id
        results.close()
