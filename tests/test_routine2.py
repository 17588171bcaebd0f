"""Routine 2 from end to end, through the command line, on made data in the formats of the two Tianchi contests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tianchi_fixtures import FABRIC_KINDS, FABRIC_PARTS, TILE_FOLDER, write_fabric, write_tiles

from ssad_ray.config import DataConfig, load_config
from ssad_ray.core.records import Verdict
from ssad_ray.datasets.catalog import catalog
from ssad_ray.labels.versions import read_labels
from ssad_ray.pipelines.run import Run

SMALL = (
    *("calibration.folds=2", "calibration.num_planted=12", "calibration.false_alarm_level=0.2", "gate.num_planted=12"),
    *("segmenter.unet.width=8", "segmenter.unet.training.steps=6", "segmenter.unet.training.batch_size=8"),
    *("input.size_px=64", "input.frames_per_image=4"),
    *("detector.gan_inversion.width=8", "detector.gan_inversion.crop_px=32"),
    *("detector.gan_inversion.training.steps=100", "detector.gan_inversion.training.batch_size=8"),
    "detector.gan_inversion.training.learning_rate=3e-3",
)


def loop(data: Path, path: Path) -> Run:
    """Run the whole loop on data and return its folder."""
    command = [sys.executable, "-c", "from ssad_ray.cli import main; main()", "loop", "--protocol=routine2"]
    command += ["--data", str(data), "--out", str(path), *(f"--set={field}" for field in SMALL)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "map_10" in done.stdout
    return Run(path, load_config(path / "config.yaml"))


def labels_of(run: Run, model: str) -> dict[str, Verdict]:
    return {each.sample_id: each for each in read_labels(str(run.labels_path), model)}


def is_located(verdict: Verdict, boxes: list[tuple[float, ...]]) -> bool:
    """Whether the middle of the strongest region lies in one of the boxes."""
    if not verdict.regions:
        return False
    left, top, right, bottom = max(verdict.regions, key=lambda region: region.score).box
    x, y = (left + right) / 2, (top + bottom) / 2
    return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes)


def check_report(run: Run, model: str) -> dict:
    """Check that the object level is all there, and return what is known of the labels."""
    report = json.loads(run.report_path.read_text())
    figures = report["detector"]
    assert figures["pixel_auroc"] is None
    assert figures["map_10"] >= figures["map_30"] >= figures["map_50"] >= figures["map"] >= 0.0
    assert 0.0 < figures["tianchi_score"] <= 1.0
    assert report["counts"]["quarantined"] == {}
    page = run.report_path.with_suffix(".html").read_text()
    truth = report["label_quality"]["versions"][model]["truth"]
    assert f"{truth['boxes']['num_found']} of {truth['boxes']['num_true']}" in page
    return figures | truth


def test_the_fixtures_are_read_as_what_they_are(tmp_path):
    cloth = catalog(str(write_fabric(tmp_path / "cloth", 3, 6)), DataConfig()).rows
    assert [(row.error, row.warning) for row in cloth] == [(None, None)] * 9
    assert {box.defect_type for row in cloth for box in row.boxes} == set(FABRIC_KINDS)
    assert len({row.group for row in cloth}) == 3 + 3
    assert all(row.template_uri.rpartition("/")[0] == row.uri.rpartition("/")[0] for row in cloth)
    text = (tmp_path / "cloth" / FABRIC_PARTS[0] / "Annotations" / "anno_train.json").read_text()
    assert r'"defect_name": "\u6cbe\u6c61", "bbox": [' in text

    tiles = catalog(str(write_tiles(tmp_path / "tiles", 2, 3)), DataConfig()).rows
    assert [(row.error, row.warning) for row in tiles] == [(None, None)] * 15
    assert [row.defect_type for row in tiles].count("good") == 6
    kinds = {"edge", "corner", "white dot", "light block", "dark dot", "aperture"}
    assert {box.defect_type for row in tiles for box in row.boxes} == kinds
    assert {(row.height, row.width) for row in tiles} == {(144, 192), (84, 96)}
    assert len({row.group for row in tiles}) == 5
    record, *_ = json.loads((tmp_path / "tiles" / TILE_FOLDER / "train_annos.json").read_text())
    assert list(record) == ["name", "image_height", "image_width", "category", "bbox"]


@pytest.mark.ray
def test_cloth_is_labelled_by_its_templates(tmp_path):
    run = loop(write_fabric(tmp_path / "data", 12, 12), tmp_path / "run")
    assert run.detector == "template_difference"
    assert run.artifact("unet-1").method == "template_unet"
    found = check_report(run, "template_difference-1")
    assert found["num_found"] == found["num_defective"] == found["boxes"]["num_true"] == found["boxes"]["num_found"] > 3
    assert found["map_10"] > 0.7
    verdicts = labels_of(run, "template_difference-1")
    for row in run.rows("online"):
        assert row.defect_type == "good" or is_located(verdicts[row.sample_id], [box.box for box in row.boxes])


@pytest.mark.ray
def test_tiles_without_templates_are_labelled_by_gan_inversion(tmp_path):
    run = loop(write_tiles(tmp_path / "data", 12, 6, belt=0.0), tmp_path / "run")
    assert run.detector == "gan_inversion"
    assert run.artifact("unet-1").method == "unet"
    found = check_report(run, "gan_inversion-1")
    verdicts = labels_of(run, "gan_inversion-1")
    rows = [row for row in run.rows("online") if row.boxes]
    located = [is_located(verdicts[row.sample_id], [box.box for box in row.boxes]) for row in rows]
    assert sum(located) > 0.7 * len(located) > 3, located
    assert found["map_10"] > 0.3
    assert found["boxes"]["num_found"] > 0.5 * found["boxes"]["num_true"]
