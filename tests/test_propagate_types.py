import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from ssad_ray.cli import app
from ssad_ray.config import RunConfig
from ssad_ray.core.images import encode_png
from ssad_ray.core.masks import encode_mask, mask_box
from ssad_ray.core.records import DefectRegion, Provenance, Verdict
from ssad_ray.core.region_features import describe
from ssad_ray.core.rng import generator
from ssad_ray.core.spreading import UNNAMED, comparable, spread
from ssad_ray.errors import ArtifactError, ConfigError, DataError
from ssad_ray.labels.named import read_named
from ssad_ray.labels.versions import Lineage, read_labels, read_lineage, write_labels
from ssad_ray.pipelines.interest import keep_inside, masks_in
from ssad_ray.pipelines.prepare import prepare
from ssad_ray.pipelines.propagate_types import propagate_types
from ssad_ray.pipelines.run import open_run

HEIGHT, WIDTH = 90, 140


def silent(_):
    return lambda *_: None


def defective(number):
    """A plate with a dark spot and a bright scratch somewhere, and their masks."""
    rng = generator(number, "plate")
    picture = np.clip(rng.normal(128, 5, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
    spot, scratch = (np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(2))
    cv2.circle(spot, (int(rng.integers(15, 50)), int(rng.integers(15, 75))), int(rng.integers(4, 8)), 1, -1)
    x, y = int(rng.integers(80, 100)), int(rng.integers(15, 60))
    cv2.line(scratch, (x, y), (x + int(rng.integers(15, 30)), y + int(rng.integers(5, 20))), 1, 2)
    picture[spot > 0] -= 60
    picture[scratch > 0] += 70
    return picture, [spot > 0, scratch > 0]


def region(region_id, mask):
    encoded = encode_mask(mask)
    provenance = Provenance("reference-1", 0.5, None, "auto", "2026-01-01T00:00:00+00:00")
    return DefectRegion(region_id, encoded, mask_box(encoded), int(mask.sum()), 1.0, 0.5, None, provenance)


@pytest.fixture
def run(tmp_path):
    """A run with a label version `v1` of two regions per image, and an image that broke since."""
    for folder in ("good", "unlabelled"):
        (tmp_path / "parts" / folder).mkdir(parents=True)
    for number in range(20):
        folder = "good" if number < 8 else "unlabelled"
        (tmp_path / "parts" / folder / f"{number:02d}.png").write_bytes(encode_png(defective(number)[0]))
    run = open_run(tmp_path / "run", RunConfig(resources={"score_workers": 0}))
    prepare(run, str(tmp_path / "parts"))
    verdicts = []
    for row in run.rows("online"):
        masks = defective(int(row.path[-6:-4]))[1]
        regions = tuple(region(f"{row.sample_id}#{index}", mask) for index, mask in enumerate(masks))
        verdicts.append(Verdict(row.sample_id, row.uri, HEIGHT, WIDTH, 1.0, 0.1, True, regions))
    write_labels(str(run.labels_path), "v1", verdicts, Lineage("reference-1", None, "c", "m"))
    return run


def regions_of(run, version):
    return [region for verdict in read_labels(str(run.labels_path), version) for region in verdict.regions]


def named_file(run, name="named.csv", num=1):
    """Name the regions of the first images as they are."""
    ids = [each.region_id for each in regions_of(run, "v1")][: 2 * num]
    path = run.path / name
    types = {"0": "spot", "1": "scratch"}
    path.write_text("region_id,defect_type\n" + "".join(f"{each},{types[each[-1]]}\n" for each in ids))
    return str(path)


def test_one_named_region_of_each_type_names_all_others(run):
    counts = propagate_types(run, "v1", named_file(run), "v2", "ada", 0.5, silent)
    found = regions_of(run, "v2")
    assert [each.defect_type for each in found] == ["spot", "scratch"] * (len(found) // 2)
    assert counts == {"spot": len(found) // 2, "scratch": len(found) // 2}


def test_the_new_version_says_who_named_what_and_where_it_comes_from(run):
    propagate_types(run, "v1", named_file(run), "v2", "ada", 0.5, silent)
    assert read_lineage(str(run.labels_path), "v2").lineage == Lineage("reference-1", None, "c", "m", parent="v1")
    before, after = regions_of(run, "v1"), regions_of(run, "v2")
    assert [each.provenance.actor for each in after] == ["ada"] * 2 + ["auto"] * (len(after) - 2)
    assert all(new.provenance.parent == old.region_id == new.region_id for old, new in zip(before, after, strict=True))
    assert [each.mask for each in before] == [each.mask for each in after]


def test_what_looks_like_none_of_the_named_stays_unknown_and_as_it_was(run):
    spot = regions_of(run, "v1")[0].region_id
    (run.path / "spot.csv").write_text(f"region_id,defect_type\n{spot},spot\n")
    counts = propagate_types(run, "v1", str(run.path / "spot.csv"), "v2", "ada", 0.5, silent)
    assert counts == {"spot": 12, None: 12}
    assert regions_of(run, "v2")[1::2] == regions_of(run, "v1")[1::2]


def test_the_table_lists_the_least_certain_first(run):
    propagate_types(run, "v1", named_file(run), "v2", "ada", 0.5, silent)
    with run.types_path("v2").open() as file:
        rows = list(csv.DictReader(file))
    shares = [float(row["share"]) for row in rows]
    assert shares == sorted(shares)
    assert {row["region_id"] for row in rows} == {each.region_id for each in regions_of(run, "v1")}
    assert [row["named_by"] for row in rows[-2:]] == ["ada", "ada"]


def test_names_that_a_person_gave_before_count_and_later_ones_replace_them(run):
    propagate_types(run, "v1", named_file(run), "v2", "ada", 0.5, silent)
    first, other = regions_of(run, "v2")[0].region_id, regions_of(run, "v2")[2].region_id
    (run.path / "more.jsonl").write_text(f'{{"region_id": "{first}", "defect_type": "hole"}}\n')
    propagate_types(run, "v2", str(run.path / "more.jsonl"), "v3", "bob", 0.5, silent)
    after = {each.region_id: each for each in regions_of(run, "v3")}
    assert (after[first].defect_type, after[first].provenance.actor) == ("hole", "bob")
    assert after[other].defect_type == "hole"
    assert regions_of(run, "v3")[1].provenance.actor == "ada"


def test_a_region_that_a_person_drew_stays_as_it_is_until_a_person_names_it(run):
    verdicts = list(read_labels(str(run.labels_path), "v1"))
    drawn = replace(verdicts[3].regions[0], provenance=replace(verdicts[3].regions[0].provenance, actor="eve"))
    verdicts[3] = replace(verdicts[3], regions=(drawn, verdicts[3].regions[1]))
    write_labels(str(run.labels_path), "drawn", verdicts, Lineage("reference-1", None, "c", "m"))
    propagate_types(run, "drawn", named_file(run), "v2", "ada", 0.5, silent)
    after = {each.region_id: each for each in regions_of(run, "v2")}
    assert after.pop(drawn.region_id) == drawn
    assert None not in {each.defect_type for each in after.values()}


def test_a_run_that_was_stopped_before_its_last_step_can_be_given_again(run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("ssad_ray.pipelines.propagate_types.write_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            propagate_types(run, "v1", named_file(run), "v2", "ada", 0.5, silent)
    propagate_types(run, "v1", named_file(run), "v2", "ada", 0.5, silent)
    assert len(regions_of(run, "v2")) + 1 == len(run.types_path("v2").read_text().splitlines())


def test_regions_of_an_image_that_broke_stay_unknown(run):
    broken = run.rows("online")[-1]
    (run.path.parent / "parts" / broken.path).write_bytes(b"broken")
    propagate_types(run, "v1", named_file(run), "v2", "ada", 0.5, silent)
    assert [each.defect_type for each in regions_of(run, "v2")][-2:] == [None, None]


@pytest.mark.ray
def test_ray_changes_no_name(run, tmp_path):
    propagate_types(run, "v1", named_file(run), "here", "ada", 0.5, silent)
    with_ray = open_run(run.path, RunConfig(resources={"score_workers": 1, "object_store_bytes": 128 << 20}))
    propagate_types(with_ray, "v1", named_file(run), "there", "ada", 0.5, silent)
    assert run.types_path("here").read_text() == run.types_path("there").read_text()


def test_a_version_that_exists_is_refused(run):
    with pytest.raises(ArtifactError, match="'v1' already; give the new one another --name"):
        propagate_types(run, "v1", named_file(run), "v1", "ada", 0.5, silent)


def test_a_person_has_a_name_of_its_own(run):
    with pytest.raises(ConfigError, match="a person cannot be called 'auto'"):
        propagate_types(run, "v1", named_file(run), "v2", "auto", 0.5, silent)


def test_a_region_that_nobody_knows_is_refused_with_an_example(run):
    (run.path / "named.csv").write_text("region_id,defect_type\nnothing#0,spot\n")
    with pytest.raises(DataError, match=r"not in the label version v1, the first is 'nothing#0'; .* like 'unlabelled"):
        propagate_types(run, "v1", str(run.path / "named.csv"), "v2", "ada", 0.5, silent)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "region,type\nx,y\n", "line 2: has no region_id or no defect_type; accepted are CSV"),
        ("a.csv", "region_id,defect_type\nx,\n", "line 2: region_id is 'x' and defect_type ''"),
        ("a.csv", "region_id,defect_type\nx,good\n", "'good' is no defect"),
        ("a.csv", "region_id,defect_type\nx,a\nx,b\n", "line 3: x is called 'a' above and 'b' here"),
        ("a.csv", "region_id,defect_type\n", "names no region"),
        ("a.jsonl", '["x"]\n', "line 1: has no region_id"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.csv", "\xff\xfe", "cannot be read"),
    ],
)
def test_a_list_of_names_that_is_wrong_is_refused_where_it_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_named(str(tmp_path / name))


def test_csv_and_json_lines_name_the_same(tmp_path):
    (tmp_path / "a.csv").write_text('region_id,share,defect_type\n"a,b.png@1#0",0.2, spot \n')
    (tmp_path / "a.jsonl").write_text('\n{"region_id": "a,b.png@1#0", "defect_type": "spot"}\n')
    assert read_named(str(tmp_path / "a.csv")) == read_named(str(tmp_path / "a.jsonl")) == {"a,b.png@1#0": "spot"}


def test_spreading_equals_the_closed_form():
    """Zhou et al., eq. 4, of weights that are written out pair by pair."""
    features = generator(0, "items").standard_normal((40, 3)).astype(np.float32)
    names = np.full(40, UNNAMED)
    names[[3, 20, 21]] = 0, 1, 1
    scaled = comparable(features)
    squares = np.square(scaled[:, None] - scaled).sum(2)
    order = np.argsort(squares, axis=1)[:, 1:6]
    units = np.sqrt([squares[i, order[i, -1]] for i in range(40)])
    weights = np.zeros((40, 40))
    for i in range(40):
        for j in order[i]:
            weights[i, j] = weights[j, i] = np.exp(-squares[i, j] / (units[i] * units[j]))
    degrees = weights.sum(axis=1)
    given = np.zeros((40, 2))
    given[3, 0], given[[20, 21], 1] = 1, 0.5
    spread_out = np.linalg.inv(np.eye(40) - 0.9 * weights / np.sqrt(np.outer(degrees, degrees))) @ given
    spread_out /= spread_out.sum(axis=0)
    expected = spread_out.max(axis=1) / spread_out.sum(axis=1)
    expected[names != UNNAMED] = 1
    found, shares = spread(features, names)
    np.testing.assert_allclose(shares, expected, rtol=1e-3)
    is_open = names == UNNAMED
    np.testing.assert_array_equal(found[is_open], spread_out.argmax(axis=1)[is_open])


def test_each_of_two_groups_gets_the_name_of_its_only_named_item():
    features = generator(0, "items").standard_normal((30, 2)).astype(np.float32)
    features[15:] += 50
    names = np.full(30, UNNAMED)
    names[[3, 20]] = 0, 1
    found, shares = spread(features, names)
    assert found.tolist() == [0] * 15 + [1] * 15
    np.testing.assert_allclose(shares, 1.0)


def test_an_item_between_two_names_is_less_certain_than_one_beside_a_name():
    features = np.linspace(0, 1, 21, dtype=np.float32)[:, None]
    names = np.full(21, UNNAMED)
    names[[0, 20]] = 0, 1
    found, shares = spread(features, names)
    assert found[:10].tolist() == [0] * 10
    assert found[11:].tolist() == [1] * 10
    assert shares[1] > shares[5] > shares[9]
    assert shares[10] == pytest.approx(0.5, abs=0.1)


def test_few_items_and_equal_items_are_no_obstacle():
    found, shares = spread(np.zeros((1, 3), np.float32), np.array([0]))
    assert (found.tolist(), shares.tolist()) == ([0], [1.0])
    found, _ = spread(np.ones((9, 3), np.float32), np.array([0] + [UNNAMED] * 8))
    assert set(found.tolist()) <= {0, UNNAMED}


def test_features_do_not_depend_on_where_a_region_lies():
    picture, mask = np.full((HEIGHT, WIDTH, 3), 100, np.uint8), np.zeros((HEIGHT, WIDTH), bool)
    mask[30:40, 40:55] = True
    picture[mask] = (50, 160, 100)
    moved = [np.roll(each, (13, 22), axis=(0, 1)) for each in (picture, mask)]
    here, there = describe(picture, encode_mask(mask)), describe(moved[0], encode_mask(moved[1]))
    np.testing.assert_allclose(here, there, rtol=1e-5)
    np.testing.assert_allclose(here[6:9], (-50, 60, 0), atol=1e-4)
    assert here[1] == pytest.approx(np.log(1.5), abs=1e-4)


@pytest.mark.parametrize("rows", [slice(0, HEIGHT), slice(44, 45)])
def test_features_of_the_whole_image_and_of_a_line_are_finite(rows):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows] = True
    features = describe(np.concatenate([defective(0)[0]] * 2, axis=2), encode_mask(mask))
    assert features.shape == (21,)
    assert np.isfinite(features).all()


def test_regions_outside_of_the_masks_are_left_out_and_nothing_else(run, tmp_path):
    masks = tmp_path / "masks"
    first, second, *_ = run.rows("online")
    for row, columns in ((first, slice(0, 70)), (second, slice(0, 0))):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[:, columns] = True
        (masks / row.path).parent.mkdir(parents=True, exist_ok=True)
        (masks / row.path).write_bytes(encode_png(mask))
    version, num_unmasked = keep_inside(run, "v1", str(masks))
    before, after = (list(read_labels(str(run.labels_path), each)) for each in ("v1", version))
    assert after[0].regions == before[0].regions[:1]
    assert (after[1].regions, after[1].is_anomalous, after[1].anomaly_score) == ((), False, 1.0)
    assert after[2:] == before[2:]
    assert num_unmasked == len(before) - 2
    assert read_lineage(str(run.labels_path), version).lineage.parent == "v1"
    assert keep_inside(run, "v1", str(masks))[0] == version


def test_masks_of_a_run_that_did_not_end_are_refused(run, tmp_path):
    unfinished = tmp_path / "masks" / "unfinished-12345678"
    unfinished.mkdir(parents=True)
    (unfinished / "0.json").write_text("{}")
    with pytest.raises(DataError, match=r"is unfinished; give the `ssad propagate-masks` command"):
        keep_inside(run, "v1", str(tmp_path / "masks"))


def test_masks_of_other_images_are_refused(run, tmp_path):
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"has no mask, a file that ends in \.png; make them"):
        masks_in(str(tmp_path / "masks"))
    (tmp_path / "masks" / "other.png").touch()
    with pytest.raises(DataError, match=r"has no mask for any of the \d+ images with regions, such as unlabelled/"):
        keep_inside(run, "v1", str(tmp_path / "masks"))


@pytest.mark.ray
def test_the_verb_says_where_the_names_are_and_how_many_there_are_of_each(run):
    arguments = ["propagate-types", "--out", str(run.path), "--labels", "v1", "--named", named_file(run)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert f"{run.labels_path / 'v1-types'}\n{run.types_path('v1-types')}\n" in shown.output
    assert shown.output.splitlines()[-1] == "12 spot, 12 scratch"
