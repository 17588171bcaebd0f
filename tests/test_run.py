import fcntl
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ssad_ray.config import RunConfig, dump_config, load_config, validate_config
from ssad_ray.datasets.manifest import ManifestRow, write_manifest
from ssad_ray.datasets.splits import save_split, split
from ssad_ray.datasets.synthetic import write_synthetic
from ssad_ray.errors import ArtifactError, ConfigError, DataError, UnavailableError
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.pipelines.calibrate import share_out
from ssad_ray.pipelines.folds import assign_folds
from ssad_ray.pipelines.prepare import prepare
from ssad_ray.pipelines.run import Run, open_run, write_json, write_text


def rows(count: int, group_size: int = 1) -> list[ManifestRow]:
    return [ManifestRow(f"{i}.png@0", f"/{i}.png", "part", str(i // group_size)) for i in range(count)]


def prepared(path, config, has_begun=True):
    run = Run(path, config)
    write_manifest(rows(2), str(run.manifest_path))
    write_text(run.config_path, dump_config(config))
    write_json(run.split_path, {})
    if has_begun:
        run.model_path("draem-1").mkdir(parents=True)
    return run


def test_a_run_goes_on_with_its_config_and_refuses_another(tmp_path):
    prepared(tmp_path, RunConfig())
    for free in ({"resources": {"train_workers": 2}, "rounds": 3}, {"data": {"max_error_fraction": 0.9}}):
        prepare(open_run(tmp_path, validate_config(free)))
        assert load_config(tmp_path / "config.yaml") == validate_config(free)
    with pytest.raises(ConfigError, match=r"input\.size_px \(128, now 256\)"):
        open_run(tmp_path, validate_config({"input": {"size_px": 256}}))


def test_before_work_has_begun_only_what_the_data_depend_on_is_fixed(tmp_path):
    prepared(tmp_path, RunConfig(), has_begun=False)
    assert open_run(tmp_path, validate_config({"input": {"size_px": 256}})).config.input.size_px == 256
    for fixed in ({"seed": 7}, {"data": {"category": "bolt"}}):
        with pytest.raises(ConfigError, match="different are "):
            open_run(tmp_path, validate_config(fixed))


def test_nothing_is_written_into_a_folder_before_it_is_a_run(tmp_path):
    open_run(tmp_path / "run", RunConfig())
    assert not (tmp_path / "run").exists()
    (tmp_path / "config.yaml").write_text("mine: true")
    write_synthetic(tmp_path / "data", 6, 1, 1, height=64, width=96)
    with pytest.raises(ConfigError, match=r"config\.yaml is there, and .* is no run; name another --out"):
        prepare(open_run(tmp_path, RunConfig()), str(tmp_path / "data"))
    assert (tmp_path / "config.yaml").read_text() == "mine: true"


@pytest.mark.parametrize("name", ["", "champion", "../models/x", "a/b", ".hidden", "x" * 101])
def test_a_name_that_leads_elsewhere_is_no_models(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a model"):
        open_run(tmp_path, RunConfig()).model_path(name)


def test_a_model_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    run = prepared(tmp_path, RunConfig())
    run.refuse_unknown("draem-1")
    with pytest.raises(ArtifactError, match="no model 'unet-1'; there are draem-1"):
        run.refuse_unknown("unet-1")


def test_two_processes_do_not_work_on_one_run(tmp_path):
    run = prepared(tmp_path, RunConfig())
    with run.locked(), pytest.raises(UnavailableError, match="another `ssad` works on"), run.locked():
        pass
    with run.locked():
        pass
    with Run(tmp_path / "new", RunConfig()).locked():
        pass
    assert not (tmp_path / "new").exists()


def test_a_lock_that_was_removed_while_it_was_taken_is_taken_anew(tmp_path, monkeypatch):
    run, flock, locked = prepared(tmp_path, RunConfig()), fcntl.flock, []

    def as_it_vanishes(file, how):
        if not locked:
            (tmp_path / "lock").unlink()
        locked.append(flock(file, how))

    monkeypatch.setattr(fcntl, "flock", as_it_vanishes)
    with run.locked(), pytest.raises(UnavailableError, match="another `ssad` works on"), run.locked():
        pass
    assert len(locked) == 2


def test_small_files_that_are_damaged_are_named_or_do_not_matter(tmp_path):
    run = prepared(tmp_path, RunConfig())
    (tmp_path / "seconds.json").write_text("{")
    with run.timed("fit"):
        pass
    assert list(run.seconds) == ["fit"]
    (tmp_path / "seconds.json").write_text('{"fit": "a", "label": 2}')
    assert run.seconds == {"label": 2}
    for text in ("{", "[]"):
        run.split_path.write_text(text)
        with pytest.raises(ArtifactError, match=r"split\.json .*; put an older one back"):
            prepare(run, str(tmp_path))
    run.split_path.unlink()
    with pytest.raises(ArtifactError, match=r"split\.json is gone"):
        prepare(run, str(tmp_path))
    for content in (b"", b"\xff", b"../x"):
        run.champion_path.write_bytes(content)
        with pytest.raises(ArtifactError, match="champion does not name a model"):
            _ = run.champion


def test_a_run_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match="cannot be written"):
        write_text(tmp_path / "file" / "config.yaml", "seed: 1")
    with pytest.raises(UnavailableError, match=r"file is no folder, or not yours; name another --out"):
        prepare(open_run(tmp_path / "file" / "run", RunConfig()), str(tmp_path))


@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        ({"draem": 2}, r"detector\.fusion\.parts\.memory_bank \(1, now None\)"),
        ({"draem": 2, "memory_bank": 1, "autoencoder": 4}, r"detector\.fusion\.parts\.autoencoder \(None, now 4\)"),
    ],
)
def test_a_part_more_or_less_is_another_config(tmp_path, parts, changed):
    def fusion_of(parts):
        return validate_config({"detector": {"name": "fusion", "fusion": {"parts": parts}}})

    prepared(tmp_path, fusion_of({"draem": 2, "memory_bank": 1}))
    with pytest.raises(ConfigError, match=f"different are {changed}"):
        open_run(tmp_path, fusion_of(parts))


def test_a_run_without_champion_or_data_says_what_to_do(tmp_path):
    run = open_run(tmp_path, RunConfig())
    with pytest.raises(ArtifactError, match="ssad fit"):
        _ = run.champion
    with pytest.raises(DataError, match="--data"):
        run.rows("train")


def test_a_promoted_artifact_is_the_champion(tmp_path):
    run = open_run(tmp_path, RunConfig())
    run.promote("unet-1")
    assert run.champion == "unet-1"


def test_preparing_twice_changes_nothing(tmp_path):
    write_synthetic(tmp_path / "data", num_train=4, num_test_good=2, num_per_defect=2, height=64, width=96)
    run = open_run(tmp_path / "run", RunConfig())
    prepare(run, str(tmp_path / "data"), "full")
    before = run.split_path.read_bytes(), run.manifest_path.read_bytes()
    for again in ((), (str(tmp_path / "data"),), (str(tmp_path / "data"), "full")):
        prepare(run, *again)
    assert (run.split_path.read_bytes(), run.manifest_path.read_bytes()) == before
    assert len(run.rows("train")) == 4
    assert all(row.defect_type == "good" for row in run.rows("train"))
    assert {row.sample_id for row in run.rows("online")}.isdisjoint(row.sample_id for row in run.rows("test"))


@pytest.mark.parametrize(
    ("data", "protocol", "reason"),
    [
        ("other", None, "made with --data .*data, now came .*other"),
        (None, "routine1", "--protocol full, now came rout"),
    ],
)
def test_a_run_keeps_its_images(tmp_path, data, protocol, reason):
    write_synthetic(tmp_path / "data", num_train=4, num_test_good=2, num_per_defect=2, height=64, width=96)
    run = open_run(tmp_path / "run", RunConfig())
    prepare(run, str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=reason):
        prepare(run, data and str(tmp_path / data), protocol)


def test_a_new_run_asks_for_data(tmp_path):
    with pytest.raises(DataError, match="no data yet; `ssad fit` and"):
        prepare(open_run(tmp_path / "run", RunConfig()))


def test_one_of_several_products_must_be_chosen(tmp_path):
    for name in ("left", "right"):
        plate = write_synthetic(tmp_path, num_train=4, num_test_good=2, num_per_defect=1, height=64, width=96)
        (tmp_path / "data").mkdir(exist_ok=True)
        plate.rename(tmp_path / "data" / name)
    run = open_run(tmp_path / "run", RunConfig())
    with pytest.raises(ConfigError, match=r"2 products \(left, right\).*data\.category"):
        prepare(run, str(tmp_path / "data"), "full")
    chosen = open_run(tmp_path / "chosen", validate_config({"data": {"category": "left"}}))
    prepare(chosen, str(tmp_path / "data"), "full")
    assert {row.category for row in chosen.rows("online")} == {"left"}


def test_broken_images_of_another_product_are_not_counted(tmp_path):
    plate = write_synthetic(tmp_path, num_train=4, num_test_good=2, num_per_defect=1, height=64, width=96)
    (tmp_path / "data").mkdir()
    shutil.copytree(plate, tmp_path / "data" / "left")
    plate.rename(tmp_path / "data" / "right")
    for path in (tmp_path / "data" / "right").glob("t*/*/*.png"):
        path.write_bytes(b"not an image")
    run = open_run(tmp_path / "run", validate_config({"data": {"category": "left", "max_error_fraction": 0.0}}))
    prepare(run, str(tmp_path / "data"))
    assert {row.category for row in run.rows("train")} == {"left"}


def test_too_many_unreadable_images_stop_a_run(tmp_path):
    folder = write_synthetic(tmp_path / "data", num_train=4, num_test_good=2, num_per_defect=1, height=64, width=96)
    for path in sorted(folder.glob("t*/*/*.png"))[:9]:
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"9 of 12 images cannot be used.*max_error_fraction"):
        prepare(open_run(tmp_path / "run", RunConfig()), str(tmp_path / "data"), "full")
    patient = validate_config({"data": {"max_error_fraction": 0.8}})
    with pytest.raises(DataError, match="3 good images to train on came"):
        prepare(open_run(tmp_path / "run", patient), str(tmp_path / "data"), "full")


