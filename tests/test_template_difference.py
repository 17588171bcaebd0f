from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ssad_ray.config import validate_config
from ssad_ray.core import warp
from ssad_ray.core.rng import generator
from ssad_ray.methods.base import ComparesWithTemplate, Method, TrainingFrames
from ssad_ray.methods.pixel_reference import PixelReference
from ssad_ray.methods.template_difference import TemplateDifference
from ssad_ray.methods.template_pairs import as_photographed

HEIGHT, WIDTH = 128, 192
HOLE = slice(40, 46), slice(70, 76)
Image = NDArray[np.uint8]


@cache
def cloth() -> Image:
    """A coloured stripe pattern with dots."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    stripes = 120 + 40 * np.sign(np.sin(x / 6)) + 20 * np.sign(np.sin(y / 9))
    dots = 60 * ((x % 24 - 12) ** 2 + (y % 32 - 16) ** 2 < 20)
    return cv2.GaussianBlur(np.stack([stripes, stripes - dots, stripes + dots / 2], axis=2), (0, 0), 0.7).astype(
        np.uint8
    )


def board() -> Image:
    """Conductors, black and white."""
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for row in range(10, HEIGHT, 22):
        cv2.line(picture, (5, row), (WIDTH - 20, row + 12), (0, 0, 0), 5)
        cv2.circle(picture, (WIDTH - 20, row), 8, (0, 0, 0), -1)
    return picture


PICTURES = {"cloth": cloth, "board": board}


def taken(template: Image, index: int, dx: float = 0.0, dy: float = 0.0) -> Image:
    """Return a photograph of a template, displaced and noisy."""
    moved = cv2.warpAffine(
        template, np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]]), (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE
    )
    rng = generator(index, "taken")
    return np.clip(moved + rng.uniform(-1, 1) + rng.normal(0, 2.5, moved.shape), 0, 255).astype(np.uint8)


def pair(image: Image, template: Image) -> Image:
    return np.concatenate([image, template], axis=2)


def with_hole(image: Image) -> Image:
    image = image.copy()
    image[HOLE] = 255 - image[HOLE]
    return image


def with_stain(image: Image) -> Image:
    """Ten grey levels at most, over some sixty pixels, centred on row 80 and column 130."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    stain = 10 * np.exp(-((y - 80) ** 2 + (x - 130) ** 2) / (2 * 15**2))
    return np.clip(image.astype(float) + np.where(image > 127, -1, 1) * stain[..., None], 0, 255).astype(np.uint8)


def unfitted(radius_px: int = 1) -> TemplateDifference:
    section = {"template_difference": {"radius_px": radius_px}}
    return TemplateDifference.from_config(validate_config({"detector": section}))


@cache
def fitted(kind: str, true_pairs: int, radius_px: int = 1) -> TemplateDifference:
    """Fit on photographs of the template, or, if there are none, on the template alone."""
    template = PICTURES[kind]()
    method = unfitted(radius_px)
    images = [taken(template, index) for index in range(true_pairs)] or [template]
    method.fit(TrainingFrames.of_good(np.stack([pair(image, template) for image in images])), 0)
    return method


def mapped(method: Method, image: Image, template: Image) -> NDArray[np.float32]:
    return method.maps(pair(image, template)[np.newaxis])[0]


def test_it_says_that_it_compares_with_a_template():
    assert isinstance(unfitted(), ComparesWithTemplate)
    assert not isinstance(PixelReference.from_config(validate_config({})), ComparesWithTemplate)


