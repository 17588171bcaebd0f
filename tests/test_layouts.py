"""Every reader, on folders written in exactly the format of its data set; the files are opened by test_catalog."""

import json

import pytest

from ssad_ray.core import storage
from ssad_ray.core.records import TrueBox
from ssad_ray.datasets import btad, deeppcb, folder, magnetic_tile, mvtec, tianchi_fabric, tianchi_tile
from ssad_ray.datasets.layouts import READERS, recognise
from ssad_ray.errors import DataError


def read(root, files):
    """Write files (name, or name → text) and return the entries by path, through the layout that is recognised."""
    for name in files:
        text = files[name] if isinstance(files, dict) else ""
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    listing = storage.list_files(str(root))
    reader = recognise(str(root), listing)
    entries = list(reader.read(str(root), listing))
    assert len({entry.path for entry in entries}) == len(entries)
    return reader, {entry.path: entry for entry in entries}


def box(x0, y0, x1, y1, defect_type):
    return TrueBox((x0, y0, x1, y1), defect_type)


MVTEC = ["train/good/000.png", "test/good/000.png", "test/crack/000.png", "ground_truth/crack/000_mask.png"]


def test_mvtec_numbers_restart_in_each_folder_and_masks_find_their_image(tmp_path):
    reader, entries = read(tmp_path / "瓶子", MVTEC)
    assert reader is mvtec
    assert {p: (e.category, e.source_stage, e.defect_type, e.mask) for p, e in entries.items()} == {
        "train/good/000.png": ("瓶子", "train", "good", None),
        "test/good/000.png": ("瓶子", "test", "good", None),
        "test/crack/000.png": ("瓶子", "test", "crack", "ground_truth/crack/000_mask.png"),
    }


@pytest.mark.parametrize("prefix", ["", "mvtec_ad/"])
def test_mvtec_may_be_several_categories_at_any_depth(tmp_path, prefix):
    files = [f"{prefix}{category}/{name}" for category in ("bottle", "cable") for name in MVTEC]
    _, entries = read(tmp_path, files)
    assert {entry.category for entry in entries.values()} == {"bottle", "cable"}
    assert entries[f"{prefix}cable/test/crack/000.png"].mask == f"{prefix}cable/ground_truth/crack/000_mask.png"


def test_good_images_alone_are_mvtec_enough(tmp_path):
    reader, entries = read(tmp_path / "nut", ["train/good/1.png", "readme.txt"])
    assert reader is mvtec
    assert list(entries) == ["train/good/1.png"]


def test_a_defective_image_without_mask_among_masked_ones_carries_a_warning(tmp_path):
    _, entries = read(tmp_path / "nut", [*MVTEC, "test/crack/001.png"])
    assert "ground_truth/crack/001_mask" in entries["test/crack/001.png"].warning
    assert entries["test/crack/000.png"].warning is None


def test_mvtec_without_any_mask_carries_no_warning(tmp_path):
    _, entries = read(tmp_path / "nut", MVTEC[:3])
    assert all(entry.warning is None for entry in entries.values())


def test_btad_looks_masks_up_by_stem_whatever_the_suffix(tmp_path):
    reader, entries = read(
        tmp_path,
        [
            "BTech/01/train/ok/0000.bmp",
            "BTech/01/test/ok/0000.bmp",
            "BTech/01/test/ko/0020.bmp",
            "BTech/01/ground_truth/ko/0020.png",
            "BTech/03/test/ko/0001.bmp",
            "BTech/03/ground_truth/ko/0001.bmp",
        ],
    )
    assert reader is btad
    assert {p: (e.category, e.source_stage, e.defect_type, e.mask) for p, e in entries.items()} == {
        "BTech/01/train/ok/0000.bmp": ("01", "train", "good", None),
        "BTech/01/test/ok/0000.bmp": ("01", "test", "good", None),
        "BTech/01/test/ko/0020.bmp": ("01", "test", "ko", "BTech/01/ground_truth/ko/0020.png"),
        "BTech/03/test/ko/0001.bmp": ("03", "test", "ko", "BTech/03/ground_truth/ko/0001.bmp"),
    }


PCB = {"group1/1/7_test.jpg": "", "group1/1/7_temp.jpg": ""}


