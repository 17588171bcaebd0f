import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssad_ray.config import InputConfig
from ssad_ray.core.framing import FramePlan, Frames, is_aligned, joined_shape, make_plan, random_frames
from ssad_ray.core.images import resize
from ssad_ray.core.rng import generator
from ssad_ray.datasets.synthetic import render_good

TILES = FramePlan("tile", 64, 64, scale=1.0, overlap=0.25)


def test_one_part_at_one_place_is_aligned_and_is_seen_whole():
    images = [render_good(generator(0, index)) for index in range(6)]
    assert is_aligned(images)
    plan = make_plan(images, InputConfig())
    assert plan.mode == "resize"
    assert (plan.height, plan.width) == (112, 144)  # 160 x 224 at the area of 128 x 128, in multiples of 16


def test_textures_and_images_of_several_sizes_are_tiled():
    rng = generator(0, "texture")
    textures = [rng.integers(0, 255, (90, 120, 3), np.uint8) for _ in range(4)]
    assert make_plan(textures, InputConfig()).mode == "tile"
    assert make_plan([textures[0], textures[1][:80]], InputConfig()).mode == "tile"


def test_a_large_part_is_tiled_even_if_it_is_aligned():
    part = generator(0, "part").integers(0, 255, (6, 8, 3), np.uint8)
    for factor, mode in ((17, "tile"), (15, "resize")):
        large = part.repeat(64 * factor // 6, axis=0).repeat(64 * factor // 8, axis=1)
        assert is_aligned([large] * 4)
        assert make_plan([large] * 4, InputConfig(size_px=64)).mode == mode
    assert make_plan([large.repeat(2, axis=0)] * 4, InputConfig(size_px=64, mode="resize")).mode == "resize"


def test_a_plan_is_made_with_one_image_in_memory_at_a_time():
    seen = []

    def images():
        for index in range(5):
            assert [each() for each in seen[:-1]] == [None] * len(seen[:-1])
            image = generator(index, "image").integers(0, 255, (60, 90, 3), np.uint8)
            seen.append(weakref.ref(image))
            yield image

    make_plan(images(), InputConfig())
    assert len(seen) == 5


def test_tiles_are_views_until_they_are_stacked():
    image = generator(0, "image").integers(0, 255, (150, 200, 3), np.uint8)
    frames = Frames(image, TILES)
    assert all(np.shares_memory(frames[index], image) for index in range(len(frames)))
    batches = list(frames.batches(5))
    assert {len(each) for each in batches[:-1]} == {5}
    np.testing.assert_array_equal(np.concatenate(batches), list(Frames(image, TILES)))


def test_a_mode_that_is_asked_for_is_taken():
    image = np.zeros((50, 70, 3), np.uint8)
    assert make_plan([image], InputConfig(mode="tile", scale=0.5)) == FramePlan("tile", 128, 128, 0.5, 0.25)
    assert make_plan([image], InputConfig(mode="resize", size_px=64)).width > 64


@given(height=st.integers(3, 300), width=st.integers(3, 300), scale=st.sampled_from([0.4, 1.0, 1.7]))
def test_tiles_cover_every_pixel_and_join_without_seams(height, width, scale):
    plan = FramePlan("tile", 64, 64, scale, 0.25)
    frames = Frames(np.full((height, width, 3), 7, np.uint8), plan)
    assert {frame.shape for frame in frames} == {(64, 64, 3)}
    joined = frames.join(np.full((len(frames), 64, 64), 3.5, np.float32))
    assert joined.shape == joined_shape(plan, height, width)
    assert joined.dtype == np.float32
    np.testing.assert_allclose(joined, 3.5, rtol=1e-5)


@given(height=st.integers(64, 200), width=st.integers(64, 200))
def test_a_map_of_tiles_equals_the_map_of_the_whole_image(height, width):
    image = generator(0, height, width).integers(0, 255, (height, width, 3), np.uint8)
    frames = Frames(image, TILES)
    joined = frames.join(frame[..., 0].astype(np.float32) for frame in frames)
    np.testing.assert_allclose(joined, image[..., 0], atol=1e-3)


@given(height=st.integers(64, 260), width=st.integers(64, 260), index=st.integers(0, 99))
def test_a_frame_that_shows_something_else_is_judged_as_in_the_whole_image(height, width, index):
    def anomaly_map(frame):
        return frame[..., 0] + frame.mean(dtype=np.float32)  # of what else the frame shows as well

    image = generator(0, height, width).integers(1, 255, (height, width, 3), np.uint8)
    frames = Frames(image.copy(), TILES)
    index %= len(frames)
    near, place = frames.with_frame(index, np.zeros((64, 64, 3), np.uint8))
    np.testing.assert_array_equal(np.stack(list(frames)), np.stack(list(Frames(image, TILES))))
    changed = Frames(image, TILES)
    changed[index][:] = 0
    y, x = np.argwhere(image[..., 0] == 0)[0]
    whole = changed.join(map(anomaly_map, changed))[y : y + 64, x : x + 64]
    np.testing.assert_allclose(near.join(map(anomaly_map, near))[place], whole, rtol=1e-5)


def test_the_only_frame_of_an_aligned_part_is_replaced_whole():
    frames = Frames(np.full((50, 70, 3), 9, np.uint8), FramePlan("resize", 32, 48))
    near, place = frames.with_frame(0, np.full((32, 48, 3), 5, np.uint8))
    (shown,) = near
    assert (shown == 5).all()
    assert near.join([shown[..., 0].astype(np.float32)])[place].shape == (32, 48)


def test_a_resized_map_keeps_height_and_width_apart():
    plan = FramePlan("resize", 32, 64)
    image = np.zeros((50, 200, 3), np.uint8)
    image[40:, :20] = 255
    (frame,) = frames = Frames(image, plan)
    assert frame.shape == (32, 64, 3)
    joined = resize(frames.join([frame[..., 0].astype(np.float32)]), 50, 200)
    assert np.unravel_index(joined.argmax(), joined.shape)[0] > 40
    assert np.unravel_index(joined.argmax(), joined.shape)[1] < 20


def test_a_thin_line_is_seen_where_one_side_shrinks_and_the_other_grows():
    for row in range(20, 40):
        image = np.full((1600, 20, 3), 200, np.uint8)
        image[row : row + 3] = 0
        assert Frames(image, FramePlan("resize", 96, 32))[0].min() < 185


@pytest.mark.parametrize("plan", [FramePlan("resize", 48, 32), FramePlan("tile", 48, 32, 1.5, 0.25)])
def test_training_planes_are_cut_at_one_place(plan):
    image = generator(0, "cut").integers(0, 255, (40, 90, 3), np.uint8)
    target = image[..., 0].astype(np.float32)
    frames = list(random_frames([image, target], plan, generator(0, "where"), 4))
    assert len(frames) == (1 if plan.mode == "resize" else 4)
    for frame, cut in frames:
        assert frame.shape == (48, 32, 3)
        np.testing.assert_allclose(frame[..., 0], cut, atol=1.5)  # each of two steps rounds to uint8


@pytest.mark.parametrize("length", [64, 65, 128, 300, 2000])
def test_training_tiles_touch_the_edges_about_as_often_as_scored_ones(length):
    column = np.arange(length, dtype=np.float32)[:, None].repeat(64, axis=1)
    rng = generator(0, "edges")
    starts = np.array([tile[0, 0] for (tile,) in random_frames([column], TILES, rng, 2000)])
    assert starts.min() == 0
    assert starts.max() == length - 64
    scored = Frames(np.zeros((length, 64, 3), np.uint8), TILES)
    assert 0.5 / len(scored) <= np.mean(starts == 0) <= 2.0 / len(scored)
    assert abs(np.mean(starts == 0) - np.mean(starts == length - 64)) < 0.05


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_every_other_tile_shows_a_defect_and_anywhere_inside(scale):
    plan = FramePlan("tile", 64, 64, scale)
    image = np.zeros((900, 1200), np.float32)
    image[880:890, 400:410] = 1.0
    rng = generator(0, "showing")
    tiles = [tile for (tile,) in random_frames([image], plan, rng, 600, image > 0)]
    assert sum(tile.max() > 0 for tile in tiles[::2]) < 60
    cuts = tiles[1::2]
    assert all(cut.max() > 0.2 for cut in cuts)
    columns = np.array([np.nonzero(cut)[1].mean() for cut in cuts])
    assert columns.min() < 8
    assert columns.max() > 55
    nothing = list(random_frames([image], plan, rng, 2, np.zeros_like(image, bool)))
    assert [tile.shape for (tile,) in nothing] == [(64, 64)] * 2
