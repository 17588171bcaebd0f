import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad_ray.core.rng import generator
from ssad_ray.core.synthesis.canvas import ANYWHERE, VISIBLE, visible_change
from ssad_ray.core.synthesis.families import FAMILIES, SMALLEST_PLANT_PX, plant
from ssad_ray.core.synthesis.perlin import perlin_noise
from ssad_ray.core.synthesis.shapes import box_outline, filled
from ssad_ray.core.synthesis.textures import continued
from ssad_ray.errors import ConfigError

ALL = sorted(FAMILIES)


def a_product(height: int = 96, width: int = 128) -> np.ndarray:
    """A structured colour image: a gradient, rings, a little texture."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rings = 40 * np.sin(0.35 * np.hypot(y - height / 2, x - width / 2))
    noise = np.random.default_rng(0).normal(0, 3, (height, width))
    grey = 90 + 0.3 * x + rings + noise
    return np.clip(np.stack([grey, grey * 0.9, grey * 0.7 + 20], axis=-1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def product() -> np.ndarray:
    return a_product()


@pytest.mark.parametrize("family", ALL)
def test_every_family_shows_on_a_structured_image(family, product):
    shown = [FAMILIES[family](product, generator(0, family, i))[1].any() for i in range(30)]
    assert np.mean(shown) > 0.8


@pytest.mark.parametrize("family", ALL)
def test_only_the_masked_pixels_changed_visibly(family, product):
    for i in range(20):
        planted, mask = FAMILIES[family](product, generator(1, family, i))
        np.testing.assert_array_equal(mask, visible_change(product, planted))
        signed = planted.astype(np.int16) - product
        assert np.abs(signed).max(axis=2)[mask].all()
        seen = np.abs(cv2.blur(signed, (3, 3))).max(axis=2) >= VISIBLE
        assert not (seen & (np.abs(signed).max(axis=2) >= VISIBLE) & ~mask).any()


@pytest.mark.parametrize("family", ALL)
def test_a_plant_is_a_pure_function_of_image_and_stream(family, product):
    before = product.copy()
    first, first_mask = FAMILIES[family](product, generator(2, family))
    second, second_mask = FAMILIES[family](product, generator(2, family))
    other, _ = FAMILIES[family](product, generator(3, family))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first_mask, second_mask)
    np.testing.assert_array_equal(product, before)
    assert not np.shares_memory(first, product)
    assert not np.array_equal(first, other)


@settings(max_examples=60)
@given(
    family=st.sampled_from(ALL),
    height=st.integers(64, 200),
    width=st.integers(64, 200),
    seed=st.integers(0, 2**31),
    grey=st.booleans(),
)
def test_planting_works_at_any_size(family, height, width, seed, grey):
    image = a_product(height, width)
    image = np.repeat(image[..., :1], 3, axis=2) if grey else image
    planted, mask = plant(image, generator(seed), [family], other=a_product(width, height))
    assert planted.shape == image.shape
    assert planted.dtype == np.uint8
    assert mask.shape == (height, width)
    assert mask.dtype == np.bool_
    assert mask.sum() >= SMALLEST_PLANT_PX or np.array_equal(planted, image)
    if grey:
        assert (planted == planted[..., :1]).all()


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("level", [0, 127, 255])
def test_constant_images_are_planted_or_returned_unchanged(family, level):
    image = np.full((64, 90, 3), level, np.uint8)
    planted, mask = plant(image, generator(0, family), [family])
    assert mask.any() or np.array_equal(planted, image)


@pytest.mark.parametrize("family", ALL)
def test_nothing_is_planted_in_a_template(family, product):
    template = 255 - product
    pair = np.concatenate([product, template], axis=2)
    planted, mask = plant(pair, generator(0, family), [family], other=np.concatenate([product, template], axis=2))
    alone, mask_alone = plant(product, generator(0, family), [family], other=product)
    np.testing.assert_array_equal(planted[..., 3:], template)
    np.testing.assert_array_equal(planted[..., :3], alone)
    np.testing.assert_array_equal(mask, mask_alone)
    assert mask.any()


def test_a_mask_too_small_for_a_plant_gives_the_image_back():
    image = np.full((64, 90, 3), 127, np.uint8)
    planted, mask = plant(image, generator(0), ["deform"])
    assert not mask.any()
    np.testing.assert_array_equal(planted, image)
    assert not np.shares_memory(planted, image)


def test_a_broken_out_piece_shows_what_is_at_the_edge_of_the_frame():
    image = np.full((80, 120, 3), (10, 60, 30), np.uint8)
    image[1:-1, 1:-1] = 200
    np.testing.assert_allclose(ANYWHERE.background(image), (10, 60, 30))


def test_large_bodies_are_planted_too(product):
    areas = [plant(product, generator(0, i), ["blob"])[1].mean() for i in range(80)]
    assert max(areas) > 0.08
    assert min(areas) < 0.005


def test_a_family_that_shows_nothing_makes_room_for_another():
    image = np.full((64, 90, 3), 127, np.uint8)
    assert all(plant(image, generator(0, i), ["deform", "blob"])[1].any() for i in range(30))


@pytest.mark.parametrize("families", [[], ["scar", "scratches"]])
def test_unknown_families_are_refused_by_name(product, families):
    with pytest.raises(ConfigError, match=r"blob, cutpaste, deform, missing, perlin, poisson, scar.*got \["):
        plant(product, generator(0), families)


def test_speckles_of_like_textures_are_not_visible_but_a_shifted_area_is():
    rng = np.random.default_rng(0)
    before = np.full((64, 80, 3), 128, np.uint8)
    speckled = np.clip(before + 9 * (rng.random((64, 80, 1)) < 0.01), 0, 255).astype(np.uint8)
    assert not visible_change(before, speckled).any()
    after = before.copy()
    after[10:20, 30:50, 1] += VISIBLE
    expected = np.zeros((64, 80), np.bool_)
    expected[10:20, 30:50] = True
    np.testing.assert_array_equal(visible_change(before, after), expected)
    after[10:20, 30:50, 1] -= 1
    assert not visible_change(before, after).any()


def test_perlin_noise_is_zero_at_lattice_points_and_matches_the_textbook_formula():
    noise = perlin_noise((24, 40), (3, 5), generator(0))
    np.testing.assert_allclose(noise[::8, ::8], 0.0, atol=1e-6)
    angle = generator(0).uniform(0.0, 2 * np.pi, (4, 6))
    y, x, (row, column) = 13 / 8, 22 / 8, (1, 2)

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    expected = 0.0
    for j, i in ((0, 0), (0, 1), (1, 0), (1, 1)):
        dy, dx = y - row - j, x - column - i
        ramp = np.sin(angle[row + j, column + i]) * dy + np.cos(angle[row + j, column + i]) * dx
        expected += (1 - fade(abs(dy))) * (1 - fade(abs(dx))) * ramp
    assert noise[13, 22] == pytest.approx(np.sqrt(2) * expected, abs=1e-5)


def test_a_box_covers_exactly_its_pixels():
    coverage = filled((20, 30), [box_outline((9.5, 14.5), 9.0, 13.0, 0.0)])
    assert coverage.shape == (20, 30)
    assert np.argwhere(coverage > 0.9).min(axis=0).tolist() == [5, 8]
    assert np.argwhere(coverage > 0.9).max(axis=0).tolist() == [14, 21]


def test_a_continuation_keeps_what_is_known_and_stays_between_its_values():
    image = a_product().astype(np.float32)
    known = np.ones(image.shape[:2], np.float32)
    known[30:60, 40:90] = 0.0
    result = continued(image, known)
    np.testing.assert_allclose(result[known > 0], image[known > 0], atol=1e-3)
    assert result.min() >= image.min() - 1.0
    assert result.max() <= image.max() + 1.0
    flat = continued(np.full_like(image, 77.0), known)
    np.testing.assert_allclose(flat, 77.0, atol=1e-3)