@pytest.mark.parametrize("separator", [" ", ",", "  "])
def test_deeppcb_boxes_are_read_with_spaces_or_commas(tmp_path, separator):
    line = separator.join(["80", "284", "114", "317", "1"])
    reader, entries = read(tmp_path, {**PCB, "group1/1_not/7.txt": f"{line}\n{line}\n"})
    assert reader is deeppcb
    entry = entries["group1/1/7_test.jpg"]
    assert entry.boxes == (box(80, 284, 114, 317, "open"),)
    assert (entry.defect_type, entry.template) == ("open", "group1/1/7_temp.jpg")
    assert entry.warning == "1 repeated boxes dropped"


@pytest.mark.parametrize("text", ["1 2 3 4", "1 2 3 4 7", "a b c d 1", "1 2 3 4 5 6"])
def test_a_broken_deeppcb_line_is_an_error_that_quotes_it(tmp_path, text):
    _, entries = read(tmp_path, {**PCB, "group1/1_not/7.txt": f"1 2 3 4 1\n{text}\n"})
    entry = entries["group1/1/7_test.jpg"]
    assert f"group1/1_not/7.txt line 2: '{text}'" in entry.error
    assert entry.boxes == ()


def test_deeppcb_lists_give_stages_and_show_what_is_absent(tmp_path):
    lists = {
        "trainval.txt": "group1/1/7.jpg group1/1_not/7.txt\ngroup1/1/8.jpg group1/1_not/8.txt\n",
        "group1/1_not/7.txt": "1 2 3 4 1\n5 6 7 8 2\n",
    }
    _, entries = read(tmp_path, {f"PCBData/{name}": text for name, text in {**PCB, **lists}.items()})
    assert entries["PCBData/group1/1/7_test.jpg"].source_stage == "train"
    assert entries["PCBData/group1/1/7_test.jpg"].defect_type == "mixed"
    assert "PCBData/group1/1/8_test.jpg" in entries


def test_a_pcb_template_is_a_good_image_and_its_own_template(tmp_path):
    _, entries = read(tmp_path, {**PCB, "group1/1/8_test.jpg": ""})
    assert set(entries) == {"group1/1/7_test.jpg", "group1/1/7_temp.jpg", "group1/1/8_test.jpg"}
    template = entries["group1/1/7_temp.jpg"]
    assert (template.defect_type, template.source_stage, template.template) == ("good", "train", template.path)


def test_a_pcb_without_template_or_annotation_carries_both_warnings(tmp_path):
    _, entries = read(tmp_path, {**PCB, "group1/1/8_test.jpg": ""})
    warning = entries["group1/1/8_test.jpg"].warning
    assert "no annotation group1/1_not/8.txt" in warning
    assert "no template group1/1/8_temp.jpg" in warning


def test_magnetic_tiles_pair_image_and_mask_and_group_the_exposures_of_one_tile(tmp_path):
    stems = ["MT_Free/Imgs/exp1_num_100", "MT_Crack/Imgs/exp2_num_130", "MT_Free/Imgs/exp1_num_5000"]
    reader, entries = read(tmp_path, [f"{stem}{suffix}" for stem in stems for suffix in (".jpg", ".png")])
    assert reader is magnetic_tile
    free, crack, other = (entries[f"{stem}.jpg"] for stem in stems)
    assert (free.defect_type, crack.defect_type) == ("good", "Crack")
    assert crack.mask == "MT_Crack/Imgs/exp2_num_130.png"
    assert free.group == crack.group != other.group


FABRIC = "guangdong1_round2_train_part1_20190924"
HOLE = {"name": "p1_a.jpg", "defect_name": "破洞", "bbox": [2347.4, 194.92, 2364.01, 229.81]}
STAIN = {"name": "p1_b.jpg", "defect_name": "沾污", "bbox": [1, 2, 3, 4]}


