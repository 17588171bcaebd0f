"""A defect that looks like a part of the design is told from it by the template alone."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from ssad_ray.config import RunConfig, validate_config
from ssad_ray.core.rng import generator
from ssad_ray.methods import load_method
from ssad_ray.methods.base import Method, TrainingFrames, is_shown_template
from ssad_ray.methods.template_unet import beyond_band

HEIGHT, WIDTH = 48, 80
CELL, PAD = 16, slice(5, 11)
NUM_PADS = 5
Cell = tuple[int, int]


def config() -> RunConfig:
    training = {"steps": 40, "batch_size": 4, "learning_rate": 0.004}
    return validate_config({"segmenter": {"unet": {"width": 8, "training": training}}})


def pad(cell: Cell) -> tuple[slice, slice]:
    y, x = (CELL * at for at in cell)
    return slice(y + PAD.start, y + PAD.stop), slice(x + PAD.start, x + PAD.stop)


def board(pads: list[Cell], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bright pads on dark ground, and noise."""
    image = np.full((HEIGHT, WIDTH, 3), 60.0)
    for cell in pads:
        image[pad(cell)] = 200
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def drawn(index: int, purpose: str) -> tuple[list[Cell], Cell, np.random.Generator]:
    """Return the pads of a design of its own, and a place that has none."""
    rng = generator(0, purpose, index)
    cells = [(y, x) for y in range(HEIGHT // CELL) for x in range(WIDTH // CELL)]
    places = [cells[at] for at in rng.permutation(len(cells))[: NUM_PADS + 1]]
    return places[1:], places[0], rng


def boards(purpose: str, num: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return boards with one pad too many on top of their templates, and where it is; half have none too many."""
    pairs, masks = [], np.zeros((num, HEIGHT, WIDTH), np.float32)
    for index in range(num):
        pads, extra, rng = drawn(index, purpose)
        if index % 2:
            masks[index][pad(extra)] = 1
        image = board([*pads, extra] if index % 2 else pads, rng)
        pairs.append(np.concatenate([image, board(pads, rng)], axis=2))
    return np.stack(pairs), masks


@cache
def fitted(name: str) -> Method:
    torch.set_num_threads(1)
    pairs, masks = boards("learn", 64)
    is_good = ~masks.any(axis=(1, 2))
    labelled = masks[~is_good]
    method = load_method(name).from_config(config())
    images = pairs if is_shown_template(method) else pairs[..., :3]
    method.fit(TrainingFrames(images, is_good, labelled, np.ones_like(labelled), has_places=False), 0)
    return method


def rate_found(name: str) -> float:
    """Return on how many unseen boards the pad too many stands out among all pads."""
    method, (pairs, _) = fitted(name), boards("judge", 60)
    maps = method.maps(pairs if is_shown_template(method) else pairs[..., :3])
    found = []
    for index in range(1, len(maps), 2):
        pads, extra, _ = drawn(index, "judge")
        found.append(maps[index][pad(extra)].mean() > max(maps[index][pad(cell)].mean() for cell in pads))
    return float(np.mean(found))


def test_only_a_segmenter_shown_the_template_tells_a_defect_from_the_design():
    assert rate_found("template_unet") > 0.95
    assert rate_found("unet") < 0.5  # a sixth by chance


def test_a_good_board_of_an_unseen_design_is_below_every_defective_one():
    pairs, masks = boards("judge", 20)
    maps = fitted("template_unet").maps(pairs)
    scores = maps.max((1, 2))
    is_defective = masks.any(axis=(1, 2))
    assert scores[is_defective].min() > scores[~is_defective].max()
    for anomaly_map, mask in zip(maps[is_defective], masks[is_defective], strict=True):
        assert mask[np.unravel_index(anomaly_map.argmax(), mask.shape)] == 1


def test_an_image_on_top_of_itself_shows_nothing():
    pairs, _ = boards("judge", 20)
    template = fitted("template_unet")
    same = template.maps(np.concatenate([pairs[..., :3], pairs[..., :3]], axis=3))
    assert same.max() < template.maps(pairs)[1::2].max((1, 2)).min()


def test_every_second_good_pair_shows_its_template_photographed_anew():
    pads, _, rng = drawn(0, "learn")
    template = board(pads, rng)
    frames = TrainingFrames.of_good(np.concatenate([template, template], axis=2)[np.newaxis])
    method = load_method("template_unet").from_config(config())
    pairs = np.concatenate([method.batch(frames, 0, step, shard)["clean"] for step in range(40) for shard in range(2)])
    differing = [pair for pair in pairs if (pair[..., :3] != pair[..., 3:]).any()]
    assert 0.4 < len(differing) / len(pairs) < 0.6
    assert len({pair[..., :3].tobytes() for pair in differing}) == len(differing)
    changes = [np.abs(pair[..., :3].astype(float) - pair[..., 3:]) for pair in differing]
    assert all(0 < np.median(change) < 5 < change.max() for change in changes)


def test_what_is_beyond_the_band_is_that_of_a_plain_search_of_the_neighbourhood():
    rng = generator(0, "band")
    image, template = (rng.random((1, 3, 7, 9)) for _ in range(2))
    beyond = beyond_band(*(torch.from_numpy(each) for each in (image, template))).numpy()
    for channel, y, x in np.ndindex(3, 7, 9):
        near = template[0, channel, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        value = image[0, channel, y, x]
        assert beyond[0, channel, y, x] == max(value - near.max(), 0.0) - max(near.min() - value, 0.0)
