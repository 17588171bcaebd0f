import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from ssad_ray.core.metrics.pixel import FPR_LIMIT, Overlap, PixelHistogram, PixelScores, overlap
from ssad_ray.errors import DataError

few_examples = settings(max_examples=50)
VALUES = st.one_of(
    st.sampled_from([-2.5, -0.0, 0.0, 0.5, 0.99999, 0.999999, 1.0, 1.0001, 700.0, 700.05, 1e30]),
    st.floats(-5.0, 5.0, width=32, allow_subnormal=False),
    st.floats(0.0, 1.0, width=32, allow_subnormal=False),
).map(np.float32)


@st.composite
def images(draw):
    """Up to four images of different shapes; the first one has both kinds of pixels."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.tuples(st.integers(2, 9), st.integers(2, 7)))
        mask = draw(npst.arrays(bool, shape))
        made.append((draw(npst.arrays(np.float32, shape, elements=VALUES)), mask))
    made[0][1][0, 0], made[0][1][-1, -1] = True, False
    return made


def measure(accumulator, images):
    for anomaly_map, mask in images:
        accumulator.update(anomaly_map, mask)
    return accumulator.result()


def values(metrics):
    return np.array([metrics.ranking.auroc, metrics.ranking.average_precision, metrics.ranking.f1_max, metrics.aupro])


def aupro_by_definition(images):
    """Try every score as a threshold; walk along the polygon with a fine ruler."""
    regions = []
    for anomaly_map, mask in images:
        labels, num = ndimage.label(mask, np.ones((3, 3)))
        regions += [anomaly_map[labels == label] for label in range(1, num + 1)]
    background = np.concatenate([anomaly_map[~mask] for anomaly_map, mask in images])
    fpr, pro = [0.0], [0.0]
    for threshold in sorted({*background.tolist(), *np.concatenate(regions).tolist()}, reverse=True):
        fpr.append(float(np.mean(background >= threshold)))
        pro.append(float(np.mean([np.mean(region >= threshold) for region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(zip(fpr, pro, strict=True)):
        if x1 <= FPR_LIMIT:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < FPR_LIMIT:
            cut = y0 + (y1 - y0) * (FPR_LIMIT - x0) / (x1 - x0)
            area += (FPR_LIMIT - x0) * (y0 + cut) / 2
    return area / FPR_LIMIT


def binned(images):
    """The same images with the rank of each score's bin, found with 12 significant digits in base two, as the map."""

    def significant(numbers, rounding):
        mantissa, exponent = np.frexp(numbers.astype(np.float64))
        return np.ldexp(rounding(mantissa * 2**12), exponent - 12)

    def keys(scores):
        return np.where(
            (scores >= 0.5) & (scores < 1), 1.0 - significant(1 - scores, np.ceil), significant(scores, np.trunc)
        )

    levels = np.unique(np.concatenate([keys(anomaly_map).ravel() for anomaly_map, _ in images]))
    return [(np.searchsorted(levels, keys(anomaly_map)).astype(np.float32), mask) for anomaly_map, mask in images]


@few_examples
@given(images())
def test_exact_figures_equal_those_of_scikit_learn_and_of_the_definition(images):
    metrics = measure(PixelScores(), images)
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    labels = np.concatenate([mask.ravel() for _, mask in images])
    assert metrics.ranking.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert metrics.ranking.average_precision == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert metrics.aupro == pytest.approx(aupro_by_definition(images), abs=1e-9)


@few_examples
@given(images())
def test_the_histogram_is_exact_for_scores_that_tie_within_its_bins(images):
    exact, streamed = measure(PixelScores(), binned(images)), measure(PixelHistogram(), images)
    np.testing.assert_allclose(values(streamed), values(exact), atol=1e-6)


def f1(counts):
    return 2 * counts.true_positives / (2 * counts.true_positives + counts.false_positives + counts.false_negatives)


@few_examples
@given(images())
def test_the_threshold_of_the_histogram_reaches_its_f1(images):
    ranking = measure(PixelHistogram(), images).ranking
    total = sum((overlap(anomaly_map > ranking.f1_threshold, mask) for anomaly_map, mask in images), Overlap())
    assert f1(total) == pytest.approx(ranking.f1_max, abs=1e-9)