@pytest.mark.parametrize("true_pairs", [0, 1, 8])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_hole_and_a_faint_large_stain_are_found_where_they_are(kind, true_pairs):
    method, template = fitted(kind, true_pairs), PICTURES[kind]()
    good = max(mapped(method, taken(template, index), template).max() for index in range(100, 104))
    hole = mapped(method, with_hole(taken(template, 200)), template)
    stain = mapped(method, with_stain(taken(template, 201)), template)
    assert hole.max() > 1.1 * good
    assert stain.max() > 1.1 * good
    y, x = np.unravel_index(hole.argmax(), hole.shape)
    assert 39 <= y <= 46
    assert 69 <= x <= 76
    y, x = np.unravel_index(stain.argmax(), stain.shape)
    assert np.hypot(y - 80, x - 130) < 20


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -1)])
def test_a_pixel_of_misregistration_is_no_alarm(kind, dx, dy):
    method, template = fitted(kind, 0), PICTURES[kind]()
    off = mapped(method, taken(template, 300, dx, dy), template)
    hole = mapped(method, with_hole(taken(template, 301)), template)
    assert off.max() < 1.5
    assert off.max() < 0.8 * hole.max()


def test_a_radius_is_how_far_edges_may_be_off():
    template = board()
    image = taken(template, 0, 2, 0)
    tolerant, strict = (fitted("board", 0, radius_px)._residuals(pair(image, template)) for radius_px in (2, 1))
    assert np.mean(tolerant.beyond_HWC > 60) == 0.0
    assert np.mean(strict.beyond_HWC > 60) > 0.001


def test_what_is_beyond_the_band_is_that_of_a_plain_search_of_the_neighbourhood():
    rng = generator(0, "band")
    image, template = (rng.integers(0, 256, (9, 13, 3)).astype(np.uint8) for _ in range(2))
    residuals = unfitted(radius_px=1)._residuals(pair(image, template))
    near = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
    for y, x in np.ndindex(9, 13):
        values = np.array([template[y + dy, x + dx] for dy, dx in near if 0 <= y + dy < 9 and 0 <= x + dx < 13], int)
        here = image[y, x].astype(int)
        beyond = np.maximum(here - values.max(axis=0), 0) + np.maximum(values.min(axis=0) - here, 0)
        np.testing.assert_array_equal(residuals.beyond_HWC[y, x], beyond)
    np.testing.assert_array_equal(residuals.signed_HWC, image.astype(int) - template)


def test_a_few_bad_pairs_among_the_good_do_no_harm():
    template = cloth()
    images = [taken(template, index) for index in range(9)]
    method = unfitted()
    images[3][20:100, 20:100] = 255
    method.fit(TrainingFrames.of_good(np.stack([pair(image, template) for image in images])), 0)
    clean = fitted("cloth", 8)
    for name, values in method.state().items():
        np.testing.assert_allclose(values, clean.state()[name], rtol=0.3, atol=0.02)


def test_an_image_made_of_a_template_shows_the_template():
    template = cloth()
    made = as_photographed(template, generator(0))
    assert made.shape == template.shape
    assert 1.0 < np.abs(made.astype(int) - template).mean() < 12.0
    assert np.corrcoef(made.reshape(-1), template.reshape(-1))[0, 1] > 0.9


def test_a_large_template_is_photographed_part_by_part_as_if_it_were_at_once(monkeypatch):
    template = cloth()
    whole = as_photographed(template, generator(0))
    monkeypatch.setattr(warp, "_PART_PX", (20, 4096))
    parts = as_photographed(template, generator(0))
    assert np.mean(parts != whole) < 0.001  # rounding
    assert as_photographed(np.zeros((4, 33_000, 3), np.uint8), generator(0)).max() < 20


def test_true_pairs_say_how_noisy_good_images_are():
    template = cloth()
    clean, noisy = (fitted("cloth", true_pairs).usual_signed for true_pairs in (0, 8))
    assert abs(noisy[0] - np.abs(taken(template, 0).astype(float) - template).std()) < 1.5
    assert noisy[1] < clean[1]  # these pairs lie exactly; those that are made of the template do not


@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_templates_and_tiny_frames_give_finite_maps(level):
    plain = np.full((1, 32, 48, 6), level, np.uint8)
    method = unfitted()
    method.fit(TrainingFrames.of_good(plain), 0)
    assert all(np.isfinite(values).all() for values in method.state().values())
    maps = method.maps(plain)
    assert maps.max() < 1.5
    assert maps.shape == (1, 32, 48)
    assert np.isfinite(method.maps(np.full((2, 1, 3, 6), level, np.uint8))).all()
