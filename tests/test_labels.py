from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad_ray import __version__
from ssad_ray.core.masks import encode_mask
from ssad_ray.core.records import Calibration, DefectRegion, Provenance, Verdict
from ssad_ray.errors import ArtifactError, ConfigError
from ssad_ray.labels.diff import diff, diff_image
from ssad_ray.labels.rows import SCHEMA, from_row, to_row, verdict_table
from ssad_ray.labels.versions import Lineage, commit_labels, list_versions, read_labels, read_lineage, write_labels

CALIBRATION = Calibration("by hand", 0.1, 2, 6.0, 6.0, 3.0, 4, 1.0, 2.0, (0.25, 1 / 3))
LINEAGE = Lineage("detector/draem-1", CALIBRATION, "c0ffee", "beef", parent=None)
PROVENANCE = Provenance("detector/draem-1", 3.0, None, "auto", "2026-01-02T03:04:05+00:00")
HEIGHT, WIDTH = 30, 50


def region(index: int, x0: int, y0: int, x1: int, y1: int, defect_type: str | None = None) -> DefectRegion:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[y0:y1, x0:x1] = True
    box = (float(x0), float(y0), float(x1), float(y1))
    area = int(mask.sum())
    return DefectRegion(f"a#{index}", encode_mask(mask), box, area, 1 / 3, 0.75, defect_type, PROVENANCE)


def verdict(name: str, *regions: DefectRegion) -> Verdict:
    return Verdict(name, f"s3://bucket/{name}", HEIGHT, WIDTH, 0.1 + 0.2, 1 / 3, bool(regions), regions)


def unreadable(name: str) -> Verdict:
    return Verdict(name, name, 0, 0, None, None, None, error="not an image: it begins with b'GIF'")


VERDICTS = [
    verdict("划痕/a.png@0", region(0, 3, 4, 20, 9), region(1, 30, 2, 31, 29, "scratch")),
    verdict("b"),
    unreadable("c"),
]

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.floats(allow_nan=False)
REGIONS = st.builds(
    DefectRegion,
    region_id=TEXT,
    mask=st.builds(lambda bits: encode_mask(np.array([bits])), st.lists(st.booleans(), min_size=1, max_size=40)),
    box=st.tuples(VALUES, VALUES, VALUES, VALUES),
    area_px=st.integers(0, 2**62),
    score=VALUES,
    confidence=st.floats(0, 1),
    defect_type=st.none() | TEXT,
    provenance=st.builds(Provenance, TEXT, VALUES, st.none() | TEXT, TEXT, TEXT),
)


@settings(max_examples=50)
@given(
    st.builds(
        Verdict,
        sample_id=TEXT,
        uri=TEXT,
        height=st.integers(0, 2**31 - 1),
        width=st.integers(0, 2**31 - 1),
        anomaly_score=st.none() | VALUES,
        p_value=st.none() | st.floats(0, 1),
        is_anomalous=st.none() | st.booleans(),
        regions=st.lists(REGIONS, max_size=3).map(tuple),
        error=st.none() | TEXT,
    )
)
def test_a_verdict_survives_its_row_and_its_table(any_verdict: Verdict) -> None:
    assert from_row(to_row(any_verdict)) == any_verdict
    (row,) = verdict_table([any_verdict]).to_pylist()
    assert from_row(row) == any_verdict


def test_a_table_of_unreadable_images_alone_keeps_every_type() -> None:
    assert verdict_table([unreadable("c")]).schema == SCHEMA
    assert verdict_table([]).schema == SCHEMA


def test_a_row_that_is_no_verdict_is_refused_with_the_field_that_is_wrong() -> None:
    row = to_row(VERDICTS[0])
    row["regions"][0]["area_px"] = "many"
    with pytest.raises(ArtifactError, match=r"row of '划痕/a\.png@0' is not a verdict: regions\.0\.area_px: .*integer"):
        from_row(row)


def test_a_label_version_is_read_as_it_was_written(tmp_path: Path) -> None:
    root = str(tmp_path / "labels")
    written = write_labels(root, "v1", iter(VERDICTS), LINEAGE)
    assert list(read_labels(root, "v1")) == VERDICTS
    assert read_lineage(root, "v1") == written
    assert written.lineage == LINEAGE
    assert written.counts == {"images": 3, "anomalous": 1, "errors": 1, "regions": 2}
    assert written.package_version == __version__
    assert written.created.endswith("+00:00")


