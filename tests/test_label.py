import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssad_ray.config import RunConfig
from ssad_ray.core.calibration import calibrate
from ssad_ray.core.framing import Frames, make_plan
from ssad_ray.core.images import encode_png
from ssad_ray.core.records import Sample
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.errors import ArtifactError, DataError
from ssad_ray.labels.versions import list_versions, read_labels, read_lineage, write_labels
from ssad_ray.methods.artifact import Artifact, load_artifact, save_artifact
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.judging import judge
from ssad_ray.methods.pixel_reference import PixelReference
from ssad_ray.pipelines.label import label, label_online
from ssad_ray.pipelines.session import session

HEIGHT, WIDTH = 96, 160


def config(workers):
    return RunConfig(resources={"score_workers": workers, "object_store_bytes": 128 << 20})


def good_image(number, scale=1):
    noise = np.random.default_rng(number).normal(0, 6, (HEIGHT * scale, WIDTH * scale, 3))
    return np.clip(np.linspace(40, 200, WIDTH * scale)[:, None] + noise, 0, 255).astype(np.uint8)


def save_reference(path, is_calibrated=True):
    images = [good_image(number) for number in range(24)]
    plan = make_plan(images, config(0).input)
    method = PixelReference.from_config(config(0))
    method.fit(TrainingFrames.of_good(np.stack([Frames(image, plan)[0] for image in images[:12]])), seed=0)
    artifact = Artifact("pixel_reference-1", "pixel_reference", plan, None, config(0), {}, (method,))
    if is_calibrated:
        scored = (artifact.score(image) for image in images[12:])
        artifact = replace(artifact, calibration=calibrate(scored, 12, 0.1, 1e-3, 1e-2))
    save_artifact(artifact, path)


def save_images(folder):
    rows = []
    for number in range(20):
        image = good_image(100 + number)
        if number % 3 == 0:
            image[20:40, 30 + number : 60 + number] = 255 - image[20:40, 30 + number : 60 + number]
        path = folder / f"{number:02d}.png"
        path.write_bytes(encode_png(image))
        rows.append(ManifestRow(f"{path.name}@{number}", str(path), "plate", "g"))
    (folder / "cut.png").write_bytes((folder / "00.png").read_bytes()[:2000])
    rows.append(ManifestRow("cut", str(folder / "cut.png"), "plate", "g"))
    rows.append(ManifestRow("twin", rows[1].uri, "plate", "g", error="the same picture as 01.png"))
    return rows


def verdicts(root, version):
    """Verdicts by sample, less the time at which they were made."""

    def timeless(region):
        return replace(region, provenance=replace(region.provenance, time=""))

    found = read_labels(str(root), version)
    return {v.sample_id: replace(v, regions=tuple(map(timeless, v.regions))) for v in found}


def label_many(root):
    """What the killed driver runs: one large image under many names."""
    rows = [ManifestRow(f"{number:03d}", str(root / "large.png"), "plate", "g") for number in range(64)]
    return label(root / "artifact", rows, str(root / "labels"), "v1", config(1))


@pytest.fixture
def rows(tmp_path):
    return save_images(tmp_path)


def test_labels_without_ray_say_what_is_wrong_with_each_image(tmp_path, rows):
    save_reference(tmp_path / "artifact")
    steps = []
    version = label(
        tmp_path / "artifact",
        rows,
        str(tmp_path / "labels"),
        "v1",
        config(0),
        progress=lambda done, total: steps.append((done, total)),
    )
    found = verdicts(tmp_path / "labels", "v1")
    assert list(found) == [row.sample_id for row in rows]
    assert version.counts["images"] == 22
    assert version.counts["errors"] == 2
    assert "cut off" in found["cut"].error
    assert found["twin"].error == "the same picture as 01.png"
    defective = found["03.png@3"]
    assert defective.is_anomalous
    assert (defective.height, defective.width) == (HEIGHT, WIDTH)
    x0, y0, x1, y1 = max(defective.regions, key=lambda region: region.area_px).box
    assert max(abs(x0 - 33), abs(y0 - 20), abs(x1 - 63), abs(y1 - 40)) < 8
    assert steps[-1] == (22, 22)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_a_store_that_is_away_seals_nothing_and_is_asked_again(tmp_path, rows, workers):
    save_reference(tmp_path / "artifact")
    labels = str(tmp_path / "labels")
    away = [Path(row.uri) for row in rows[:15]]
    for path in away:
        path.rename(path.with_suffix(".away"))
    with pytest.raises(DataError, match=r"of 21 images failed .*no such file"):
        label(tmp_path / "artifact", rows, labels, "v1", config(workers))
    assert list_versions(labels) == []
    for path in away:
        path.with_suffix(".away").rename(path)
    assert label(tmp_path / "artifact", rows, labels, "v1", config(workers)).counts["errors"] == 2


