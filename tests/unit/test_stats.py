"""Statistics against independent implementations and known distributions."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from sklearn.metrics import average_precision_score, roc_auc_score

from mechatlas.stats.bootstrap import (
    adjust_fdr,
    document_weights,
    interval,
    intervals,
    replicate,
    sign_p_value,
)
from mechatlas.stats.ranking import (
    BINS,
    average_precision,
    average_precision_replicates,
    roc_auc,
    roc_auc_replicates,
    score_bins,
)
from mechatlas.stats.shuffles import derangement


def test_interval_covers_a_mean_as_often_as_it_says():
    """Coverage of the 90 % interval of a ratio of sums over clustered documents, 300 simulated samples."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        level = rng.normal(2.0, 0.5, 60)
        tokens = rng.integers(5, 15, 60).astype(float)
        weights = document_weights(60, 400, rng)
        values = replicate(
            np.stack([level * tokens, tokens], 1), weights, lambda t: t[:, 0] / t[:, 1]
        )
        low, high = interval(values, 0.9)
        hits += low <= 2.0 <= high
    assert 0.84 <= hits / 300 <= 0.95


def test_replicates_equal_resampling_document_by_document():
    rng = np.random.default_rng(1)
    sums = rng.random((7, 3))
    weights = document_weights(7, 5, rng)
    values = replicate(sums, weights, lambda t: t[:, 0] * t[:, 1] / t[:, 2])
    assert weights[1:].sum(1).tolist() == [7] * 5
    for row, value in zip(weights, values, strict=True):
        picked = np.repeat(sums, row.astype(int), axis=0).sum(0)
        assert value == pytest.approx(picked[0] * picked[1] / picked[2])


def test_sign_p_value_is_calibrated_under_no_difference():
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(300):
        difference = rng.normal(0, 1, 50)
        values = replicate(difference, document_weights(50, 400, rng), lambda t: t)
        p_values.append(sign_p_value(values))
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert sign_p_value(np.array([1.0, *rng.normal(9, 1, 999)])) == pytest.approx(2 / 1000)


def test_undefined_replicates_give_no_interval():
    low, high = interval(np.array([1.0, *[np.nan] * 50, *[1.0] * 50]), 0.95)
    assert np.isnan(low) and np.isnan(high)


def test_intervals_of_many_are_those_of_each():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(4, 101))
    values[1, 5] = np.inf
    values[2, 1:60] = np.nan
    found = intervals(values, 0.9)
    for row, low, high in zip(values, *found, strict=True):
        kept = row[1:][np.isfinite(row[1:])]
        expected = np.percentile(kept, [5, 95]) if len(kept) >= 90 else [np.nan, np.nan]
        np.testing.assert_allclose([low, high], expected, rtol=1e-12)
        assert interval(row, 0.9) == pytest.approx((low, high), nan_ok=True)


def test_small_predictions_are_ranked_too():
    """A head that rests on BOS is predicted to give most keys next to nothing; the strong keys still come first."""
    rng = np.random.default_rng(3)
    strong, weak = np.exp(rng.uniform(np.log(1e-7), 0, 500)), np.exp(rng.uniform(-23, -9, 1500))
    scores, labels = np.concatenate([strong, weak]), np.repeat([1, 0], [500, 1500])
    counts = [
        np.bincount(score_bins(part.astype(np.float32)), minlength=BINS).astype(float)
        for part in (strong, weak)
    ]
    assert roc_auc(*counts) == pytest.approx(roc_auc_score(labels, scores), abs=0.003)
    assert average_precision(*counts) == pytest.approx(
        average_precision_score(labels, scores), abs=0.01
    )


def test_derangements_move_every_place_and_favour_none():
    rng = np.random.default_rng(4)
    drawn = np.stack([derangement(5, rng) for _ in range(3000)])
    assert (np.sort(drawn, axis=1) == np.arange(5)).all() and (drawn != np.arange(5)).all()
    share = np.array([(drawn[:, 0] == place).mean() for place in range(1, 5)])
    assert share == pytest.approx(0.25, abs=0.03)
    assert derangement(1, rng).tolist() == [0]


def test_resampled_rankings_equal_those_of_the_resampled_counts():
    rng = np.random.default_rng(8)
    positives = rng.poisson(0.1, (9, BINS)).astype(float)
    negatives = rng.poisson(0.2, (9, BINS)).astype(float)
    positives[3:] = 0
    weights = document_weights(9, 200, rng)
    found = roc_auc_replicates(positives, negatives, weights)
    precisions = average_precision_replicates(positives, negatives, weights)
    for row, value, precision in zip(weights, found, precisions, strict=True):
        p, n = (np.repeat(x, row.astype(int), axis=0).sum(0) for x in (positives, negatives))
        scores = np.repeat([*range(BINS), *range(BINS)], [*p.astype(int), *n.astype(int)])
        labels = np.repeat([1, 0], [int(p.sum()), int(n.sum())])
        if p.sum() == 0:
            assert np.isnan(value) and np.isnan(precision)
        else:
            assert value == pytest.approx(roc_auc_score(labels, scores), rel=1e-9)
            assert precision == pytest.approx(average_precision_score(labels, scores), rel=1e-9)


def test_fdr_by_hand_and_with_missing_values():
    # Benjamini-Hochberg of (0.01, 0.02, 0.03, 0.5): 0.04, 0.04, 0.04, 0.5.
    adjusted = adjust_fdr(np.array([0.03, np.nan, 0.01, 0.5, 0.02]))
    np.testing.assert_allclose(adjusted, [0.04, np.nan, 0.04, 0.5, 0.04])
    assert np.isnan(adjust_fdr(np.array([np.nan]))).all()


def test_fdr_equals_scipy():
    p_values = np.random.default_rng(4).random(50).round(2)
    np.testing.assert_allclose(adjust_fdr(p_values), false_discovery_control(p_values, method="bh"))


def test_ranking_from_counts_equals_scikit_learn():
    rng = np.random.default_rng(3)
    labels = rng.random(4000) < 0.1
    scores = np.clip(rng.beta(1, 6, 4000) + 0.2 * labels, 0, 1)
    bins = score_bins(scores)
    positives = np.bincount(bins[labels], minlength=BINS).astype(float)
    negatives = np.bincount(bins[~labels], minlength=BINS).astype(float)
    assert roc_auc(positives, negatives) == pytest.approx(roc_auc_score(labels, bins))
    assert average_precision(positives, negatives) == pytest.approx(
        average_precision_score(labels, bins)
    )
    # Binning costs next to nothing.
    assert roc_auc(positives, negatives) == pytest.approx(roc_auc_score(labels, scores), abs=0.002)


def test_ranking_without_positives_is_undefined_not_zero():
    with np.errstate(invalid="ignore"):
        assert np.isnan(average_precision(np.zeros(BINS), np.ones(BINS)))
        assert np.isnan(roc_auc(np.zeros(BINS), np.ones(BINS)))
