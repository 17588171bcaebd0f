import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ssad_ray.core.records import GroundTruth, Sample, TrueBox
from ssad_ray.datasets import user_manifest
from ssad_ray.datasets.manifest import SCHEMA, ManifestRow, read_manifest, write_manifest
from ssad_ray.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
NUMBER = st.none() | st.integers(0, 2**40)
CORNER = st.floats(-1e6, 1e6)
ROWS = st.builds(
    ManifestRow,
    **dict.fromkeys(["sample_id", "uri", "category", "group"], TEXT),
    **dict.fromkeys(["template_uri", "defect_type", "mask_uri", "sha256", "error", "warning"], st.none() | TEXT),
    **dict.fromkeys(["height", "width", "channels", "bit_depth", "num_bytes"], NUMBER),
    boxes=st.lists(st.builds(TrueBox, st.tuples(*[CORNER] * 4), TEXT), max_size=3).map(tuple),
    source_stage=st.sampled_from(["train", "test", None]),
)


@settings(max_examples=15)
@given(rows=st.lists(ROWS, max_size=3))
def test_rows_survive_parquet_unchanged(rows, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("m") / "清单 1.parquet")
    write_manifest(rows, uri)
    assert read_manifest(uri) == rows


def test_the_schema_has_exactly_the_fields_of_a_row():
    assert tuple(SCHEMA.names) == tuple(ManifestRow.__dataclass_fields__)


def test_a_sample_shows_no_ground_truth_and_both_share_their_identity():
    row = ManifestRow("a@0", "/a", "nut", "g", "/t", "crack", "/m", (TrueBox((0, 0, 1, 1), "crack"),))
    assert row.sample == Sample("a@0", "/a", "nut", "g", "/t")
    assert row.ground_truth == GroundTruth("a@0", "crack", "/m", (TrueBox((0, 0, 1, 1), "crack"),))
    assert row.path == "a"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"sample_id\n1\n"])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(DataError, match="not a manifest of this package"):
        read_manifest(str(tmp_path / "m.parquet"))


def test_parquet_with_other_columns_is_refused(tmp_path):
    parquet.write_table(pa.table({"uri": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(str(tmp_path / "m.parquet"))


def read_csv(tmp_path, text, encoding="utf-8"):
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    return list(user_manifest.read(str(tmp_path / "list.csv")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_list_with_only_uris_is_enough(tmp_path, encoding):
    first, second = read_csv(tmp_path, "uri\na b.png\n图/ü.png\n", encoding)
    assert (first.path, second.path) == ("a b.png", "图/ü.png")
    assert (first.category, first.defect_type, first.error) == ("default", None, None)


def test_all_optional_columns_are_read_as_text(tmp_path):
    (entry,) = read_csv(
        tmp_path,
        "uri,category,source_stage,defect_type,mask_uri,template_uri,group\ns3://b/1.png,01,test,crack,m.png,t.png,7\n",
    )
    assert (entry.category, entry.source_stage, entry.defect_type) == ("01", "test", "crack")
    assert (entry.path, entry.mask, entry.template, entry.group) == ("s3://b/1.png", "m.png", "t.png", "7")


def test_a_wrong_row_is_an_error_and_not_a_refusal_of_the_list(tmp_path):
    stage, empty = read_csv(tmp_path, "uri,source_stage,category\na.png,val,x\n,train,x\n")
    assert "row 1: source_stage is 'val'" in stage.error
    assert "row 2: the uri is empty" in empty.error


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path\na.png\n", "has the columns path; `uri` is needed"),
        ("uri;category\na.png;x\n", "separated by commas"),
        ("uri,defct_type\na.png,x\n", "accepted besides are.*defect_type"),
        ("uri,uri\na,b\n", "each once"),
        ("uri,category\na.png\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused_with_what_is_accepted(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        read_csv(tmp_path, text)


def test_a_list_in_another_encoding_asks_for_utf8(tmp_path):
    with pytest.raises(DataError, match="save it as UTF-8"):
        read_csv(tmp_path, "uri\n瓶子.png\n", "gbk")


def test_a_manifest_of_this_package_is_a_list_too(tmp_path):
    row = ManifestRow("a@0", "/d/a.png", "nut", "g", defect_type="crack", boxes=(TrueBox((0, 1, 2, 3), "crack"),))
    write_manifest([row], str(tmp_path / "m.parquet"))
    (entry,) = user_manifest.read(str(tmp_path / "m.parquet"))
    assert (entry.path, entry.category, entry.group, entry.boxes) == (row.uri, row.category, row.group, row.boxes)


def test_boxes_of_another_shape_are_an_error_of_their_row(tmp_path):
    parquet.write_table(pa.table({"uri": ["a.png"], "boxes": [[{"box": [1.0, 2.0]}]]}), tmp_path / "m.parquet")
    (entry,) = user_manifest.read(str(tmp_path / "m.parquet"))
    assert "row 1: boxes must be" in entry.error
