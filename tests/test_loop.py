"""The whole loop, through the command line, on a small synthetic product."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from ssad_ray.cli import app
from ssad_ray.datasets.synthetic import write_synthetic
from ssad_ray.pipelines.loop import _segmenter

pytestmark = pytest.mark.ray

SMALL = [
    f"--set={field}"
    for field in (
        "input.size_px=48",
        "calibration.folds=2",
        "calibration.num_planted=8",
        "gate.num_planted=8",
        "detector.draem.width=8",
        "detector.draem.training.steps=12",
        "detector.draem.training.checkpoint_every=2",
        "segmenter.unet.width=8",
        "segmenter.unet.training.steps=12",
        "segmenter.unet.training.checkpoint_every=2",
    )
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    plate = write_synthetic(root, num_train=8, num_test_good=4, num_per_defect=2, height=64, width=96)
    (plate / "train" / "good" / "broken.png").write_bytes(b"not an image")
    return plate


def ssad(*args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from ssad_ray.cli import main; main()", *args]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out


def encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def figures(run: Path) -> dict:
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "evaluation").glob("*.json"))}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    out = finish(ssad("loop", "--data", str(data), "--out", str(run), *SMALL))
    assert str(run / "report.html") in out
    assert re.search(r"^segmenter +0\.\d{3} ", out, re.MULTILINE)
    champion = (run / "models" / "champion").read_text().strip()
    assert pq.read_table(run / "labels" / champion)["uri"].to_pylist()
    return run


def test_the_loop_goes_from_good_images_to_a_report(finished):
    report = json.loads((finished / "report.json").read_text())
    for role in ("floor", "detector", "segmenter"):
        assert 0.0 <= report[role]["pixel_auroc"] <= 1.0
    assert report["champion"] in ("draem-1", "unet-1")
    assert "train/good/broken.png" in report["counts"]["quarantined"]
    assert "<html" in (finished / "report.html").read_text()


@pytest.mark.parametrize(
    ("detector", "options"),
    [
        (
            "context_svdd",
            [
                *("input.size_px=96", "resources.train_workers=1"),
                *(f"detector.context_svdd.{each}" for each in ("patch_px=16", "width=8", "training.steps=4")),
            ],
        ),
        ("cutpaste_sla", ["detector.cutpaste_sla.training.steps=4"]),
        (
            "fusion",
            [
                *("input.size_px=96", "detector.fusion.parts={memory_bank: 1, autoencoder: 2}"),
                *("detector.autoencoder.width=8", "detector.autoencoder.training.steps=4"),
            ],
        ),
    ],
)
def test_every_detector_goes_through_the_loop_by_its_name(data, tmp_path, detector, options):
    settings = [*SMALL, *(f"--set={each}" for each in (f"detector.name={detector}", *options))]
    shown = CliRunner().invoke(app, ["loop", "--data", str(data), "--out", str(tmp_path / "run"), *settings])
    assert shown.exit_code == 0, shown.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0.0 <= report["detector"]["pixel_auroc"] <= 1.0
    assert report["champion"] in (f"{detector}-1", "unet-1")
    assert pq.read_table(tmp_path / "run" / "labels" / f"{detector}-1").num_rows > 0


def test_a_finished_loop_is_not_done_again(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("models/*/*")}
    finish(ssad("loop", "--out", str(finished)))  # with the config of the run
    assert {path: path.stat().st_mtime_ns for path in finished.glob("models/*/*")} == before


def test_a_segmenter_that_learnt_from_other_labels_does_not_stop_a_loop():
    learnt_from = {"unet-1": "by-hand", "unet-2": "draem-1"}
    run = SimpleNamespace(
        model_path=lambda name: SimpleNamespace(exists=lambda: name in learnt_from),
        described=lambda name: SimpleNamespace(card={"labels": learnt_from[name]}),
    )
    assert _segmenter(run, "draem-1", 1, []) == "unet-2"
    assert _segmenter(run, "draem-1", 2, ["unet-2"]) == "unet-3"
    assert _segmenter(run, "by-hand", 1, []) == "unet-1"


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("label", ["--model", "nope"], "no model 'nope'; there are draem-1, pixel_reference, unet-1"),
        ("evaluate", ["--model", "../../x"], "'../../x' cannot name a model"),
        ("train", ["--labels", "draem-1", "--name", "champion"], "'champion' cannot name a model"),
    ],
)
def test_a_model_that_cannot_be_is_refused_at_once(finished, verb, options, message, monkeypatch):
    monkeypatch.setattr("ssad_ray.pipelines.session.session", None)  # no Ray is started for that
    shown = CliRunner().invoke(app, [verb, "--out", str(finished), *options])
    assert message in shown.exception.detail


@pytest.mark.parametrize("verb", ["label", "evaluate"])
def test_a_folder_that_is_no_run_is_named(tmp_path, verb):
    shown = CliRunner().invoke(app, [verb, "--out", str(tmp_path)])
    assert "is no run; `ssad fit` and `ssad loop` make one" in shown.exception.detail


def test_a_loop_killed_twice_ends_with_the_same_figures(finished, data, tmp_path):
    for stage in ("work/draem-1/*.checkpoint", "work/unet-1/*.checkpoint"):
        process = ssad("loop", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL)
        while process.poll() is None and not list((tmp_path / "run").glob(stage)):
            time.sleep(0.02)
        assert process.poll() is None, "the loop ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(ssad("loop", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL))
    assert figures(tmp_path / "run") == figures(finished)


def test_a_loop_over_broken_files_of_every_kind_finishes_and_names_each(tmp_path):
    plate = write_synthetic(tmp_path, num_train=20, num_test_good=6, num_per_defect=3, height=64, width=96)
    train, test = sorted((plate / "train/good").iterdir()), sorted((plate / "test").rglob("*.png"))
    masks = sorted((plate / "ground_truth").rglob("*.png"))
    picture = Image.open(train[4])
    broken = {
        train[0]: train[0].read_bytes()[:500],
        train[1]: b"",
        train[2]: b"no picture",
        train[3]: encoded(picture.convert("CMYK"), "TIFF"),
        train[4]: encoded(Image.merge("RGBA", [*picture.split(), Image.new("L", picture.size, 128)]), "PNG"),
        train[5]: encoded(picture.resize((400, 300)), "PNG"),
        test[0]: test[0].read_bytes()[:900],
        masks[-1]: encoded(Image.new("L", (50, 40), 255), "PNG"),
    }
    for path, content in broken.items():
        path.write_bytes(content)
    finish(ssad("loop", "--data", str(plate), "--out", str(tmp_path / "run"), "--set=data.max_image_px=20000", *SMALL))
    report = json.loads((tmp_path / "run/report.json").read_text())
    named = {str(path.relative_to(plate)) for path in broken if path not in masks}
    named.add(f"test/{masks[-1].parent.name}/{masks[-1].name.replace('_mask', '')}")
    assert report["counts"]["quarantined"].keys() == named
    assert all(report["counts"]["quarantined"].values())
    assert sum(sum(stage.values()) for stage in report["counts"]["images"].values()) == len(train) + len(test) - len(
        named
    )


def test_a_label_can_be_made_and_learnt_from_step_by_step(finished, data, tmp_path):
    run = tmp_path / "run"
    finish(ssad("fit", "--data", str(data), "--out", str(run), *SMALL))
    assert "images" in finish(ssad("label", "--out", str(run)))
    finish(ssad("train", "--out", str(run), "--labels", "draem-1"))
    out = finish(ssad("evaluate", "--out", str(run), "--model", "unet-1"))
    assert "pixel_auroc" in out
    assert figures(run)["unet-1"] == figures(finished)["unet-1"]


def test_rounds_tiles_a_foreign_start_and_the_yardstick_work_together(finished, data, tmp_path):
    run, source = tmp_path / "run", finished / "models" / "draem-1"
    options = ["--protocol=full", "--yardstick", f"--init-from={source}", "--set=rounds=2", "--set=input.mode=tile"]
    finish(ssad("loop", "--data", str(data), "--out", str(run), *SMALL, *options, "--set=input.frames_per_image=2"))
    report = json.loads((run / "report.json").read_text())
    assert set(report["transfer"]) == {"zero-shot", "from scratch"}
    assert 0.0 <= report["yardstick"]["pixel_auroc"] <= 1.0
    assert [each["segmenter"] for each in report["rounds"]] == ["unet-1", "unet-2"]
    assert set(figures(run)) == {
        *("pixel_reference", "draem-1", "draem-zero-shot", "draem-scratch", "unet-1", "unet-2", "unet-true-labels")
    }
    labels = [json.loads(path.read_text())["lineage"]["model"] for path in run.glob("labels/*/_lineage.json")]
    assert {"draem-1", report["champion"]} <= set(labels)


def test_a_start_of_another_method_is_refused(finished, data, tmp_path):
    source = finished / "models" / "pixel_reference"
    process = ssad("loop", "--data", str(data), "--out", str(tmp_path / "run"), f"--init-from={source}", *SMALL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert "is a pixel_reference, the run's detector is draem" in err


def test_a_demo_killed_while_it_makes_its_pictures_makes_them_anew(tmp_path):
    (tmp_path / "data.partial" / "plate").mkdir(parents=True)
    (tmp_path / "data.partial" / "plate" / "half.png").write_bytes(b"half")
    process = ssad("demo", "--out", str(tmp_path), "--set=data.category=cup")
    _, err = process.communicate(timeout=120)
    assert "no usable image of cup" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["data"]


def test_a_name_stands_for_one_label_version(finished):
    (finished / "labels" / "other").mkdir()
    for path in (finished / "labels" / "draem-1").iterdir():
        (finished / "labels" / "other" / path.name).write_bytes(path.read_bytes())
    process = ssad("train", "--out", str(finished), "--labels", "other")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "unet-1 exists and learnt from the labels draem-1" in err


def test_a_wrong_request_ends_with_one_message_and_its_exit_code(tmp_path):
    process = ssad("loop", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "nowhere" in err
    assert "Traceback" not in err