def test_every_threshold_next_to_one_parts_the_scores_where_its_bin_does():
    anomaly_map = (1 - np.arange(1, 4097) / 2**24).astype(np.float32).reshape(64, 64)
    for position in np.random.default_rng(0).integers(4096, size=60):
        mask = np.arange(4096).reshape(64, 64) == position
        ranking = measure(PixelHistogram(), [(anomaly_map, mask)]).ranking
        assert f1(overlap(anomaly_map > ranking.f1_threshold, mask)) == pytest.approx(ranking.f1_max)


@few_examples
@given(images())
def test_the_histogram_errs_by_at_most_half_the_pairs_in_common_bins(images):
    exact, streamed = measure(PixelScores(), images), measure(PixelHistogram(), images)
    background = np.concatenate([bins[~mask] for bins, mask in binned(images)])
    tied, tied_by_region = [], []
    for bins, mask in binned(images):
        labels, num = ndimage.label(mask, np.ones((3, 3)))
        for label in range(1, num + 1):
            ties = [np.mean(background == score) for score in bins[labels == label]]
            tied += ties
            tied_by_region.append(np.mean(ties))
    assert abs(streamed.ranking.auroc - exact.ranking.auroc) <= np.mean(tied) / 2 + 1e-9
    assert abs(streamed.aupro - exact.aupro) <= np.mean(tied_by_region) / 2 / FPR_LIMIT + 1e-6
    assert streamed.ranking.f1_max <= exact.ranking.f1_max + 1e-9


@few_examples
@given(images(), st.data())
def test_order_and_merging_change_nothing_in_the_histogram(images, data):
    parts = [PixelHistogram() for _ in range(3)]
    for image in data.draw(st.permutations(images)):
        data.draw(st.sampled_from(parts)).update(*image)
    first, second, third = parts
    second.merge(third)
    first.merge(second)
    assert first.result() == measure(PixelHistogram(), images)


@few_examples
@given(images(), st.data())
def test_merging_exact_parts_equals_one_pass(images, data):
    cut = data.draw(st.integers(0, len(images)))
    head, tail = PixelScores(), PixelScores()
    measure(head, images[:cut])
    measure(tail, images[cut:])
    head.merge(tail)
    np.testing.assert_allclose(values(head.result()), values(measure(PixelScores(), images)), atol=1e-12)


@pytest.fixture(params=[PixelScores, PixelHistogram])
def accumulator(request):
    return request.param()


def test_a_perfect_map_scores_one(accumulator):
    mask = np.zeros((12, 20), bool)
    mask[2:5, 3:9] = mask[8:10, 15:] = True
    assert values(measure(accumulator, [(mask.astype(np.float32) - 3, mask)])) == pytest.approx(1.0)


def test_a_constant_map_has_an_aupro_of_half_the_limit_and_an_auroc_of_one_half(accumulator):
    mask = np.zeros((12, 20), bool)
    mask[2:5, 3:9] = True
    metrics = measure(accumulator, [(np.full((12, 20), 0.7, np.float32), mask)])
    assert metrics.aupro == pytest.approx(0.15)
    assert metrics.ranking.auroc == pytest.approx(0.5)
    assert metrics.ranking.average_precision == pytest.approx(mask.mean())


def test_blobs_that_touch_at_a_corner_are_one_region(accumulator):
    mask = np.zeros((10, 14), bool)
    mask[2, 2] = True
    mask[3:6, 3:6] = True
    anomaly_map = np.zeros((10, 14), np.float32)
    anomaly_map[2, 2] = 1.0
    # One region of ten pixels, one of them found; the rest joins only with the whole background.
    at_limit = 0.1 + 0.9 * FPR_LIMIT
    assert measure(accumulator, [(anomaly_map, mask)]).aupro == pytest.approx((0.1 + at_limit) / 2)


def test_a_small_region_weighs_as_much_as_a_large_one(accumulator):
    mask = np.zeros((20, 30), bool)
    mask[1:11, 1:11] = True
    mask[15, 25] = True
    found = np.zeros((20, 30), np.float32)
    found[15, 25] = 1.0
    assert measure(accumulator, [(found, mask)]).aupro == pytest.approx((0.5 + 0.5 + 0.5 * FPR_LIMIT) / 2)


