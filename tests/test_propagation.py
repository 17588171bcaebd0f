from functools import cache

import cv2
import numpy as np
import pytest

from ssad_ray.core.propagation import carry, likeness, overlap, propagate, thumbnail_spectrum
from ssad_ray.core.registration import Registered, register
from ssad_ray.core.rng import generator
from ssad_ray.core.warp import shifted
from ssad_ray.errors import DataError

HEIGHT, WIDTH = 180, 260
MARGIN = 40


@cache
def scenery(seed=0):
    """Blobs of two sizes in colour, larger than the pictures cut out of it."""
    noise = generator(seed, "scenery").standard_normal((HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN, 3))
    blobs = sum(cv2.GaussianBlur(noise.astype(np.float32), (0, 0), sigma) * sigma for sigma in (2, 6))
    return np.clip(blobs / blobs.std() * 40 + 128, 0, 255).astype(np.uint8)


def cut(picture, matrix=None):
    """Cut the middle out, moved: the matrix maps (x, y, 1) of the cut to (x, y) of the unmoved cut."""
    moved = np.eye(3)
    if matrix is not None:
        moved[:2] = matrix
    moved[:2, 2] += MARGIN
    return cv2.warpAffine(picture, moved[:2], (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def outlined():
    """A mask on the scenery: a rectangle with a hole, off the centre."""
    mask = np.zeros(scenery().shape[:2], np.uint8)
    mask[80:180, 70:200] = 1
    mask[110:140, 100:130] = 0
    return mask


def product(left, seed):
    """A striped product on a plain, noisy ground."""
    noise = generator(seed, "product").normal(0, 3, (HEIGHT, WIDTH, 3))
    picture = np.full((HEIGHT, WIDTH, 3), 210.0) + noise
    picture[40:150, left : left + 120] -= 110 + 30 * (np.arange(40, 150)[:, None, None] // 12 % 2)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[40:150, left : left + 120] = True
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def unregistered(reference, image):
    """What a registration that finds nothing to move returns."""
    return Registered(reference, np.ones(image.shape[:2], bool), 1.0, shifted(0, 0))


@pytest.mark.parametrize("degrees", [0.0, 1.5])
def test_a_mask_follows_a_part_that_was_moved_and_lit_differently(degrees):
    matrix = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), degrees, 1.01)
    matrix[:, 2] += (11, -7)
    image = np.clip(cut(scenery(), matrix) * 0.9 + 12, 0, 255).astype(np.uint8)
    found = propagate(cut(scenery()), cut(outlined()) > 0, image)
    assert overlap(found.mask, cut(outlined(), matrix) > 0) > 0.98
    assert found.cycle_iou > 0.98


def test_the_same_image_keeps_its_mask_to_the_pixel():
    image, mask = cut(scenery()), cut(outlined()) > 0
    np.testing.assert_array_equal(propagate(image, mask, image).mask, mask)


def test_an_outline_goes_to_the_edge_that_registration_left_beside_it():
    reference, mask = product(60, seed=1)
    image, truth = product(62, seed=2)
    followed = carry(mask, unregistered(reference, image), image)
    assert 1 - overlap(followed, truth) < 0.5 * (1 - overlap(mask, truth))


def test_a_defect_on_the_outline_does_not_push_it_away():
    reference, mask = product(60, seed=1)
    image, truth = product(60, seed=2)
    stain = generator(0, "stain").integers(0, 255, (30, 30, 3))
    image[70:100, 165:195] = stain
    assert overlap(carry(mask, unregistered(reference, image), image), truth) > 0.99


def test_a_mask_that_reaches_the_edge_goes_on_there():
    reference = cut(scenery())
    image = cut(scenery(), np.array([[1.0, 0, -15], [0, 1, 0]]))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :100] = True
    assert propagate(reference, mask, image).mask[:, :110].all()


def test_a_picture_longer_than_opencv_can_map_is_covered_from_end_to_end():
    mask = np.zeros((40, 40_000), bool)
    mask[10:30, 39_000:] = True
    image = np.zeros((*mask.shape, 3), np.uint8)
    laid = carry(mask, Registered(image, mask | True, 1.0, shifted(500.0, 0.0)), image)
    assert laid[10:30, 38_500:].all()
    assert not laid[:, :38_500].any()


def test_the_whole_image_stays_the_whole_image():
    reference, image = cut(scenery()), cut(scenery(), np.array([[1.0, 0, 9], [0, 1, 5]]))
    assert carry(np.ones((HEIGHT, WIDTH), bool), register(reference, image), image).all()


def test_what_shows_something_else_is_refused_and_told_what_to_do():
    with pytest.raises(DataError, match=r"something else than its reference: they correlate by .*; draw a mask for"):
        propagate(cut(scenery()), cut(outlined()) > 0, cut(scenery(seed=5)))


def test_a_mask_that_the_image_does_not_show_is_refused():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :8] = True
    with pytest.raises(DataError, match="the mask lies beside this image"):
        propagate(cut(scenery()), mask, cut(scenery(), np.array([[1.0, 0, 30], [0, 1, 0]])))


def test_a_mask_of_which_half_is_lost_on_the_way_does_not_come_back():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[60:120, 20:45] = True
    with pytest.raises(DataError, match=r"overlaps itself by 0\.\d+ .*, needed are 0\.8"):
        propagate(cut(scenery()), mask, cut(scenery(), np.array([[1.0, 0, 35], [0, 1, 0]])))


def test_the_nearest_reference_is_the_same_part_wherever_it_lies():
    part, other = cut(scenery()), cut(scenery(seed=5))
    seen = thumbnail_spectrum(cut(scenery(), np.array([[1.0, 0, 20], [0, 1, -15]])))
    assert likeness(thumbnail_spectrum(part), seen) > likeness(thumbnail_spectrum(other), seen) + 0.2
    assert likeness(seen, seen) == pytest.approx(1.0)


def test_two_empty_masks_agree():
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    assert overlap(nothing, nothing) == 1.0
    assert overlap(nothing, ~nothing) == 0.0
