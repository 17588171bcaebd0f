import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ssad_ray.cli import app
from ssad_ray.config import DataConfig, RunConfig
from ssad_ray.core.images import decode, encode_png
from ssad_ray.core.propagation import overlap
from ssad_ray.core.rng import generator
from ssad_ray.errors import ArtifactError, DataError
from ssad_ray.pipelines import propagate_masks as module
from ssad_ray.pipelines.propagate_masks import mask_name, propagate_masks

HEIGHT, WIDTH = 120, 160
LOCAL = RunConfig(resources={"score_workers": 0})
SHIFTS = {"00": (0, 0), "01": (6, -4), "02": (-5, 3)}


def silent(_):
    return lambda *_: None


def part(seed, x=0, y=0):
    """A picture of a part that lies a few pixels to the right and further down."""
    noise = generator(seed, "part").standard_normal((HEIGHT + 40, WIDTH + 40, 3)).astype(np.float32)
    blobs = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 5))
    picture = np.clip(blobs / blobs.std() * 40 + 128, 0, 255).astype(np.uint8)
    return picture[20 - y : 20 - y + HEIGHT, 20 - x : 20 - x + WIDTH]


def outlined(x=0, y=0):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30 + y : 90 + y, 40 + x : 110 + x] = True
    return mask


@pytest.fixture
def parts(tmp_path):
    """Three pictures of one part, one of another, and a broken file; a mask for the first."""
    (tmp_path / "parts" / "good").mkdir(parents=True)
    (tmp_path / "parts" / "unlabelled").mkdir()
    for name, shift in SHIFTS.items():
        (tmp_path / "parts" / "good" / f"{name}.png").write_bytes(encode_png(part(0, *shift)))
    (tmp_path / "parts" / "unlabelled" / "other.png").write_bytes(encode_png(part(9)))
    (tmp_path / "parts" / "unlabelled" / "cut.png").write_bytes(encode_png(part(3))[:900])
    draw(tmp_path, "good/00.png", outlined())
    return tmp_path


def draw(folder, name, mask):
    path = folder / "drawn" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(mask))


def carry(folder, out="masks", config=LOCAL):
    return propagate_masks(str(folder / "parts"), str(folder / "drawn"), str(folder / out), config, silent)


def table(folder, out="masks"):
    return {
        row["sample_id"].partition("@")[0]: row for row in pq.read_table(folder / out / "masks.parquet").to_pylist()
    }


def mask_of(folder, name):
    return decode((folder / "masks" / name).read_bytes(), 10**6)[..., 0] > 127


def test_every_image_of_the_part_gets_the_mask_where_the_part_lies(parts):
    assert carry(parts) == (3, 5)
    np.testing.assert_array_equal(mask_of(parts, "good/00.png"), outlined())
    for name, shift in SHIFTS.items():
        assert overlap(mask_of(parts, f"good/{name}.png"), outlined(*shift)) > 0.97


def test_what_could_not_be_carried_is_a_row_with_the_reason_and_no_mask(parts):
    carry(parts)
    rows = table(parts)
    assert list(rows) == ["good/00.png", "good/01.png", "good/02.png", "unlabelled/cut.png", "unlabelled/other.png"]
    assert rows["good/01.png"]["error"] is None
    assert rows["good/01.png"]["reference"].startswith("good/00.png@")
    assert rows["good/01.png"]["cycle_iou"] > 0.97
    assert "cut off" in rows["unlabelled/cut.png"]["error"]
    assert "something else than its reference" in rows["unlabelled/other.png"]["error"]
    assert not (parts / "masks" / "unlabelled").exists()


def test_a_mask_comes_from_the_image_that_is_most_alike(parts):
    (parts / "parts" / "unlabelled" / "again.png").write_bytes(encode_png(part(9, 4, 4)))
    draw(parts, "unlabelled/other.png", outlined())
    assert carry(parts) == (5, 6)
    assert table(parts)["unlabelled/again.png"]["reference"].startswith("unlabelled/other.png@")


@pytest.mark.ray
def test_ray_changes_no_mask(parts):
    carry(parts)
    carry(parts, "there", RunConfig(resources={"score_workers": 1, "object_store_bytes": 128 << 20}))
    assert table(parts) == table(parts, "there")
    for name in SHIFTS:
        there = parts / "there" / "good" / f"{name}.png"
        assert there.read_bytes() == (parts / "masks" / "good" / f"{name}.png").read_bytes()


