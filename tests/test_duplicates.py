import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from ssad_ray.core import images
from ssad_ray.datasets.duplicates import group_duplicates, near_duplicates, thumbnail
from ssad_ray.datasets.manifest import ManifestRow

rng = np.random.default_rng(0)
HEIGHT, WIDTH = 120, 170


def carpet():
    texture = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH, 3)), (0, 0), 2)
    return np.clip(128 + 60 * texture / texture.std(), 0, 255).astype(np.uint8)


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return images.decode(buffer.getvalue(), image.size)


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: jpeg(image, 60),
        lambda image: images.resize(image, HEIGHT // 2, WIDTH // 2),
        lambda image: images.resize(image, HEIGHT * 2, WIDTH * 2),
        lambda image: np.clip(image.astype(int) + 4, 0, 255).astype(np.uint8),
    ],
    ids=["jpeg", "half", "double", "brighter"],
)
def test_a_changed_copy_is_found_and_nothing_else(copy):
    originals = [carpet() for _ in range(12)]
    assert near_duplicates(np.stack([thumbnail(image) for image in [*originals, copy(originals[3])]])).tolist() == [
        [3, 12]
    ]


@pytest.mark.parametrize("background", ["same part", "featureless", "uneven light"])
def test_products_whose_good_parts_all_look_the_same_are_not_one_group(background):
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    clean = {
        "same part": 120 + 60 * ((np.mgrid[:HEIGHT, :WIDTH] // 20).sum(axis=0) % 2),
        "featureless": np.full((HEIGHT, WIDTH), 130.0),
        "uneven light": 150 - 50 * (x * x + y * y),
    }[background]
    photos = [np.clip(clean[:, :, None] + rng.normal(0, 3, (HEIGHT, WIDTH, 3)), 0, 255) for _ in range(30)]
    assert near_duplicates(np.stack([thumbnail(photo.astype(np.uint8)) for photo in photos])).size == 0


def test_one_image_and_constant_images_are_no_duplicates_by_likeness():
    black = thumbnail(np.zeros((9, 13, 3), np.uint8))
    assert near_duplicates(np.stack([black])).size == 0
    assert near_duplicates(np.stack([black, black])).size == 0


def test_more_images_than_one_block_are_all_compared(monkeypatch):
    monkeypatch.setattr("ssad_ray.datasets.duplicates._BLOCK", 5)
    prints = rng.normal(0, 20, (23, 256)).astype(np.float32)
    prints[22] = prints[0] + 0.1
    prints[17] = prints[16] + 0.1
    assert near_duplicates(prints).tolist() == [[0, 22], [16, 17]]


def row(name, sha256, group=None, category="nut"):
    sample_id = f"{name}@{sha256}"
    return ManifestRow(sample_id, f"/{name}", category, group or sample_id, sha256=sha256)


def test_equal_bytes_layout_groups_and_likeness_join_into_one_group():
    rows = [row("a", "1"), row("b", "1"), row("c", "2", "tile 7"), row("d", "1", "tile 7"), row("e", "3")]
    prints = [None, None, None, None, thumbnail(carpet())]
    assert [row.group for row in group_duplicates(rows, prints)] == ["a@1"] * 4 + ["e@3"]


def test_a_template_is_in_no_group_with_the_images_of_its_pattern():
    template = replace(row("a_temp", "1"), template_uri="/a_temp")
    print_ = thumbnail(carpet())
    grouped = group_duplicates([template, row("a_test", "1"), row("a_copy", "1")], [print_] * 3)
    assert [each.group for each in grouped] == ["a_temp@1", "a_test@1", "a_test@1"]


def test_groups_do_not_cross_categories_and_unread_files_are_not_alike():
    rows = [row("a", "1"), row("b", "1", category="bolt"), row("c", None), row("d", None)]
    grouped = group_duplicates(rows, [None] * 4)
    assert [row.group for row in grouped] == [row.sample_id for row in rows]
