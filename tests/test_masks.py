import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from ssad_ray.core.masks import (
    MAX_VERTICES,
    Polygon,
    decode_mask,
    encode_mask,
    mask_box,
    mask_ious,
    polygons,
    rasterise,
)
from ssad_ray.core.records import RunLengthMask
from ssad_ray.errors import DataError

Mask = NDArray[np.bool_]
MASKS = arrays(np.bool_, st.tuples(st.integers(1, 17), st.integers(1, 23)))


def iou(a: Mask, b: Mask) -> float:
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


def drawn(height: int, width: int, *slices: tuple[slice | int, slice | int]) -> Mask:
    mask = np.zeros((height, width), np.bool_)
    for at in slices:
        mask[at] = True
    return mask


@given(MASKS)
def test_run_lengths_lose_nothing_and_are_those_of_pycocotools(mask: Mask) -> None:
    encoded = encode_mask(mask)
    assert encoded.counts.encode() == coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]
    np.testing.assert_array_equal(decode_mask(encoded), mask)


@given(MASKS, st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), st.integers(0, 3))
def test_a_crop_is_encoded_as_if_it_lay_in_its_frame(mask: Mask, top: int, left: int, below: int, right: int) -> None:
    frame = np.pad(mask, ((top, below), (left, right)))
    encoded = encode_mask(mask, top, left, frame.shape)
    assert encoded == encode_mask(frame)
    box = (left, top, left + mask.shape[1], top + mask.shape[0])
    np.testing.assert_array_equal(decode_mask(encoded, box), mask)


@given(MASKS)
def test_the_box_is_tight_and_half_open(mask: Mask) -> None:
    x0, y0, x1, y1 = mask_box(encode_mask(mask))
    rows, columns = np.nonzero(mask)
    if mask.any():
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    else:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)


@pytest.mark.parametrize("counts", ["", "1", "zzzz", "\x00\x01", "é", "o" * 30 + "0", "P", "00"])
def test_run_lengths_that_do_not_fill_the_frame_are_refused(counts: str) -> None:
    with pytest.raises(DataError, match="do not fill a mask of 5 x 7 px"):
        decode_mask(RunLengthMask(5, 7, counts))


def test_a_mask_of_an_absurd_size_is_refused_before_any_memory_is_taken() -> None:
    with pytest.raises(DataError, match="is refused; both sides must be positive"):
        decode_mask(RunLengthMask(10**6, 10**6, "0"))


def test_a_crop_outside_its_frame_is_refused() -> None:
    with pytest.raises(DataError, match="does not fit a frame of 4 x 9 px"):
        encode_mask(np.ones((2, 3), np.bool_), top=3, left=0, shape=(4, 9))


def test_intersection_over_union_has_the_hand_computed_value() -> None:
    first, second = drawn(10, 20, np.s_[0:10, 0:10]), drawn(10, 20, np.s_[0:10, 5:15])
    overlaps = mask_ious([encode_mask(first)], [encode_mask(second), encode_mask(first)])
    np.testing.assert_allclose(overlaps, [[50 / 150, 1.0]])
    assert mask_ious([], [encode_mask(first)]).shape == (0, 1)


def test_masks_of_different_frames_are_not_compared() -> None:
    with pytest.raises(DataError, match="different frames"):
        mask_ious([encode_mask(np.ones((2, 3), np.bool_))], [encode_mask(np.ones((3, 2), np.bool_))])


@settings(max_examples=200)
@given(MASKS, st.booleans())
def test_polygons_keep_every_piece_and_every_hole_of_a_random_mask(mask: Mask, is_smooth: bool) -> None:
    mask = ndimage.binary_closing(mask) if is_smooth else mask
    shapes = polygons(mask)
    again = rasterise(shapes, *mask.shape)
    assert iou(again, mask) >= 0.95
    pieces, num_pieces = ndimage.label(mask, np.ones((3, 3)))
    gaps, num_gaps = ndimage.label(~np.pad(mask, 1))
    assert len(shapes) == num_pieces
    assert sum(len(shape.holes) for shape in shapes) == max(num_gaps - 1, 0)
    assert set(np.unique(pieces[again])) >= set(range(1, num_pieces + 1))
    assert set(np.unique(gaps[1:-1, 1:-1][~again])) >= set(range(2, num_gaps + 1))


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(drawn(9, 40, np.s_[4, 3:37]), id="scratch one pixel high"),
        pytest.param(drawn(40, 9, np.s_[3:37, 4]), id="scratch one pixel wide"),
        pytest.param(drawn(5, 8, np.s_[2, 6]), id="single pixel"),
        pytest.param(drawn(5, 8, np.s_[:, :]), id="whole frame"),
        pytest.param(drawn(12, 30, np.s_[2:9, 3:20]) ^ drawn(12, 30, np.s_[5, 7]), id="hole of one pixel"),
        pytest.param(drawn(6, 9, np.s_[1, 2], np.s_[2, 3]), id="pixels that touch at a corner"),
        pytest.param(np.eye(13, 21, dtype=np.bool_), id="diagonal scratch"),
    ],
)
def test_thin_and_small_shapes_come_back_exactly(mask: Mask) -> None:
    np.testing.assert_array_equal(rasterise(polygons(mask), *mask.shape), mask)


def test_a_rectangle_has_its_four_corners_and_its_area() -> None:
    (shape,) = polygons(drawn(20, 30, np.s_[4:9, 10:27]))
    assert {tuple(corner) for corner in shape.outline.tolist()} == {(10, 4), (27, 4), (27, 9), (10, 9)}
    assert shape.holes == ()


def test_the_memory_layout_of_a_mask_does_not_matter() -> None:
    wide = drawn(12, 60, np.s_[2:9, 6:40])[:, ::2]
    for mask in (wide, wide.T, wide[::-1]):
        np.testing.assert_array_equal(rasterise(polygons(mask), *mask.shape), mask)
        np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


def test_a_smooth_outline_needs_few_corners() -> None:
    rows, columns = np.mgrid[0:700, 0:1100]
    mask = (rows - 350) ** 2 / 300**2 + (columns - 500) ** 2 / 450**2 < 1 + 0.1 * np.sin(columns / 7)
    (shape,) = polygons(mask)
    assert len(shape.outline) <= MAX_VERTICES
    assert iou(rasterise([shape], *mask.shape), mask) >= 0.95


def test_polygons_are_drawn_by_pixel_centres_and_cut_off_at_the_frame() -> None:
    triangle = Polygon(np.array([[-4.25, 0.0], [3.75, 0.0], [3.75, 8.0]]))
    rows, columns = np.mgrid[0:5, 0:9]
    inside = (columns + 0.5 < 3.75) & (rows < columns + 4.25)
    np.testing.assert_array_equal(rasterise([triangle], 5, 9), inside)
    assert not rasterise([], 5, 9).any()