def test_fabric_round_2_adds_up_its_annotation_files_and_groups_by_template_pattern(tmp_path):
    reader, entries = read(
        tmp_path,
        {
            f"{FABRIC}/defect/p1_a/p1_a.jpg": "",
            f"{FABRIC}/defect/p1_a/template_p1.jpg": "",
            f"{FABRIC}/normal/p2_c/template_p2.jpg": "",
            f"{FABRIC}/normal/p2_c/p2_c.jpg": "",
            f"{FABRIC}/Annotations/anno_train.json": [HOLE, HOLE, {**HOLE, "defect_name": "沾污"}],
            "train2/defect/p1_b/p1_b.jpg": "",
            "train2/defect/p1_b/template_p9.jpg": "",
            "train2/Annotations/anno_train.json": [STAIN, {**STAIN, "name": "gone.jpg"}],
            "testB/p3_d/p3_d.jpg": "",
            "testB/p3_d/template_p3.jpg": "",
            "testB/p3_e/p3_e.jpg": "",
            "testB/p4/p4.jpg": "",
            "testB/p4/template_p4.jpg": "",
        },
    )
    assert reader is tianchi_fabric
    a = entries[f"{FABRIC}/defect/p1_a/p1_a.jpg"]
    assert a.boxes == (box(2347.4, 194.92, 2364.01, 229.81, "破洞"), box(2347.4, 194.92, 2364.01, 229.81, "沾污"))
    assert (a.defect_type, a.group, a.warning) == ("mixed", "pattern p1", "1 repeated boxes dropped")
    assert a.template == f"{FABRIC}/defect/p1_a/template_p1.jpg"
    b = entries["train2/defect/p1_b/p1_b.jpg"]
    assert (b.defect_type, b.group, b.template) == ("沾污", "pattern p1", None)
    assert b.warning == "no template template_p1"
    c = entries[f"{FABRIC}/normal/p2_c/p2_c.jpg"]
    assert (c.defect_type, c.source_stage, c.boxes) == ("good", "train", ())
    d = entries["testB/p3_d/p3_d.jpg"]
    assert (d.defect_type, d.source_stage, d.template) == (None, None, "testB/p3_d/template_p3.jpg")
    e = entries["testB/p3_e/p3_e.jpg"]
    assert (e.group, e.template, e.warning) == ("pattern p3", None, "no template template_p3")
    assert entries["testB/p4/p4.jpg"].template == "testB/p4/template_p4.jpg"
    assert set(entries) - {each.path for each in (a, b, c, d, e)} == {"gone.jpg", "testB/p4/p4.jpg"}


def test_fabric_round_1_has_no_templates_and_contradictions_show(tmp_path):
    files = {"Annotations/anno_train.json": [HOLE, STAIN]}
    files |= dict.fromkeys(["defect_Images/p1_a.jpg", "normal_Images/p1_b.jpg", "defect_Images/e.jpg"], "")
    reader, entries = read(tmp_path, files)
    assert reader is tianchi_fabric
    assert entries["defect_Images/p1_a.jpg"].defect_type == "破洞"
    assert entries["defect_Images/p1_a.jpg"].group is None
    assert "normal images, but annotated with 1 boxes" in entries["normal_Images/p1_b.jpg"].error
    assert "without annotation" in entries["defect_Images/e.jpg"].warning
    assert entries["defect_Images/e.jpg"].defect_type is None


def test_a_fabric_test_folder_is_known_by_its_templates(tmp_path):
    reader, entries = read(tmp_path, ["p1_x/p1_x.jpg", "p1_x/template_p1.jpg"])
    assert reader is tianchi_fabric
    assert entries["p1_x/p1_x.jpg"].template == "p1_x/template_p1.jpg"


TILE = "223_89_t20201125085855802_CAM3"
RECORD = {"name": f"{TILE}.jpg", "image_height": 3500, "image_width": 4096, "category": 4, "bbox": [1.5, 2, 30, 44.5]}


def test_tile_round_1_reads_size_boxes_and_tile(tmp_path):
    reader, entries = read(
        tmp_path,
        {
            f"tile/train_imgs/{TILE}.jpg": "",
            "tile/train_imgs/223_89_t20201125085855900_CAM1.jpg": "",
            "tile/testA_imgs/224_1_t20201125085855900_CAM1.jpg": "",
            "tile/train_annos.json": [RECORD, {**RECORD, "bbox": [5, 6, 7, 8]}],
        },
    )
    assert reader is tianchi_tile
    entry = entries[f"tile/train_imgs/{TILE}.jpg"]
    assert entry.boxes == (box(1.5, 2, 30, 44.5, "light block"), box(5, 6, 7, 8, "light block"))
    assert (entry.size, entry.source_stage, entry.group) == ((3500, 4096), "train", "tile 223_89")
    other = entries["tile/train_imgs/223_89_t20201125085855900_CAM1.jpg"]
    assert (other.defect_type, other.group) == ("good", "tile 223_89")
    test = entries["tile/testA_imgs/224_1_t20201125085855900_CAM1.jpg"]
    assert (test.defect_type, test.source_stage) == (None, "test")


