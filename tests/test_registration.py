from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ssad_ray.core.registration import MIN_CORRELATION, Registered, register
from ssad_ray.core.rng import generator

HEIGHT, WIDTH = 240, 320
MARGIN = 60
Image = NDArray[np.uint8]


@cache
def scenery(seed: int = 0, period: int | None = None) -> Image:
    """Blobs of many sizes in colour, larger than the pictures cut out of it; repeated if a period is given."""
    rng = generator(seed, "scenery")
    height, width = HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN
    rows, columns = (height, width) if period is None else (period, period)
    noise = rng.standard_normal((rows, columns, 3)).astype(np.float32)
    blobs = sum(
        cv2.GaussianBlur(np.tile(noise, (3, 3, 1)), (0, 0), sigma)[rows : 2 * rows, columns : 2 * columns] * sigma
        for sigma in (2, 5)
    )
    picture = np.tile(blobs, (height // rows + 1, width // columns + 1, 1))[:height, :width]
    return np.clip(picture / picture.std() * 40 + 128, 0, 255).astype(np.uint8)


def binary(picture: Image) -> Image:
    return np.where(picture[..., :1] > 128, 255, 0).astype(np.uint8).repeat(3, axis=2)


def cut(picture: Image, matrix: NDArray[np.float64] | None = None) -> Image:
    """Return the middle of a picture, moved: matrix maps (x, y, 1) in the cut to (x, y) in the unmoved cut."""
    moved = np.eye(3)
    if matrix is not None:
        moved[:2] = matrix
    moved[:2, 2] += MARGIN
    return cv2.warpAffine(picture, moved[:2], (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)


def similarity(degrees: float, scale: float, dx: float, dy: float) -> NDArray[np.float64]:
    """Turn and scale about the centre of the picture, then shift."""
    matrix = cv2.getRotationMatrix2D(((WIDTH - 1) / 2, (HEIGHT - 1) / 2), degrees, scale)
    matrix[:, 2] += (dx, dy)
    return matrix


def furthest_off(found: Registered, matrix: NDArray[np.float64]) -> float:
    """Return how far the affine map is off at the corners, in pixels."""
    corners = np.array([(x, y, 1) for x in (0, WIDTH - 1) for y in (0, HEIGHT - 1)])
    return float(np.hypot(*((found.warp.matrix_23 - matrix) @ corners.T)).max())


def difference(found: Registered, image: Image) -> NDArray[np.float64]:
    return np.abs(found.template.astype(float) - image).mean(axis=2)


@pytest.mark.parametrize("kind", ["grey levels", "binary"])
@pytest.mark.parametrize(
    ("degrees", "scale", "dx", "dy"),
    [(0, 1, 0, 0), (0, 1, 23, -41), (0, 1, -3.4, 2.7), (1.5, 1, 0, 0), (-1, 1.02, 5, 9), (0, 0.98, -20, 0)],
)
def test_a_moved_template_is_found_to_half_a_pixel(kind, degrees, scale, dx, dy):
    picture = scenery() if kind == "grey levels" else binary(scenery())
    matrix = similarity(degrees, scale, dx, dy)
    found = register(cut(picture), cut(picture, matrix))
    assert furthest_off(found, matrix) < 0.5
    assert found.correlation > 0.95
    assert found.template.shape == (HEIGHT, WIDTH, 3)


def test_a_template_that_is_the_image_is_left_as_it_is():
    image = cut(scenery())
    found = register(image, image)
    np.testing.assert_array_equal(found.template, image)
    assert found.is_covered.all()
    assert found.correlation == 1.0


def test_brightness_and_contrast_are_brought_to_the_images():
    template = cut(scenery())
    image = np.clip(template * 0.7 + (10, 30, 50), 0, 255).astype(np.uint8)
    assert difference(register(template, image), image).mean() < 1.0


def test_where_no_template_lies_the_image_stands_for_it():
    template, image = cut(scenery()), cut(scenery(), similarity(0, 1, -30, 12))
    found = register(template, image)
    expected = np.ones((HEIGHT, WIDTH), bool)
    expected[:, :30] = False
    expected[-12:] = False
    assert np.mean(found.is_covered != expected) < 0.01
    np.testing.assert_array_equal(found.template[~found.is_covered], image[~found.is_covered])
    assert difference(found, image)[expected].mean() < 3.0


def test_a_template_of_another_size_is_found():
    template, image = scenery(), cut(scenery())
    found = register(template, image)
    assert furthest_off(found, similarity(0, 1, MARGIN, MARGIN)) < 0.5
    assert found.is_covered.all()
    part = register(image, template)
    assert abs(part.is_covered.mean() - HEIGHT * WIDTH / scenery()[..., 0].size) < 0.01


def test_a_repeat_of_a_periodic_pattern_will_do():
    picture = scenery(period=24)
    matrix = similarity(0, 1, 7, -5)
    image = cut(picture, matrix)
    noisy = np.clip(image + generator(0, "noise").normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    found = register(cut(picture), noisy)
    offset = (found.warp.matrix_23 - matrix)[:, 2]
    assert np.abs(offset - np.rint(offset / 24) * 24).max() < 1.0
    assert found.correlation > 0.9
    assert np.median(difference(found, image)[found.is_covered]) < 4.0


def test_in_a_periodic_pattern_what_does_not_repeat_decides():
    picture = scenery(period=24).copy()
    for row, column in ((100, 120), (130, 300), (250, 150), (220, 280)):
        cv2.circle(picture, (column, row), 22, (255, 255, 255), -1)
    matrix = similarity(0, 1, 31, -29)
    assert furthest_off(register(cut(picture), cut(picture, matrix)), matrix) < 0.5


def test_large_pictures_are_found_as_exactly_as_small_ones():
    noise = generator(0, "large").standard_normal((1200, 1600)).astype(np.float32)
    blobs = cv2.GaussianBlur(noise, (0, 0), 3)
    large = np.clip(blobs / blobs.std() * 40 + 128, 0, 255).astype(np.uint8)[..., np.newaxis].repeat(3, axis=2)
    matrix = similarity(0.7, 1, 31, -18)
    turned = cv2.warpAffine(large, matrix, (1499, 1111), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    found = register(large, turned)
    corners = np.array([(x, y, 1) for x in (0, 1498) for y in (0, 1110)])
    assert np.hypot(*((found.warp.matrix_23 - matrix) @ corners.T)).max() < 0.5
    assert difference(found, turned)[found.is_covered].mean() < 3.0


def test_what_stretches_is_followed_and_a_defect_is_not():
    template = cut(scenery())
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    bend = 3 * np.sin(2 * np.pi * x / WIDTH).astype(np.float32)
    image = cv2.remap(template, x + bend, y - bend, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    image[100:112, 150:170] = 255
    found = register(template, image)
    off = difference(found, image)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[100:112, 150:170] = True
    around = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert 1.0 < np.abs(found.warp.bend_RC2).max() < 5.0
    assert off[inside].mean() > 60
    assert off[~around & found.is_covered].mean() < 5.0


@pytest.mark.parametrize("kind", ["grey levels", "binary", "faint"])
def test_only_the_right_template_correlates(kind):
    def shown(picture: Image) -> Image:
        if kind == "binary":
            return binary(picture)
        return (picture // 8 + 100).astype(np.uint8) if kind == "faint" else picture

    noise = generator(1, "noise").normal(0, 3, (HEIGHT, WIDTH, 3))
    image = np.clip(cut(shown(scenery()), similarity(0.5, 1, 4, 3)) + noise, 0, 255).astype(np.uint8)
    right, other = register(cut(shown(scenery())), image), register(cut(shown(scenery(seed=1))), image)
    assert right.correlation > 0.85
    assert other.correlation < MIN_CORRELATION


def test_a_pattern_of_equally_bright_colours_is_seen():
    red_and_green = np.array([[200, 0, 0], [0, 102, 0]], np.uint8)  # both of luma 60
    pattern, other = (red_and_green[(binary(scenery(seed))[..., 0] > 0).astype(int)] for seed in (0, 1))
    matrix = similarity(0.0, 1.0, 11.0, -6.0)
    found = register(cut(pattern), cut(pattern, matrix))
    assert found.correlation > 0.95
    assert furthest_off(found, matrix) < 0.5
    assert register(cut(other), cut(pattern)).correlation < MIN_CORRELATION
    plain = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    assert register(plain, cut(pattern)).correlation < 0.1
    assert register(cut(pattern), plain).correlation < 0.1


def test_plain_pictures_agree_with_each_other_and_not_with_a_pattern():
    grey, dark, pattern = np.full((HEIGHT, WIDTH, 3), 120, np.uint8), np.full((60, 80, 3), 9, np.uint8), cut(scenery())
    assert register(dark, grey).correlation == 1.0
    assert np.abs(register(grey, grey).template.astype(int) - 120).max() == 0
    assert register(grey, pattern).correlation < 0.1
    assert register(pattern, grey).correlation < 0.1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (3, 2), (7, 30), (17, 16)])
def test_tiny_pictures_pass(height, width):
    picture = scenery()[:height, :width]
    found = register(picture, picture)
    np.testing.assert_array_equal(found.template, picture)
    register(scenery()[:5, :9], picture)
    register(picture, scenery()[:9, :5])