@pytest.mark.parametrize(
    "address", [lambda path: path.as_uri(), lambda path: f"memory://{path}"], ids=["file", "memory"]
)
def test_labels_live_in_any_store(tmp_path: Path, address: Callable[[Path], str]) -> None:
    root = address(tmp_path / "labels of line 2")
    assert list_versions(root) == []
    write_labels(root, "v1", VERDICTS, LINEAGE)
    assert list(read_labels(root, "v1")) == VERDICTS
    assert list_versions(root) == ["v1"]


def test_many_images_become_several_parts_in_the_same_order(tmp_path: Path) -> None:
    names = [f"{i:05d}" for i in range(5000)]
    written = write_labels(str(tmp_path), "v1", (verdict(name) for name in names), LINEAGE)
    assert len(written.parts) == 2
    assert [v.sample_id for v in read_labels(str(tmp_path), "v1")] == names


def test_versions_are_listed_oldest_first_and_unfinished_ones_not_at_all(tmp_path: Path) -> None:
    root = str(tmp_path)
    for name in ("v10", "v9", "reviewed"):
        write_labels(root, name, VERDICTS, LINEAGE)
    (tmp_path / "v11").mkdir()
    pq.write_table(verdict_table(VERDICTS), tmp_path / "v11" / "part.parquet")
    assert list_versions(root) == ["v10", "v9", "reviewed"]
    with pytest.raises(ArtifactError, match="no label version 'v11'; sealed versions there: reviewed, v10, v9"):
        read_labels(root, "v11")


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    write_labels(str(tmp_path), "v1", VERDICTS, LINEAGE)
    refusal = "has a label version 'v1' already; versions are never overwritten"
    with pytest.raises(ArtifactError, match=refusal):
        write_labels(str(tmp_path), "v1", VERDICTS[:1], LINEAGE)
    with pytest.raises(ArtifactError, match=refusal):
        commit_labels(str(tmp_path), "v1", LINEAGE)
    assert list(read_labels(str(tmp_path), "v1")) == VERDICTS


def test_an_attempt_that_breaks_off_leaves_no_version_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    def breaking() -> Iterator[Verdict]:
        yield from (verdict(f"{i:05d}") for i in range(4100))
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        write_labels(str(tmp_path), "v1", breaking(), LINEAGE)
    assert list_versions(str(tmp_path)) == []
    write_labels(str(tmp_path), "v1", VERDICTS, LINEAGE)
    assert list(read_labels(str(tmp_path), "v1")) == VERDICTS
    assert pq.read_table(tmp_path / "v1")["sample_id"].to_pylist() == [each.sample_id for each in VERDICTS]


def test_parts_written_by_others_are_sealed_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    for name, rows in (("b.parquet", VERDICTS[1:]), ("a.parquet", VERDICTS[:1])):
        pq.write_table(verdict_table(rows), tmp_path / "v1" / name)
    sealed = commit_labels(str(tmp_path), "v1", LINEAGE)
    assert list(sealed.parts) == ["a.parquet", "b.parquet"]
    assert list(read_labels(str(tmp_path), "v1")) == VERDICTS


def test_what_is_no_set_of_label_parts_is_not_sealed(tmp_path: Path) -> None:
    folder = tmp_path / "v1"
    with pytest.raises(ArtifactError, match="holds no Parquet part"):
        commit_labels(str(tmp_path), "v1", LINEAGE)
    folder.mkdir()
    pq.write_table(verdict_table(VERDICTS), folder / "a.parquet")
    pq.write_table(verdict_table(VERDICTS[:1]), folder / "b.parquet")
    with pytest.raises(ArtifactError, match="has 4 rows for 3 images; one row per image is needed"):
        commit_labels(str(tmp_path), "v1", LINEAGE)
    pq.write_table(pa.table({"sample_id": ["a"]}), folder / "b.parquet")
    with pytest.raises(ArtifactError, match=r"b\.parquet has the columns \['sample_id'\]"):
        commit_labels(str(tmp_path), "v1", LINEAGE)
    nameless = verdict_table(VERDICTS[:1]).set_column(0, SCHEMA.field("sample_id"), pa.nulls(1, pa.string()))
    pq.write_table(nameless, folder / "b.parquet")
    with pytest.raises(ArtifactError, match=r"b\.parquet has a row with a null among sample_id"):
        commit_labels(str(tmp_path), "v1", LINEAGE)
    (folder / "b.parquet").write_bytes(b"PAR1 truncated")
    with pytest.raises(ArtifactError, match=r"b\.parquet is missing or not a readable Parquet part"):
        commit_labels(str(tmp_path), "v1", LINEAGE)
    assert list_versions(str(tmp_path)) == []


