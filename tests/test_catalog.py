import io
import json
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssad_ray.config import DataConfig
from ssad_ray.core import images
from ssad_ray.core.records import TrueBox
from ssad_ray.datasets.catalog import catalog, summary
from ssad_ray.datasets.inspection import clip_boxes
from ssad_ray.datasets.manifest import read_manifest, write_manifest
from ssad_ray.errors import DataError

CONFIG = DataConfig()
HEIGHT, WIDTH = 24, 40
REAL = Path(os.environ.get("SSAD_DATA", "SSAD_DATA-is-not-set"))


def photo(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def jpeg(mode):
    buffer = io.BytesIO()
    Image.fromarray(photo(1)).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def mask(*rows, height=HEIGHT, width=WIDTH, value=255):
    array = np.zeros((height, width), np.uint8)
    array[list(rows)] = value
    return images.encode_png(array)


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(root)


def mvtec(num_good=4):
    files = {f"train/good/{i:03d}.png": images.encode_png(photo(i)) for i in range(num_good)}
    files |= {"test/good/000.png": images.encode_png(photo(100)), "test/crack/000.png": images.encode_png(photo(101))}
    return files | {"ground_truth/crack/000_mask.png": mask(3)}


def look(root, **config):
    found = catalog(str(root), DataConfig(**config))
    assert len({row.sample_id for row in found.rows}) == len(found.rows)
    return found, {row.path: row for row in found.rows}


def test_every_fact_of_a_sound_image_is_filled(tmp_path):
    root = tmp_path / "瓶 子"
    _, rows = look(write(root, mvtec()))
    row = rows["test/crack/000.png"]
    assert (row.height, row.width, row.channels, row.bit_depth) == (HEIGHT, WIDTH, 3, 8)
    assert row.sample_id == f"test/crack/000.png@{row.sha256[:12]}"
    assert (row.category, row.defect_type, row.source_stage) == ("瓶 子", "crack", "test")
    assert row.mask_uri == f"{root}/ground_truth/crack/000_mask.png"
    assert row.num_bytes == (root / "test/crack/000.png").stat().st_size
    assert row.error is None
    assert row.warning is None


@pytest.mark.parametrize(("depth", "warning"), [(12, "only 4 are used"), (16, None)])
def test_a_deep_file_that_uses_its_lower_bits_alone_is_warned_about(tmp_path, depth, warning):
    deep = photo(5)[:, :, 0].astype(np.uint16) << (depth - 8)
    _, rows = look(write(tmp_path, mvtec() | {"train/good/deep.png": images.encode_png(deep)}))
    row = rows["train/good/deep.png"]
    assert (row.error, row.bit_depth) == (None, 16)
    assert (warning in row.warning) if warning else row.warning is None


BROKEN = {
    "zero bytes": (b"", "is empty"),
    "text": (b"not an image", "not an image"),
    "cut PNG": (images.encode_png(photo(1))[:-500], "cut off"),
    "cut JPEG": (jpeg("RGB")[:-200], "cannot be decoded"),
    "CMYK": (jpeg("CMYK"), "mode CMYK"),
    "too many pixels": (images.encode_png(np.zeros((200, 300), np.uint8)), "at most 10000"),
    "too many bytes": (bytes(30_000), "at most 20000"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_a_row_with_the_reason(tmp_path, content, reason):
    root = write(tmp_path, {**mvtec(), "train/good/bad.png": content})
    found, rows = look(root, max_image_px=10_000, max_image_bytes=20_000)
    assert reason in rows["train/good/bad.png"].error
    assert sum(row.error is not None for row in found.rows) == 1


WRONG_TRUTH = {
    "mask of another size": ({"ground_truth/crack/000_mask.png": mask(3, height=25)}, "test/crack/000.png", "25x40"),
    "mask cut": ({"ground_truth/crack/000_mask.png": mask(3)[:-30]}, "test/crack/000.png", "its mask"),
    "good with a marked mask": ({"ground_truth/good/000_mask.png": mask(3)}, "test/good/000.png", "labelled good"),
    "mask without image": (
        {"ground_truth/crack/9_mask.png": mask(3)},
        "ground_truth/crack/9_mask.png",
        "layout mvtec",
    ),
    "stray image": ({"preview.png": images.encode_png(photo(9))}, "preview.png", "layout mvtec"),
}


@pytest.mark.parametrize(("files", "path", "reason"), WRONG_TRUTH.values(), ids=WRONG_TRUTH)
def test_ground_truth_that_contradicts_its_image_quarantines_it(tmp_path, files, path, reason):
    found, rows = look(write(tmp_path, mvtec() | files))
    assert reason in rows[path].error
    assert sum(row.error is not None for row in found.rows) == 1


def test_a_defective_image_with_an_empty_mask_is_kept_without_it(tmp_path):
    _, rows = look(write(tmp_path, mvtec() | {"ground_truth/crack/000_mask.png": mask(3, value=127)}))
    row = rows["test/crack/000.png"]
    assert (row.error, row.mask_uri) == (None, None)
    assert "no pixel above 127" in row.warning


def test_an_empty_mask_of_a_good_image_is_fine(tmp_path):
    _, rows = look(write(tmp_path, mvtec() | {"ground_truth/good/000_mask.png": mask()}))
    assert rows["test/good/000.png"].error is None


def test_a_broken_template_is_left_out_with_a_warning(tmp_path):
    files = {
        "group1/1/7_test.jpg": jpeg("L"),
        "group1/1/7_temp.jpg": jpeg("L")[:-50],
        "group1/1_not/7.txt": b"1 2 9 9 1",
    }
    _, rows = look(write(tmp_path, files))
    row = rows["group1/1/7_test.jpg"]
    assert (row.template_uri, row.error, len(row.boxes)) == (None, None, 1)
    assert "7_temp.jpg is not used" in row.warning


def test_an_annotation_of_another_size_quarantines_its_image(tmp_path):
    record = {"name": "1_2_t3_CAM1.jpg", "image_height": WIDTH, "image_width": HEIGHT, "category": 1}
    files = {"train_imgs/1_2_t3_CAM1.jpg": jpeg("RGB"), "train_annos.json": [{**record, "bbox": [1, 2, 3, 4]}]}
    _, rows = look(write(tmp_path, files))
    assert "24x40 (HxW) pixels, but its annotation says (40, 24)" in rows["train_imgs/1_2_t3_CAM1.jpg"].error


def test_boxes_are_cut_to_the_image_and_those_outside_or_empty_are_dropped_and_counted():
    corners = [(1, 2, 3, 4), (-5, 2, 50, 10), (45, 0, 60, 5), (3, 3, 3, 9), (0, 0, float("nan"), 5)]
    kept, warning = clip_boxes([TrueBox(corner, "x") for corner in corners], HEIGHT, WIDTH)
    assert [box.box for box in kept] == [(1, 2, 3, 4), (0, 2, 40, 10)]
    assert warning == "1 boxes cut to the image; 3 boxes without area in the image dropped"


def test_an_image_none_of_whose_boxes_is_usable_is_refused():
    with pytest.raises(DataError, match=r"none of its 1 boxes .* 24x40"):
        clip_boxes([TrueBox((30, 30, 20, 50), "x")], HEIGHT, WIDTH)
    assert clip_boxes([], HEIGHT, WIDTH) == ((), None)


def test_a_hostile_folder_is_cataloged_whole(tmp_path):
    """5 % of each kind of broken file among 100; every broken one is named, every sound one is usable."""
    rng = random.Random(0)
    names = [f"train/good/{i:03d}.png" for i in range(100)]
    rng.shuffle(names)
    files = {name: images.encode_png(photo(i)) for i, name in enumerate(names)}
    broken = {}
    for content, reason in BROKEN.values():
        broken |= {names.pop(): (content, reason) for _ in range(5)}
    root = write(tmp_path, files | {name: content for name, (content, _) in broken.items()})
    _, rows = look(root, max_image_px=10_000, max_image_bytes=20_000)
    assert {path for path, row in rows.items() if row.error} == set(broken)
    assert all(reason in rows[name].error for name, (_, reason) in broken.items())


def test_hidden_files_are_passed_over_and_others_are_counted(tmp_path):
    files = {"._a.png": b"x", "__MACOSX/train/good/000.png": b"x", ".thumbs/a.png": b"x", "a.HEIC": b"", "LICENSE": b""}
    found, rows = look(write(tmp_path, mvtec() | files))
    assert len(rows) == 6
    assert dict(found.ignored) == {".heic": 1, "no suffix": 1}


def test_images_that_an_annotation_names_but_are_not_there_are_listed_and_no_rows(tmp_path):
    records = [{"name": name, "category": 1, "bbox": [1, 2, 3, 4]} for name in ("1_2_t3_CAM1.jpg", "gone.jpg")]
    found, rows = look(write(tmp_path, {"train_imgs/1_2_t3_CAM1.jpg": jpeg("RGB"), "train_annos.json": records}))
    assert found.absent == ("gone.jpg",)
    assert list(rows) == ["train_imgs/1_2_t3_CAM1.jpg"]


def test_equal_and_slightly_edited_images_share_a_group(tmp_path):
    brighter = images.encode_png(np.clip(photo(3), 2, 253) + np.uint8(2))
    again = {"train/good/copy.png": images.encode_png(photo(2)), "test/good/edited.png": brighter}
    found, rows = look(write(tmp_path, mvtec(12) | again))
    assert rows["train/good/copy.png"].group == rows["train/good/002.png"].group
    assert rows["test/good/edited.png"].group == rows["train/good/003.png"].group
    assert summary(found)["duplicate_groups"] == 2


def test_a_list_is_cataloged_with_addresses_taken_from_its_folder(tmp_path):
    write(tmp_path, {"a/1.png": images.encode_png(photo(1)), "b.png": images.encode_png(photo(2)), "m.png": mask(3)})
    text = f"uri,category,defect_type,mask_uri\na/1.png,nut,good,\n{tmp_path}/b.png,nut,crack,m.png\nnone.png,,,\n"
    (tmp_path / "list.csv").write_text(text)
    found, rows = look(tmp_path / "list.csv")
    assert found.layout == "manifest"
    assert rows["a/1.png"].uri == f"{tmp_path}/a/1.png"
    assert rows[f"{tmp_path}/b.png"].mask_uri == f"{tmp_path}/m.png"
    assert "no such file" in rows["none.png"].error


def test_an_image_listed_twice_with_different_facts_is_quarantined(tmp_path):
    write(tmp_path, {"1.png": images.encode_png(photo(1)), "2.png": images.encode_png(photo(2))})
    (tmp_path / "list.csv").write_text("uri,defect_type\n1.png,good\n1.png,crack\n2.png,good\n2.png,good\n")
    _, rows = look(tmp_path / "list.csv")
    assert "more than once" in rows["1.png"].error
    assert rows["2.png"].error is None


def test_a_written_manifest_is_cataloged_to_the_same_facts(tmp_path):
    first, _ = look(write(tmp_path / "data", mvtec()))
    write_manifest(first.rows, str(tmp_path / "m.parquet"))
    second, _ = look(tmp_path / "m.parquet")
    facts = [(row.uri, row.sha256, row.height, row.mask_uri, row.defect_type) for row in first.rows]
    assert sorted(facts) == sorted((r.uri, r.sha256, r.height, r.mask_uri, r.defect_type) for r in second.rows)
    assert read_manifest(str(tmp_path / "m.parquet")) == list(first.rows)


def test_what_a_written_manifest_calls_broken_stays_broken(tmp_path):
    files = mvtec() | {"stray.png": mvtec()["train/good/000.png"]}
    first, _ = look(write(tmp_path / "data", files))
    broken = {row.uri: row.error for row in first.rows if row.error}
    assert broken
    write_manifest(first.rows, str(tmp_path / "m.parquet"))
    second, _ = look(tmp_path / "m.parquet")
    assert {row.uri: row.error for row in second.rows if row.error} == broken


def test_an_address_that_does_not_answer_is_a_row(tmp_path):
    root = write(tmp_path, {"a.png": mvtec()["train/good/000.png"]})
    write(tmp_path, {"list.csv": b"uri\na.png\nftp://127.0.0.1:1/b.png\n"})
    found, _ = look(f"{root}/list.csv")
    assert [(row.uri.rpartition("/")[2], row.error is None) for row in found.rows] == [
        ("a.png", True),
        ("b.png", False),
    ]
    assert "cannot be reached" in found.rows[1].error


def test_the_number_of_threads_and_the_order_of_files_do_not_change_the_rows(tmp_path, monkeypatch):
    root = write(tmp_path, mvtec(20))
    many, _ = look(root)
    monkeypatch.setattr("ssad_ray.datasets.catalog._MAX_THREADS", 1)
    assert look(root)[0] == many


def test_progress_counts_to_all_images_in_the_calling_thread(tmp_path):
    seen = []
    catalog(write(tmp_path, mvtec()), CONFIG, lambda done, total: seen.append((done, total, threading.get_ident())))
    assert seen == [(i, 6, threading.get_ident()) for i in range(1, 7)]


def test_the_summary_counts_by_category_stage_and_type_and_is_plain_data(tmp_path):
    found, _ = look(write(tmp_path / "nut", mvtec() | {"train/good/bad.png": b""}))
    told = summary(found)
    assert told["categories"] == {"nut": {"test": {"crack": 1, "good": 1}, "train": {"good": 4}}}
    assert (told["images"], told["usable"], told["broken"], told["masks"]) == (7, 6, 1, 1)
    assert told["sizes"] == {"24x40": 6}
    assert list(told["errors"]) == ["train/good/bad.png"]
    json.dumps(told)


@pytest.mark.parametrize("name", ["none", "file.png"])
def test_a_place_that_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file.png").write_bytes(images.encode_png(photo(1)))
    with pytest.raises(DataError, match="a folder is needed"):
        catalog(str(tmp_path / name), CONFIG)


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real images {REAL / name} are not here")
    return catalog(str(REAL / name), CONFIG)


@pytest.mark.realdata
def test_real_bottles_are_all_usable_and_only_the_part_photographed_twice_is_a_group():
    found = real("mvtec_ad/bottle")
    told = summary(found)
    assert (found.layout, told["broken"], told["warnings"], told["absent"]) == ("mvtec", 0, {}, [])
    groups = {}
    for row in found.rows:
        groups.setdefault(row.group, []).append(row.path)
    twice = [paths for paths in groups.values() if len(paths) > 1]
    assert twice == [["train/good/069.png", "train/good/070.png"]]


@pytest.mark.realdata
def test_real_boards_have_boxes_and_templates_and_no_duplicates():
    found = real("deeppcb")
    told = summary(found)
    assert (found.layout, told["images"], told["broken"], told["templates"]) == ("deeppcb", 320, 0, 320)
    assert told["boxes"] > 1000
    assert told["duplicate_groups"] == 0
    assert told["warnings"] == {}


@pytest.mark.realdata
def test_real_magnetic_tiles_lose_only_the_masks_that_are_empty_above_127():
    found = real("magnetic_tile")
    told = summary(found)
    assert (found.layout, told["images"], told["broken"]) == ("magnetic_tile", 700, 0)
    assert all("Uneven" in path and "no pixel above 127" in text for path, text in told["warnings"].items())
    assert told["masks"] == 700 - len(told["warnings"])
