"""The report of a run: every figure, in words where there is none; one page that needs nothing else."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ssad_ray.config import load_config
from ssad_ray.core.calibration import calibrate
from ssad_ray.core.drawing import colour_map, outline, thumbnail_shape
from ssad_ray.core.images import decode, encode_png
from ssad_ray.core.records import TrueBox
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.datasets.synthetic import write_synthetic
from ssad_ray.methods.artifact import Artifact, save_artifact
from ssad_ray.methods.pixel_reference import PixelReference
from ssad_ray.pipelines.calibrate import NUM_LEAST_NORMAL, calibrated
from ssad_ray.pipelines.evaluate import evaluate_on_test
from ssad_ray.pipelines.folds import assign_folds
from ssad_ray.pipelines.frames import collect_frames, plan_frames
from ssad_ray.pipelines.gate import run_gate
from ssad_ray.pipelines.label import label_online
from ssad_ray.pipelines.prepare import prepare
from ssad_ray.pipelines.report import Models, write_report
from ssad_ray.pipelines.report_chart import draw_chart
from ssad_ray.pipelines.report_page import METRICS, why_missing
from ssad_ray.pipelines.report_pictures import Illustration, choose, true_outline
from ssad_ray.pipelines.run import Run, open_run, read_json, write_json

MODELS = Models("pixel_reference", "draem-1", ("unet-1", "unet-2"), "unet-true-labels", {"zero-shot": "draem-zero"})
BLUR_PX = {
    "pixel_reference": 0.5,
    "draem-zero": 0.7,
    "draem-1": 1.0,
    "unet-1": 1.0,
    "unet-2": 2.0,
    "unet-true-labels": 3.0,
}
QUICK = (
    "resources.score_workers=0",
    "calibration.folds=2",
    "calibration.num_planted=8",
    "gate.num_planted=8",
    "input.size_px=64",
    "input.mode=resize",
)


def silent(title: str) -> Callable[..., None]:
    def ignore(*progress: float) -> None:
        pass

    return ignore


def fit_reference(run: Run, name: str, blur_px: float) -> None:
    """Do what `fit` does, without Ray."""
    rows, config = run.rows("train"), load_config(None, [*QUICK, f"detector.pixel_reference.blur_px={blur_px}"])
    plan = plan_frames(rows, config)
    frames, ids = collect_frames(rows, plan, None, config)
    folds = assign_folds(rows, config)
    members = tuple(PixelReference.from_config(config) for _ in range(config.calibration.folds))
    for fold, member in enumerate(members):
        member.fit(frames.only(np.array([folds[each] for each in ids]) != fold), seed=0)
    artifact = Artifact(name, "pixel_reference", plan, None, config, {}, members)
    draft_path = run.work_path(name)
    save_artifact(artifact, draft_path)
    save_artifact(calibrated(draft_path, rows, config, silent("calibrate")), run.model_path(name))


def make_run(path: Path, data_path: Path, models: Models) -> Run:
    """Make a real run, but for its models: all are per-pixel references, told apart by their smoothing."""
    run = open_run(path, load_config(None, QUICK))
    prepare(run, str(data_path), "full")
    for name in models.names:
        with run.timed(f"fit {name}"):
            fit_reference(run, name, BLUR_PX[name])
        evaluate_on_test(run, name, silent)
    run.promote(models.detector)
    for name in models.segmenters:
        label_online(run, run.champion, silent)
        run_gate(run, name, silent)
    return run


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data_path = write_synthetic(tmp_path_factory.mktemp("data"), 8, 6, 2, height=96, width=128)
    for number, path in enumerate(sorted((data_path / "test/good").iterdir())):
        path.rename(path.with_name(f'<b onload="alert({number})">&.png'))
    (data_path / "train/good/<i>.png").write_bytes(b"no picture")
    run = make_run(tmp_path_factory.mktemp("run"), data_path, MODELS)
    write_report(run, MODELS, silent)
    return run


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data_path = write_synthetic(tmp_path_factory.mktemp("data"), 8, 0, 1, height=96, width=128)
    listed = ["uri,defect_type"]
    listed += [f"{path.relative_to(data_path)},good" for path in sorted((data_path / "train").rglob("*.png"))]
    listed += [f"{path.relative_to(data_path)}," for path in sorted((data_path / "test").rglob("*.png"))]
    (data_path / "list.csv").write_text("\n".join(listed))
    models = Models("pixel_reference", "draem-1", ("unet-1",), None)
    run = make_run(tmp_path_factory.mktemp("run"), data_path / "list.csv", models)
    Path(run.rows("online")[0].uri).unlink()
    write_report(run, models, silent)
    return run


def page_of(run: Run) -> str:
    return (run.path / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects every start tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_figures_hold_what_was_measured(labelled: Run) -> None:
    facts = read_json(labelled.report_path)
    assert facts["champion"] == "unet-2"
    assert facts["segmenter"] == read_json(labelled.evaluation_path("unet-2"))["metrics"]
    assert facts["detector"]["image_auroc"] > 0.5
    assert facts["transfer"].keys() == {"zero-shot"}
    assert facts["yardstick"]["pixel_ap"] != facts["floor"]["pixel_ap"]
    assert [each["labels"] for each in facts["rounds"]] == ["draem-1", "draem-1"]
    assert [each["is_promoted"] for each in facts["rounds"]] == [False, True]
    assert facts["label_quality"]["gates"]["unet-1"]["challenger"]["num_planted"] >= 8
    assert facts["label_quality"]["versions"]["draem-1"]["images"] == sum(facts["counts"]["images"]["online"].values())
    truth = facts["label_quality"]["versions"]["draem-1"]["truth"]
    online = facts["counts"]["images"]["online"]
    assert truth["num_good"] == online["good"]
    assert truth["num_defective"] == sum(online.values()) - online["good"]
    assert 0 < truth["pooled_iou"] < 1
    assert f"{truth['num_found']} of {truth['num_defective']}" in page_of(labelled)
    assert list(facts["counts"]["quarantined"]) == ["train/good/<i>.png"]
    assert facts["seconds"].keys() == {
        *(f"{stage} {name}" for stage in ("fit", "evaluate") for name in MODELS.names),
        *(f"gate {name}" for name in MODELS.segmenters),
        *(f"label with {name}" for name in ("draem-1", "unet-1") if name in facts["label_quality"]["versions"]),
    }
    assert facts["versions"].keys() == {"ssad_ray", "python", "torch", "ray", "numpy", "opencv"}


def test_the_page_needs_nothing_else(labelled: Run) -> None:
    elements = Elements(page_of(labelled))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements.tags}
    for _, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert not re.search(r"https?:|url\(|@import", page_of(labelled))


def test_hostile_file_names_stay_text(labelled: Run) -> None:
    page = page_of(labelled)
    elements = Elements(page)
    assert "<b onload" not in page
    assert "<i>" not in page
    assert re.search(r'<b onload="alert\(\d\)">&\.png', elements.text)
    assert "train/good/<i>.png" in elements.text


def test_every_model_has_a_row_of_figures(labelled: Run) -> None:
    page = page_of(labelled)
    row = page[page.index("<bdi>unet-true-labels</bdi>") :].partition("</tr>")[0]
    assert row.count('<td class="n') == len(METRICS)
    assert all(f">{title}</th>" in page for title in METRICS.values())
    assert [page.index(f"<bdi>{name}</bdi>", page.index("Figures on")) for name in MODELS.names] == sorted(
        page.index(f"<bdi>{name}</bdi>", page.index("Figures on")) for name in MODELS.names
    )


def test_every_picture_has_words(labelled: Run) -> None:
    elements = Elements(page_of(labelled))
    assert all(attributes.get("alt") for attributes in elements.named("img"))
    assert all(attributes.get("aria-label") for attributes in elements.named("svg"))


def test_every_reference_inside_the_page_is_there_once(labelled: Run) -> None:
    elements = Elements(page_of(labelled))
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    wanted = {(attributes["href"] or "")[1:] for attributes in elements.named("use")}
    assert len(ids) == len(set(ids))
    assert wanted <= set(ids)


def test_the_least_normal_good_images_are_shown(labelled: Run) -> None:
    shown = read_json(labelled.report_path)["least_normal"]
    assert len(shown["scores"]) == NUM_LEAST_NORMAL
    assert list(shown["scores"].values()) == sorted(shown["scores"].values(), reverse=True)
    page = page_of(labelled)
    section = page[page.index("The least normal good images") : page.index("<h2>Pictures</h2>")]
    assert section.count("<img") == 2 * NUM_LEAST_NORMAL
    assert all(f'alt="{path}"' in section for path in shown["scores"])


def test_a_defect_among_the_good_images_is_the_least_normal(tmp_path: Path) -> None:
    data_path = write_synthetic(tmp_path / "data", 8, 1, 1, height=96, width=128)
    scratched = sorted((data_path / "train/good").iterdir())[5]
    picture = decode(scratched.read_bytes(), 1 << 20).copy()
    picture[30:50, 60:90] = 0
    scratched.write_bytes(encode_png(picture))
    run = open_run(tmp_path / "run", load_config(None, QUICK))
    prepare(run, str(data_path), "full")
    fit_reference(run, "pixel_reference", 1.0)
    first, *_ = run.artifact("pixel_reference").card["least_normal"]
    assert first["sample_id"].startswith(f"train/good/{scratched.name}@")


@pytest.mark.parametrize(
    ("defect_type", "is_anomalous", "mistake"),
    [
        ("good", True, "false alarm"),
        ("good", False, None),
        ("hole", True, None),
        ("hole", False, "missed"),
        (None, True, None),
        (None, False, None),
    ],
)
def test_a_wrong_verdict_is_named(defect_type: str | None, is_anomalous: bool, mistake: str | None) -> None:
    row = ManifestRow("a.png@0", "a.png", "plate", "g", defect_type=defect_type)
    assert Illustration(row, {"detector": {"is_anomalous": is_anomalous}}, None).mistake("detector") == mistake


def test_good_images_have_nothing_to_outline(labelled: Run) -> None:
    evaluated = read_json(labelled.report_path)["counts"]["evaluated"]["unet-2"]
    assert Elements(page_of(labelled)).text.count("good: nothing to outline") == evaluated["good_images"]


def test_unlabelled_data_gives_pictures_of_the_online_images_and_reasons(unlabelled: Run) -> None:
    facts, text = read_json(unlabelled.report_path), Elements(page_of(unlabelled)).text
    assert set(facts["detector"].values()) == {None}
    assert "yardstick" not in facts
    assert "no figure can be computed" in text
    table = page_of(unlabelled).partition("Figures on")[2].partition("</table>")[0]
    assert "pixel_reference" in table
    assert 'class="n"' not in table
    assert "online images with their automatic labels" in text
    assert "Ground truth" not in text
    pictures = Elements(page_of(unlabelled).partition("<h2>Pictures</h2>")[2]).text
    assert pictures.count("score ") == 2 * (facts["counts"]["images"]["online"]["unlabelled"] - 1)
    assert text.count("not judged: ") == 1


def test_the_report_is_strict_json(unlabelled: Run) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(unlabelled.report_path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_missing_figures_have_a_reason() -> None:
    nothing = dict.fromkeys(METRICS)
    assert len(why_missing(nothing, {"images": 0})) == 1
    reasons = why_missing({**nothing, "map_50": 0.5}, {"good_images": 0, "defective_images": 3})
    assert "3 defective and 0 good" in reasons[0]
    assert "0 of 3" in reasons[1]
    assert why_missing(dict.fromkeys(METRICS, 0.5), {"good_images": 1, "defective_images": 3}) == []


def test_pictures_are_chosen_evenly_over_types() -> None:
    rows = [
        ManifestRow(f"{name}/{i:03d}@0", "", "c", f"{name}{i}", defect_type=name)
        for name, count in (("good", 100), ("scratch", 40), ("dent", 2))
        for i in range(count)
    ]
    chosen = choose(rows, 12)
    assert [row.defect_type for row in chosen] == ["dent"] * 2 + ["good"] * 5 + ["scratch"] * 5
    assert chosen[2].path == "good/000"
    assert chosen[6].path == "good/080"
    assert choose(rows, 1000) == sorted(rows, key=lambda row: row.sample_id)
    assert choose([], 12) == []


def test_a_stage_keeps_its_time_when_it_is_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path, load_config())
    write_json(tmp_path / "seconds.json", {"fit": 12.5})
    with run.timed("fit"):
        pass
    with pytest.raises(KeyboardInterrupt), run.timed("label"):
        raise KeyboardInterrupt
    assert run.seconds == {"fit": 12.5, "label": 0.0}


def test_the_colours_are_anchored_on_the_calibration() -> None:
    maps = list(np.random.default_rng(0).normal(5.0, 1.0, (20, 24, 40)).astype(np.float32))
    calibration = calibrate(((float(each.max()), each) for each in maps), 20, 0.1, 1e-3, 1e-2)
    high, location = calibration.pixel_threshold_high, calibration.map_location
    levels = np.array([[location - 9.0, location, high, 2 * high - location, 99.0]], np.float32)
    brightness = colour_map(levels, calibration).sum(axis=2)[0].astype(int)
    assert brightness[0] == brightness[1] < brightness[2] < brightness[3] == brightness[4]


def test_an_outline_shows_the_smallest_defect_and_holes() -> None:
    mask = np.zeros((1000, 2000), bool)
    mask[990, 1990] = True
    corners = re.findall(r"(\d+) (\d+)", outline(mask, 100, 200))
    assert sorted(corners) == [("199", "100"), ("199", "99"), ("200", "100"), ("200", "99")]
    ring = np.ones((30, 40), bool)
    ring[10:20, 10:30] = False
    assert outline(ring, 30, 40).count("M") == 2
    assert outline(np.zeros((5, 6), bool), 5, 6) == ""


def test_boxes_stand_in_for_a_mask_and_a_broken_mask_for_nothing(tmp_path: Path) -> None:
    limits = load_config().data
    row = ManifestRow("a@0", "", "c", "a", boxes=(TrueBox((10, 20, 30, 60), "x"),), height=100, width=200)
    assert true_outline(row, 50, 100, limits) == "M5 10H15V30H5Z"
    assert true_outline(replace(row, mask_uri=str(tmp_path / "absent.png")), 50, 100, limits) is None
    assert true_outline(replace(row, boxes=()), 50, 100, limits) is None


def test_thumbnails_fit_and_are_never_enlarged() -> None:
    assert thumbnail_shape(100, 200) == (100, 200)
    assert thumbnail_shape(2560, 100) == (256, 10)
    assert thumbnail_shape(100, 6400) == (5, 320)


def test_a_chart_keeps_its_labels_apart_and_inside() -> None:
    names = {name: name for name in ("a", "b", "c", "d")}
    chart = draw_chart([("detector", dict.fromkeys(names, 0.5)), ("round 1", dict.fromkeys(names, 0.95))], names)
    assert chart is not None
    heights = [curve.label_y for curve in chart.curves]
    assert np.diff(heights).min() >= 18
    assert 0 <= heights[0] <= heights[-1] <= chart.height
    assert draw_chart([("detector", {"a": None}), ("round 1", {"a": None})], {"a": "A"}) is None
