"""Figures against sums written out, scikit-learn's and scipy's; intervals and differences against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

from evaluation.against_teacher import rank_correlation
from evaluation.figures import (
    differences,
    f1_macro,
    intervals,
    mean_average_precision,
    share,
    share_by_group,
    spread,
)
from evaluation.run import Sides
from evaluation.zero_shot import refuse_other_order
from shards import UserError

RANDOM = np.random.default_rng(5)
LABELS = RANDOM.integers(0, 7, 300)
CHOSEN = np.where(RANDOM.random(300) < 0.6, LABELS, RANDOM.integers(0, 7, 300))


def test_figures_equal_scikit_learns() -> None:
    hits = LABELS == CHOSEN
    assert share(hits, None, 300).value == pytest.approx(100 * hits.mean())
    assert share_by_group(hits, LABELS).value == pytest.approx(100 * balanced_accuracy_score(LABELS, CHOSEN))
    expected = f1_score(LABELS, CHOSEN, average="macro", labels=np.unique(LABELS))
    assert f1_macro(LABELS, CHOSEN, 9).value == pytest.approx(100 * expected)
    groups = RANDOM.integers(0, 4, 300)
    worst = min(hits[groups == group].mean() for group in range(4))
    assert share_by_group(hits, groups, worst=True).value == pytest.approx(100 * worst)
    logits, truth = RANDOM.normal(size=(80, 5)), RANDOM.random((80, 5)) < 0.3
    precisions = [average_precision_score(truth[:, at], logits[:, at]) for at in range(5)]
    assert mean_average_precision(logits, truth).value == pytest.approx(100 * np.mean(precisions))


def test_a_figure_of_a_resample_is_that_of_the_images_drawn() -> None:
    drawn = np.random.default_rng(1).integers(0, 300, 300)
    weights = np.bincount(drawn, minlength=300).astype(float)
    hits = LABELS == CHOSEN
    for figure, again in (
        (share(hits, None, 300), share(hits[drawn], None, 300)),
        (share_by_group(hits, LABELS), share_by_group(hits[drawn], LABELS[drawn])),
        (f1_macro(LABELS, CHOSEN, 7), f1_macro(LABELS[drawn], CHOSEN[drawn], 7)),
    ):
        assert figure.again is not None
        assert figure.again(weights) == pytest.approx(again.value)
    # Captions go with their images.
    image_of = np.repeat(np.arange(60), 5)
    drawn = np.random.default_rng(2).integers(0, 60, 60)
    figure = share(hits, image_of, 60)
    assert figure.again is not None
    kept = np.concatenate([hits[image_of == image] for image in drawn])
    assert figure.again(np.bincount(drawn, minlength=60).astype(float)) == pytest.approx(100 * kept.mean())
    logits = RANDOM.normal(size=(40, 3))
    truth = RANDOM.random((40, 3)) < 0.4
    drawn = np.sort(np.random.default_rng(3).integers(0, 40, 40))
    figure, again = mean_average_precision(logits, truth), mean_average_precision(logits[drawn], truth[drawn])
    assert figure.again is not None
    # Of the same image drawn twice the second stands one place lower: precision between the two.
    assert figure.again(np.bincount(drawn, minlength=40).astype(float)) == pytest.approx(again.value, abs=6)


def test_an_interval_is_as_wide_as_the_normal_approximation_says() -> None:
    hits = np.arange(2000) % 4 == 0
    ((low, high),) = intervals({"top1": share(hits, None, 2000)}, 2000).values()
    half = 1.96 * 100 * np.sqrt(0.25 * 0.75 / 2000)
    assert [25 - low, high - 25] == pytest.approx([half, half], rel=0.1)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    """One model is right where the other is, and on 40 images of 2000 more: 2 points, in intervals of 4."""
    random = np.random.default_rng(8)
    theirs = random.random(2000) < 0.5
    ours = theirs.copy()
    ours[np.flatnonzero(~theirs)[:40]] = True
    pair = {"top1": share(ours, None, 2000)}, {"top1": share(theirs, None, 2000)}
    found = differences(*pair, 2000)["top1"]
    assert found["difference"] == pytest.approx(2.0)
    assert 1.2 < found["low"] < 1.6
    assert 2.4 < found["high"] < 2.8
    assert found["p"] == 0
    same = differences(pair[0], pair[0], 2000)["top1"]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_seeds_have_a_mean_and_a_spread() -> None:
    assert spread([1.0, 2.0, 6.0]) == pytest.approx({"mean": 3.0, "sd": np.sqrt(7.0), "low": 1.0, "high": 6.0})


def test_rank_correlation_is_spearmans() -> None:
    images, texts = RANDOM.normal(size=(20, 6)), RANDOM.normal(size=(9, 6))
    texts[3] = texts[4]  # equal similarities
    other = images + RANDOM.normal(size=(20, 6)), texts + 0.5 * RANDOM.normal(size=(9, 6))
    sides = [Sides(torch.tensor(one), torch.tensor(two)) for one, two in ((images, texts), other)]
    expected = [spearmanr(one, two).statistic for one, two in zip(images @ texts.T, other[0] @ other[1].T, strict=True)]
    assert rank_correlation(*sides) == pytest.approx(np.mean(expected))
    assert rank_correlation(sides[0], sides[0]) == pytest.approx(1.0)
    assert rank_correlation(sides[0], Sides(torch.zeros(20, 6), torch.zeros(9, 6))) is None


def test_labels_sorted_as_text_are_found_out() -> None:
    """A model that is right half of the time, on labels as sorting "0", "1", "10", "100", ... makes them."""
    truth = np.random.default_rng(3).integers(0, 100, 600)
    chosen = np.where(np.random.default_rng(4).random(600) < 0.5, truth, 7)
    refuse_other_order(truth, chosen, 100, "set")
    place = {int(name): at for at, name in enumerate(sorted(map(str, range(100))))}
    wrong = np.array([place[int(label)] for label in truth])
    with pytest.raises(UserError, match=r"set: the labels are class numbers sorted as text .* 2\d\d of 600 images"):
        refuse_other_order(wrong, chosen, 100, "set")
    # Who guesses is accused of nothing.
    for seed in range(20):
        random = np.random.default_rng(seed)
        refuse_other_order(random.integers(0, 100, 600), random.integers(0, 100, 600), 100, "set")
    # Nor who says one class of everything, however often the class is there that text would have in its place.
    uneven = np.repeat([2, 10, 3, 4], [60, 3, 4, 5])
    refuse_other_order(uneven, np.full(len(uneven), 10), 11, "set")
    refuse_other_order(np.repeat([2, 3, 4, 5], 30), np.repeat([10, 2, 7, 7], 30), 11, "set")