def test_folds_are_even_seeded_and_keep_groups_together():
    folds = assign_folds(rows(20), RunConfig())
    assert sorted(np.bincount(list(folds.values()))) == [6, 7, 7]
    assert folds == assign_folds(rows(20), RunConfig())
    assert folds != assign_folds(rows(20), RunConfig(seed=1))
    grouped = assign_folds(rows(20, group_size=4), RunConfig())
    assert all(len({grouped[f"{i}.png@0"] for i in range(at, at + 4)}) == 1 for at in range(0, 20, 4))


def test_too_few_good_images_for_the_folds_are_refused():
    with pytest.raises(DataError, match=r"2 independent good images.*calibration\.folds"):
        assign_folds(rows(2), RunConfig())


@pytest.mark.parametrize(("total", "shares"), [(7, [1, 2, 2, 2]), (8, [2, 2, 2, 2]), (1, [0, 0, 0, 1])])
def test_plants_are_shared_out_to_the_last_one(total, shares):
    assert sorted(share_out(total, rows(4)).values()) == shares


def test_a_detector_that_does_not_exist_uses_up_no_folder(tmp_path):
    for name in ("drame", "unet"):
        with pytest.raises(ConfigError, match=f"detector.name: no .* called '{name}'; known ones are auto, pixel_ref"):
            open_run(tmp_path / "run", validate_config({"detector": {"name": name}}))
    for name in ("drame", "unet", "fusion", "auto"):
        with pytest.raises(ConfigError, match=f"fusion.parts: no .* called '{name}'; known ones are pixel_reference"):
            open_run(tmp_path / "run", validate_config({"detector": {"fusion": {"parts": {"draem": 1, name: 1}}}}))
    assert open_run(tmp_path / "run", RunConfig()).config == RunConfig()


