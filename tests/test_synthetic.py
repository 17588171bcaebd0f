from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad_ray.core.images import decode, decode_mask
from ssad_ray.core.rng import generator
from ssad_ray.datasets.synthetic import SMALLEST_DEFECT_PX, render_defect, render_good, write_synthetic
from ssad_ray.datasets.synthetic_defects import DEFECTS
from ssad_ray.errors import ConfigError

KINDS = sorted(DEFECTS)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_a_good_plate_is_a_pure_function_of_its_stream():
    first, again, other = (render_good(generator(seed)) for seed in (0, 0, 1))
    assert first.shape == (160, 224, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 2


def test_good_plates_differ_in_pose_and_light_but_show_one_product():
    plates = np.stack([cv2.GaussianBlur(render_good(generator(0, i)), (0, 0), 6) for i in range(12)]).astype(float)
    spread, structure = plates.std(axis=0).mean(), plates.mean(axis=0).std()
    assert 3 < spread < 0.5 * structure


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_exactly_where_the_defect_is(kind):
    for i in range(6):
        # Up to the defect both draw the same plate and camera from the same stream.
        good = render_good(generator(0, kind, i)).astype(np.float32)
        image, mask = render_defect(kind, generator(0, kind, i))
        change = np.abs(cv2.blur(image - good, (5, 5))).max(axis=2)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert mask.shape == (160, 224)
        assert SMALLEST_DEFECT_PX <= mask.sum() < 0.2 * mask.size
        assert change[~near].max() < 10
        assert change[mask].max() > 1.5 * change[~near].max()
        assert change[mask].mean() > 4 * change[~near].mean()


@settings(max_examples=40)
@given(kind=st.sampled_from(KINDS), height=st.integers(64, 300), width=st.integers(64, 300), seed=st.integers(0, 9999))
def test_every_defect_shows_at_any_size(kind, height, width, seed):
    image, mask = render_defect(kind, generator(seed), height, width)
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert mask.sum() >= SMALLEST_DEFECT_PX


def test_the_layout_is_that_of_mvtec(tmp_path):
    category = write_synthetic(tmp_path, 3, 2, 1, height=80, width=112, seed=5)
    assert category == tmp_path / "plate"
    expected = {f"train/good/{i:03d}.png" for i in range(3)} | {f"test/good/{i:03d}.png" for i in range(2)}
    for kind in KINDS:
        expected |= {f"test/{kind}/000.png", f"ground_truth/{kind}/000_mask.png"}
    assert files_below(category).keys() == expected
    assert decode((category / "test/dent/000.png").read_bytes(), 80 * 112).shape == (80, 112, 3)
    mask = decode_mask((category / "ground_truth/dent/000_mask.png").read_bytes(), 80, 112)
    np.testing.assert_array_equal(mask, render_defect("dent", generator(5, "plate", "test", "dent", 0), 80, 112)[1])


def test_an_image_does_not_depend_on_how_many_are_made(tmp_path):
    few = files_below(write_synthetic(tmp_path / "few", 1, 1, 1, height=64, width=90))
    many = files_below(write_synthetic(tmp_path / "many", 3, 2, 2, height=64, width=90))
    other = files_below(write_synthetic(tmp_path / "other", 1, 1, 1, height=64, width=90, seed=1))
    assert all(many[name] == data for name, data in few.items())
    assert all(other[name] != data for name, data in few.items() if "ground_truth" not in name)
    assert len({many[name] for name in many if "ground_truth" not in name}) == 3 + 2 + 2 * len(KINDS)


def test_an_existing_data_set_is_not_written_over(tmp_path):
    write_synthetic(tmp_path, 1, 0, 0, height=64, width=64)
    with pytest.raises(ConfigError, match="is not empty; name another folder or delete it"):
        write_synthetic(tmp_path, 1, 0, 0, height=64, width=64)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height": 63}, "63x224.* 64 to 2048"),
        ({"width": 4096}, "160x4096"),
        ({"num_train": -1}, r"0 to 100000; got \[-1"),
        ({"num_per_defect": 10**6}, "1000000"),
    ],
)
def test_sizes_and_numbers_out_of_bounds_are_refused(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        write_synthetic(tmp_path, **wrong)
    assert not any(tmp_path.iterdir())