def test_a_sealed_version_that_was_damaged_is_refused(tmp_path: Path) -> None:
    (part,) = write_labels(str(tmp_path), "v1", VERDICTS, LINEAGE).parts
    write_labels(str(tmp_path), "v2", VERDICTS[:1], LINEAGE)
    (tmp_path / "v1" / part).write_bytes((tmp_path / "v2" / part).read_bytes())
    with pytest.raises(ArtifactError, match=r"v1/00000\.parquet was changed after it was sealed"):
        list(read_labels(str(tmp_path), "v1"))
    (tmp_path / "v1" / part).unlink()
    with pytest.raises(ArtifactError, match="is missing or not a readable Parquet part"):
        list(read_labels(str(tmp_path), "v1"))
    (tmp_path / "v1" / "_lineage.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"_lineage\.json is not the lineage of a label version"):
        read_lineage(str(tmp_path), "v1")
    with pytest.raises(ArtifactError, match="no label version 'v3'; sealed versions there: v1, v2"):
        read_lineage(str(tmp_path), "v3")


def test_a_folder_of_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"precious")
    with pytest.raises(ArtifactError, match=r"photos holds 'a\.jpg', which is no part of a label version"):
        write_labels(str(tmp_path), "photos", VERDICTS, LINEAGE)
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"precious"


def test_a_parent_is_a_version_that_is_there(tmp_path: Path) -> None:
    edited = replace(LINEAGE, parent="v1")
    with pytest.raises(ArtifactError, match="no label version 'v1'; sealed versions there: none"):
        write_labels(str(tmp_path), "v2", VERDICTS, edited)
    write_labels(str(tmp_path), "v1", VERDICTS, LINEAGE)
    assert write_labels(str(tmp_path), "v2", VERDICTS, edited).lineage.parent == "v1"


@pytest.mark.parametrize("name", ["", "../v1", "a/b", ".hidden", "v 1", "v" * 101])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a label version"):
        write_labels(str(tmp_path), name, VERDICTS, LINEAGE)


def test_a_diff_tells_appeared_vanished_changed_and_unchanged_apart() -> None:
    kept, shifted, gone = region(0, 0, 0, 10, 10), region(1, 20, 0, 30, 10), region(2, 40, 20, 45, 25)
    moved, named, fresh = region(1, 21, 0, 31, 10), replace(kept, defect_type="hole"), region(3, 0, 20, 5, 25)
    image = diff_image(verdict("a", kept, shifted, gone), verdict("a", fresh, moved, kept), iou=0.5)
    assert image.appeared == ("a#3",)
    assert image.vanished == ("a#2",)
    assert image.changed == (("a#1", "a#1"),)
    assert image.num_unchanged == 1
    assert not image.is_flipped
    assert diff_image(verdict("a", kept), verdict("a", named)).changed == (("a#0", "a#0"),)


def test_counterparts_need_the_asked_overlap() -> None:
    old, new = verdict("a", region(0, 0, 0, 10, 10)), verdict("a", region(0, 5, 0, 15, 10))
    assert diff_image(old, new, iou=1 / 3).changed == (("a#0", "a#0"),)
    assert diff_image(old, new, iou=0.34).vanished == ("a#0",)


def test_a_diff_sums_over_images_and_counts_those_of_one_version_only() -> None:
    first, second = region(0, 0, 0, 10, 10), region(1, 20, 0, 30, 10)
    old = [verdict("a", first), verdict("b", first), verdict("c"), verdict("gone")]
    new = [verdict("a", first), verdict("b", second), verdict("c", first, second), verdict("new", first)]
    result = diff(old, new)
    assert [image.sample_id for image in result.images] == ["b", "c"]
    assert result.counts == {
        "appeared": 3,
        "vanished": 1,
        "changed": 0,
        "unchanged": 1,
        "images_changed": 2,
        "images_flipped": 1,
        "images_unchanged": 1,
        "images_added": 1,
        "images_removed": 1,
    }


def test_a_version_does_not_differ_from_itself(tmp_path: Path) -> None:
    write_labels(str(tmp_path), "v1", VERDICTS, LINEAGE)
    result = diff(read_labels(str(tmp_path), "v1"), read_labels(str(tmp_path), "v1"))
    assert result.images == ()
    assert result.counts["images_unchanged"] == 3