@pytest.mark.parametrize(
    ("protocol", "templates", "name", "detector"),
    [
        ("full", 1.0, "auto", "draem"),
        ("routine2", 1.0, "auto", "template_difference"),
        ("routine2", 0.8, "auto", "template_difference"),
        ("routine2", 0.2, "auto", "gan_inversion"),
        ("routine2", 0.0, "auto", "gan_inversion"),
        ("routine2", 1.0, "autoencoder", "autoencoder"),
    ],
)
def test_the_detector_suits_protocol_and_images_unless_it_is_named(tmp_path, protocol, templates, name, detector):
    run = open_run(tmp_path / "run", validate_config({"detector": {"name": name}}))
    good = [replace(row, defect_type="good") for row in rows(20)]
    stages = split(good, protocol, 0)
    online = [row for row in good if stages[row.sample_id] == "online"]
    shown = {row.sample_id for row in online[: round(templates * len(online))]}
    for_all = [replace(row, template_uri="/template" if row.sample_id in shown else None) for row in good]
    write_manifest(for_all, str(run.manifest_path))
    save_split(stages, "data", protocol, 0, str(run.split_path))
    assert run.detector == detector


def test_targets_stay_with_their_frames():
    frames = TrainingFrames(
        np.zeros((5, 2, 3, 3), np.uint8),
        np.array([True, False, True, False, False]),
        np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 2, 3), np.float32),
        np.full((3, 2, 3), 0.5, np.float32),
        has_places=True,
    )
    kept = frames.only(np.array([True, False, True, True, True]))
    assert kept.has_places
    assert [float(kept.planes(index)[1].max()) for index in range(4)] == [0.0, 0.0, 1.0, 2.0]
    assert [float(kept.planes(index)[2].min()) for index in range(4)] == [1.0, 1.0, 0.5, 0.5]