def test_a_run_that_was_stopped_goes_on_where_it_was(parts):
    carry(parts)

    def stopping(title):
        def advance(done, *_):
            if title == "carry masks" and done == 3:
                raise KeyboardInterrupt

        return advance

    folders = [str(parts / name) for name in ("parts", "drawn", "stopped")]
    with pytest.raises(KeyboardInterrupt):
        propagate_masks(*folders, LOCAL, stopping)
    (done,) = (parts / "stopped").glob("unfinished-*")
    assert not (parts / "stopped" / "masks.parquet").exists()
    kept = parts / "stopped" / "good" / "00.png"
    kept.write_bytes(b"not carried again")
    assert carry(parts, "stopped") == (3, 5)
    assert kept.read_bytes() == b"not carried again"
    assert table(parts, "stopped") == table(parts)
    assert not done.exists()


def test_what_failed_is_tried_again(parts, monkeypatch):
    few = LOCAL.model_copy(update={"data": DataConfig(max_error_fraction=0.3)})
    with monkeypatch.context() as patched:
        patched.setattr(module, "propagate", lambda *_: 1 / 0)
        with pytest.raises(DataError, match=r"failed that were sound .* run the same command again"):
            carry(parts, config=few)
    assert carry(parts, config=few) == (3, 5)


def test_a_list_of_no_image_is_refused(parts):
    (parts / "parts.csv").write_text("uri\n")
    with pytest.raises(DataError, match="names no image"):
        propagate_masks(str(parts / "parts.csv"), str(parts / "drawn"), str(parts / "masks"), LOCAL, silent)


def test_with_other_masks_an_unfinished_folder_is_refused(parts):
    (parts / "masks" / "unfinished-0123").mkdir(parents=True)
    (parts / "masks" / "unfinished-0123" / "begun").touch()
    with pytest.raises(ArtifactError, match="holds files already"):
        carry(parts)


def test_a_folder_that_holds_something_is_refused(parts):
    carry(parts)
    with pytest.raises(ArtifactError, match=r"masks holds files already; .* name another --out"):
        carry(parts)


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("good/7.png", outlined(), r"good/7\.png: no image belongs to this mask\. .* for example good/00\.png"),
        ("unlabelled/cut.png", outlined(), r"cut\.png: its image cannot be used: the PNG file is cut off"),
        ("good/01.png", np.zeros((HEIGHT, WIDTH), bool), "nothing is inside; draw white"),
        ("good/01.png", np.ones((HEIGHT, 9), bool), r"01\.png: the mask is 120x9 \(HxW\), its image 120x160"),
    ],
)
def test_a_drawn_mask_that_cannot_be_used_stops_everything_before_it_begins(parts, name, mask, message):
    draw(parts, name, mask)
    with pytest.raises(DataError, match=message):
        carry(parts)
    assert not (parts / "masks").exists()


def test_without_a_drawn_mask_it_says_how_one_is_called(parts):
    (parts / "drawn" / "good" / "00.png").unlink()
    with pytest.raises(DataError, match=r"no PNG file is there; .* for example good/00\.png"):
        carry(parts)


def test_two_images_never_share_a_mask(parts):
    (parts / "parts" / "good" / "00.bmp").write_bytes(cv2.imencode(".bmp", part(0, 1, 1))[1].tobytes())
    with pytest.raises(DataError, match=r"would share the mask good/00\.png; rename one"):
        carry(parts)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("good/00.png", "good/00.png"),
        ("a.b/c d.JPEG", "a.b/c d.png"),
        ("s3://bucket/parts/1.tif", "s3/bucket/parts/1.png"),
        ("/data/../../etc/1.png", "data/etc/1.png"),
    ],
)
def test_a_mask_lies_below_its_folder_whatever_its_image_is_called(path, name):
    assert mask_name(path) == name


@pytest.mark.ray
def test_the_verb_says_how_many_images_have_a_mask(parts):
    arguments = ["propagate-masks", str(parts / "parts"), "--drawn", str(parts / "drawn")]
    shown = CliRunner().invoke(app, [*arguments, "--out", str(parts / "masks")])
    assert shown.exit_code == 0, shown.output
    assert "3 of 5 images have a mask; masks.parquet says why the others have none" in shown.output
