import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from ssad_ray.core.metrics.ranking import rank_scores
from ssad_ray.errors import DataError

FEW_VALUES = st.sampled_from([-70.0, -1.5, 0.0, 0.25, 1.0, 16.7, 3e5])


@st.composite
def labelled_scores(draw):
    values = draw(st.lists(st.one_of(FEW_VALUES, st.floats(-1e6, 1e6)), min_size=2, max_size=60))
    labels = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    labels[0], labels[1] = True, False
    return np.array(values), np.array(labels)


@given(labelled_scores())
def test_all_figures_equal_those_of_scikit_learn_for_ties_and_any_range(case):
    scores, labels = case
    ranking = rank_scores(scores, labels)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert ranking.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert ranking.average_precision == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert ranking.f1_max == pytest.approx(f1.max(), abs=1e-12)


@given(labelled_scores(), st.sampled_from([np.float32, np.float64]))
def test_scoring_above_the_threshold_reaches_the_largest_f1(case, dtype):
    scores, labels = case[0].astype(dtype), case[1]
    ranking = rank_scores(scores, labels)
    called = scores > ranking.f1_threshold
    assert 2 * (called & labels).sum() / (called.sum() + labels.sum()) == pytest.approx(ranking.f1_max, abs=1e-12)


@given(labelled_scores())
def test_only_the_order_of_the_scores_matters(case):
    scores, labels = case
    ranks = np.unique(scores, return_inverse=True)[1]
    one, other = rank_scores(scores, labels), rank_scores(np.exp(ranks.astype(float)), labels)
    assert (one.auroc, one.average_precision, one.f1_max) == (other.auroc, other.average_precision, other.f1_max)


def test_figures_worked_out_by_hand():
    ranking = rank_scores(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    assert ranking.auroc == 3 / 4
    assert ranking.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert ranking.f1_max == pytest.approx(2 * 2 / (3 + 2))
    assert 1.0 < ranking.f1_threshold < 2.0


def test_equal_scores_say_nothing():
    ranking = rank_scores(np.full(10, 7.0), np.arange(10) < 3)
    assert ranking.auroc == 0.5
    assert ranking.average_precision == pytest.approx(0.3)


def test_one_class_alone_has_no_figures():
    assert rank_scores(np.arange(3.0), np.ones(3, bool)) is None
    assert rank_scores(np.arange(3.0), np.zeros(3, bool)) is None
    assert rank_scores(np.zeros(0), np.zeros(0, bool)) is None


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(DataError, match="1 of 3 scores are not finite"):
        rank_scores(np.array([0.0, np.nan, 1.0]), np.array([True, False, True]))
