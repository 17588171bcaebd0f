"""An image and its template: laid on top of each other, refused where they do not fit, and through the pipeline."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ssad_ray.config import DataConfig, validate_config
from ssad_ray.core.records import Sample
from ssad_ray.core.rng import generator
from ssad_ray.errors import DataError
from ssad_ray.labels.versions import read_labels
from ssad_ray.methods.showing import with_template
from ssad_ray.pipelines.fit import fit
from ssad_ray.pipelines.gate import run_gate
from ssad_ray.pipelines.label import label_online
from ssad_ray.pipelines.prepare import prepare
from ssad_ray.pipelines.run import open_run
from ssad_ray.pipelines.session import session
from ssad_ray.pipelines.train import train_on_labels

HEIGHT, WIDTH = 128, 160
LIMITS = DataConfig()
SAMPLE = Sample("board@0", "/board.png", "pcb", "board@0")
TRAINING = {"steps": 60, "batch_size": 4, "learning_rate": 0.004}
SMALL = {
    "calibration": {"folds": 2, "num_planted": 8},
    "gate": {"num_planted": 8},
    "segmenter": {"unet": {"width": 8, "training": TRAINING}},
}


def silent(_title):
    return lambda *_: None


def board(index: int) -> np.ndarray:
    """Tracks and pads."""
    rng = generator(index, "board")
    image = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    for _ in range(14):
        y, x = int(rng.integers(HEIGHT)), int(rng.integers(WIDTH))
        cv2.rectangle(image, (x, y), (x + int(rng.integers(6, 60)), y + int(rng.integers(6, 20))), (200, 190, 180), -1)
    return image


def photographed(image: np.ndarray, index: int) -> np.ndarray:
    """The same board a little elsewhere, with noise."""
    moved = np.roll(image, (index % 3, -(index % 2)), (0, 1)).astype(float)
    return np.clip(moved + generator(index, "noise").normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def save(path, image) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return str(path)


def test_the_template_lies_under_the_image(tmp_path):
    template = board(0)
    image = np.roll(template, (3, -5), (0, 1))
    sample = replace(SAMPLE, template_uri=save(tmp_path / "t.png", template))
    shown = with_template(image, sample, LIMITS)
    assert shown.shape == (HEIGHT, WIDTH, 6)
    np.testing.assert_array_equal(shown[..., :3], image)
    inside = np.s_[8:-8, 8:-8]
    assert np.abs(shown[..., 3:][inside].astype(int) - image[inside]).mean() < 2


def test_a_template_lies_under_another_photograph_of_itself():
    of_its_own = replace(SAMPLE, template_uri=SAMPLE.uri)
    shown = with_template(board(0), of_its_own, LIMITS)
    np.testing.assert_array_equal(shown[..., 3:], board(0))
    assert 1 < np.abs(shown[..., :3].astype(int) - board(0)).mean() < 10
    np.testing.assert_array_equal(with_template(board(0), of_its_own, LIMITS), shown)
    other = with_template(board(0), replace(of_its_own, sample_id="another"), LIMITS)
    assert not np.array_equal(other, shown)


def test_a_template_that_is_missing_broken_or_of_something_else_is_refused(tmp_path):
    wrong = save(tmp_path / "wrong.png", board(1))
    (tmp_path / "cut.png").write_bytes((tmp_path / "wrong.png").read_bytes()[:200])
    for uri, complaint in (
        (None, "it has no template, and the model compares with one"),
        (wrong, r"its template .*wrong.png shows something else: they correlate by 0\.\d\d, needed are 0\.\d"),
        (str(tmp_path / "cut.png"), r"its template .*cut.png cannot be used: .*cut off"),
    ):
        with pytest.raises(DataError, match=complaint):
            with_template(board(0), replace(SAMPLE, template_uri=uri), LIMITS)


@pytest.mark.ray
def test_boards_are_labelled_by_their_templates_and_a_wrong_template_is_a_row_with_the_reason(tmp_path):
    folder = tmp_path / "data" / "group1"
    for index in range(8):
        image = photographed(board(index), index)
        image[60:72, 70:84] = (60, 160, 40)
        save(folder / "1" / f"{index}_test.jpg", image)
        save(folder / "1" / f"{index}_temp.jpg", board(index))
        (folder / "1_not").mkdir(exist_ok=True)
        (folder / "1_not" / f"{index}.txt").write_text("70 60 84 72 5\n")
    run, detector, segmenter = open_run(tmp_path / "run", validate_config(SMALL)), "template_difference-1", "unet-1"
    with session(run.config.resources):
        prepare(run, str(tmp_path / "data"), "routine2")
        assert run.detector == "template_difference"
        wrong, *right = run.rows("online")
        save(Path(wrong.template_uri.removeprefix("file://")), board(8))
        fit(run, detector, run.detector, silent)
        run.promote(detector)
        label_online(run, detector, silent)
        train_on_labels(run, segmenter, detector, detector, silent)
        assert run.artifact(segmenter).method == "template_unet"
        label_online(run, segmenter, silent)
        assert "planted defects found" in run_gate(run, segmenter, silent).reason
    assert len(right) == 3
    for model in (detector, segmenter):
        verdicts = {each.sample_id: each for each in read_labels(str(run.labels_path), model)}
        assert "shows something else" in verdicts[wrong.sample_id].error
        for row in right:
            best = max(verdicts[row.sample_id].regions, key=lambda region: region.score)
            x0, y0, x1, y1 = best.box
            assert x0 < 77 < x1
            assert y0 < 66 < y1