def test_tile_round_2_joins_templates_and_both_parts(tmp_path):
    files = {}
    for part, tile in (("a", "272_97_t20201215160809596_CAM1_0"), ("b", "272_97_t20201215160809596_CAM1_1")):
        record = {"name": f"{tile}.jpg", "category": 8, "bbox": [1, 2, 3, 4]}
        files |= {f"{part}/train_imgs/{tile}.jpg": "", f"{part}/train_template_imgs/{tile}_t.jpg": ""}
        files |= {f"{part}/train_annos.json": [record]}
    test = "testB_imgs/300_1_t20201215160809596_CAM1.jpg", "testB_template_imgs/300_1_t20201215160809596_CAM1_t.jpg"
    _, entries = read(tmp_path, files | dict.fromkeys(test, ""))
    shown = entries.pop(test[0])
    assert (shown.template, shown.source_stage, shown.defect_type) == (test[1], "test", None)
    assert entries.pop(test[1]).template == test[1]
    photos = {path: entry for path, entry in entries.items() if "/train_imgs/" in path}
    assert len(photos) == 2
    assert {path for path in entries if path not in photos} == {entry.template for entry in photos.values()}
    for path, entry in photos.items():
        assert entry.template == path.replace("train_imgs", "train_template_imgs").replace(".jpg", "_t.jpg")
        own = entries[entry.template]
        assert (own.defect_type, own.source_stage, own.template) == ("good", "train", own.path)
        assert (entry.defect_type, entry.group) == ("scratch", "tile 272_97")


def test_records_may_come_with_and_without_a_size_in_any_order(tmp_path):
    plain = {key: value for key, value in RECORD.items() if not key.startswith("image_")} | {"bbox": [5, 6, 7, 8]}
    for order, records in (("a", [RECORD, plain]), ("b", [plain, RECORD])):
        _, entries = read(tmp_path / order, {f"train_imgs/{TILE}.jpg": "", "train_annos.json": records})
        (entry,) = entries.values()
        assert (entry.error, entry.size, len(entry.boxes)) == (None, (3500, 4096), 2)


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": "1,2,3,4"},
        {"bbox": None},
        {"category": 0},
        {"category": "edge"},
        {"image_width": None},
        {"image_height": 3501, "image_width": 4096},
    ],
)
def test_a_broken_record_is_an_error_of_its_image_only(tmp_path, change):
    good = {**RECORD, "name": "1_2_t3_CAM1.jpg"}
    files = {f"train_imgs/{TILE}.jpg": "", "train_imgs/1_2_t3_CAM1.jpg": ""}
    _, entries = read(tmp_path, {**files, "train_annos.json": [RECORD, {**RECORD, **change}, good]})
    assert "train_annos.json record 1" in entries[f"train_imgs/{TILE}.jpg"].error
    assert entries["train_imgs/1_2_t3_CAM1.jpg"].error is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("{}", "holds a dict; a list"),
        ("[{}]", "record 0.*`name`"),
        ("[3]", "record 0"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_an_annotation_file_that_is_broken_as_a_whole_raises(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        read(tmp_path, {f"train_imgs/{TILE}.jpg": "", "train_annos.json": text})


def test_a_record_cannot_point_outside_the_data_set(tmp_path):
    _, entries = read(tmp_path, {"train_imgs/x.jpg": "", "train_annos.json": [{**RECORD, "name": "../../x.jpg"}]})
    assert list(entries) == ["train_imgs/x.jpg"]


def test_a_flat_folder_is_all_good(tmp_path):
    reader, entries = read(tmp_path / "nuts", ["1.png", "2.JPG", "notes.txt"])
    assert reader is folder
    assert {(e.path, e.category, e.defect_type) for e in entries.values()} == {
        ("1.png", "nuts", "good"),
        ("2.JPG", "nuts", "good"),
    }


def test_with_a_good_folder_the_others_name_defect_types_or_are_unlabelled(tmp_path):
    _, entries = read(
        tmp_path,
        ["good/1.png", "scratch/deep/1.png", "unlabelled/1.png", "loose.png", "masks/scratch/deep/1_mask.png"],
    )
    assert {path: entry.defect_type for path, entry in entries.items()} == {
        "good/1.png": "good",
        "scratch/deep/1.png": "scratch",
        "unlabelled/1.png": None,
        "loose.png": None,
    }
    assert entries["scratch/deep/1.png"].mask == "masks/scratch/deep/1_mask.png"


def test_without_a_good_folder_other_folders_are_unlabelled(tmp_path):
    _, entries = read(tmp_path, ["camera1/1.png", "camera2/1.png"])
    assert {entry.defect_type for entry in entries.values()} == {None}


def test_a_folder_without_images_is_refused_with_the_accepted_suffixes(tmp_path):
    with pytest.raises(DataError, match=r"no image among 1 files.*\.png"):
        read(tmp_path, ["a.txt"])


def test_every_reader_has_a_name_of_its_own():
    assert len({reader.NAME for reader in READERS}) == len(READERS)