def test_labels_that_a_model_did_not_make_or_that_are_gone_are_not_taken_for_its_own(tmp_path, rows):
    save_reference(tmp_path / "pixel_reference-1")
    labels = str(tmp_path / "labels")
    run = SimpleNamespace(
        timed=lambda _: nullcontext(),
        model_path=lambda name: tmp_path / name,
        rows=lambda _: rows,
        labels_path=Path(labels),
        config=config(0),
    )
    assert label_online(run, "pixel_reference-1", lambda _: None) == "pixel_reference-1"
    assert label_online(run, "pixel_reference-1", lambda _: None) == "pixel_reference-1"
    lineage = replace(read_lineage(labels, "pixel_reference-1").lineage, parent="pixel_reference-1")
    write_labels(labels, "unet-1", read_labels(labels, "pixel_reference-1"), lineage)
    with pytest.raises(ArtifactError, match="unet-1 was not made by unet-1, but by pixel_reference-1 and edited"):
        label_online(run, "unet-1", lambda _: None)
    next((tmp_path / "labels" / "pixel_reference-1").glob("*.parquet")).unlink()
    with pytest.raises(ArtifactError, match=r"lacks .*\.parquet; put it back"):
        label_online(run, "pixel_reference-1", lambda _: None)


def test_what_no_threshold_compares_with_is_an_error_and_not_a_normal_image(tmp_path, rows):
    save_reference(tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    state = artifact.members[0].state()
    artifact.members[0].load_state({name: np.full_like(value, np.nan) for name, value in state.items()})
    sample = Sample("a", rows[0].uri, "plate", "g")
    with pytest.raises(DataError, match="pixel_reference-1 gave the score nan"):
        judge(artifact, sample, Path(rows[0].uri).read_bytes(), config(0).data, datetime.now(UTC))


def test_an_artifact_without_calibration_is_refused(tmp_path, rows):
    save_reference(tmp_path / "artifact", is_calibrated=False)
    with pytest.raises(ArtifactError, match="not calibrated"):
        label(tmp_path / "artifact", rows, str(tmp_path / "labels"), "v1", config(0))


def test_a_version_that_exists_is_refused_before_any_work(tmp_path, rows):
    save_reference(tmp_path / "artifact")
    label(tmp_path / "artifact", rows, str(tmp_path / "labels"), "v1", config(0))
    with pytest.raises(ArtifactError, match="already"):
        label(tmp_path / "artifact", rows, str(tmp_path / "labels"), "v1", config(2))


@pytest.mark.ray
def test_ray_changes_no_verdict_and_a_killed_run_goes_on_without_loss_or_repetition(tmp_path, rows):
    save_reference(tmp_path / "artifact")
    (tmp_path / "large.png").write_bytes(encode_png(good_image(1, scale=10)))
    labels = tmp_path / "labels"
    label(tmp_path / "artifact", rows, str(labels), "v0", config(0))

    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_label, pathlib; "
    script += f"test_label.label_many(pathlib.Path({str(tmp_path)!r}))"
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 240
    while len(done := set(labels.glob("v1.unfinished/*/done/*.parquet"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert list_versions(str(labels)) == ["v0"]

    with session(config(2).resources):
        version = label_many(tmp_path)
        label(tmp_path / "artifact", rows, str(labels), "v2", config(2))
    assert version.counts["images"] == 64
    assert sorted(verdict.sample_id for verdict in read_labels(str(labels), "v1")) == [f"{n:03d}" for n in range(64)]
    kept = {path.stem for path in done if ".pending" not in path.name}
    assert all(any(part.startswith(stem) for part in version.parts) for stem in kept)
    assert sorted(path.name for path in labels.iterdir()) == ["v0", "v1", "v2"]
    assert verdicts(labels, "v2") == verdicts(labels, "v0")