@pytest.mark.parametrize(("num_worse", "expected"), [(0, 1.0), (1, 2 / 3), (2, 1 / 3), (3, 0.0), (4, 0.0)])
def test_a_region_counts_from_the_false_positive_rate_at_which_it_is_found(accumulator, num_worse, expected):
    anomaly_map = np.zeros((1, 11), np.float32)
    anomaly_map[0, 0] = 1.0
    anomaly_map[0, 1 : 1 + num_worse] = 2.0
    assert measure(accumulator, [(anomaly_map, anomaly_map == 1.0)]).aupro == pytest.approx(expected)


def test_good_images_count_as_background(accumulator):
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True
    accumulator.update(mask.astype(np.float32), mask)
    accumulator.update(np.full((8, 9), 2.0, np.float32), np.zeros((8, 9), bool))
    assert accumulator.result().ranking.auroc == pytest.approx(23 / (23 + 72))


@few_examples
@given(images())
def test_strictly_increasing_transforms_change_nothing(images):
    levels = np.unique(np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images]))
    moved = [(np.searchsorted(levels, a).astype(np.float32) ** 3 - 50, mask) for a, mask in images]
    assert np.array_equal(values(measure(PixelScores(), images)), values(measure(PixelScores(), moved)))


def test_the_histogram_resolves_small_differences_far_from_zero():
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 300), bool)
    mask[50:70, 100:160] = True
    anomaly_map = (1000 + 10 * rng.normal(size=mask.shape) + 15 * mask).astype(np.float32)
    exact, streamed = measure(PixelScores(), [(anomaly_map, mask)]), measure(PixelHistogram(), [(anomaly_map, mask)])
    np.testing.assert_allclose(values(streamed), values(exact), atol=3e-3)


def test_the_histogram_resolves_probabilities_that_saturate_at_one():
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 300), bool)
    mask[50:70, 100:160] = True
    anomaly_map = (1 / (1 + np.exp(-(4 * rng.normal(size=mask.shape) + 8 * mask)))).astype(np.float32)
    exact, streamed = measure(PixelScores(), [(anomaly_map, mask)]), measure(PixelHistogram(), [(anomaly_map, mask)])
    np.testing.assert_allclose(values(streamed), values(exact), atol=1e-4)


def test_nothing_is_claimed_without_defects_or_without_background(accumulator):
    assert accumulator.result() is None
    accumulator.update(np.zeros((3, 5), np.float32), np.zeros((3, 5), bool))
    assert accumulator.result() is None


def test_a_wholly_defective_set_has_no_pixel_metrics(accumulator):
    assert measure(accumulator, [(np.ones((3, 5), np.float32), np.ones((3, 5), bool))]) is None


def test_read_only_and_transposed_arrays_are_read_alike(accumulator):
    rng = np.random.default_rng(1)
    anomaly_map, mask = rng.normal(size=(40, 25)).astype(np.float32), rng.random((40, 25)) < 0.1
    expected = measure(type(accumulator)(), [(anomaly_map, mask)])
    turned, turned_mask = np.asfortranarray(anomaly_map), np.asfortranarray(mask)
    turned.flags.writeable = turned_mask.flags.writeable = False
    assert measure(accumulator, [(turned, turned_mask)]) == expected


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.zeros((4, 6), np.float32), np.zeros((6, 4), bool), r"\(4, 6\) and bool \(6, 4\)"),
        (np.zeros((4, 6), np.float64), np.zeros((4, 6), bool), "got float64"),
        (np.full((4, 6), np.nan, np.float32), np.zeros((4, 6), bool), "not finite"),
        (np.zeros((0, 6), np.float32), np.zeros((0, 6), bool), "empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(accumulator, anomaly_map, mask, message):
    with pytest.raises(DataError, match=message):
        accumulator.update(anomaly_map, mask)


def test_overlap_counts_pixels_and_adds_up():
    predicted, true = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    predicted[0:2, 0:3] = True
    true[1:3, 0:3] = True
    found = overlap(predicted, true)
    assert found == Overlap(3, 3, 3)
    assert found.iou == 3 / 9
    assert (found + Overlap(6, 0, 0)).iou == 9 / 15


def test_two_empty_masks_have_no_overlap_to_speak_of():
    empty = overlap(np.zeros((4, 6), bool), np.zeros((4, 6), bool))
    assert empty.iou is None
