"""Winoground's, SugarCrepe's and WinoGAViL's scores, against loops over instances."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor

from evaluation.matching import association, matching
from evaluation.tasks import Association, Matching

RANDOM = np.random.default_rng(11)


class Table:
    """Stands where a text tower would: a row of its own for each text."""

    def __init__(self, texts: Sequence[str]) -> None:
        rows = RANDOM.normal(size=(len(texts), 6))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self.rows = dict(zip(texts, rows, strict=True))

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor(np.array([self.rows[text] for text in texts]))


def images(count: int) -> np.ndarray:
    rows = RANDOM.normal(size=(count, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_winogrounds_three_scores() -> None:
    captions = tuple((f"a{at}", f"b{at}") for at in range(60))
    table: Any = Table([text for pair in captions for text in pair])
    found, places = images(120), np.arange(120).reshape(60, 2)
    got = matching(Matching(places, captions), torch.tensor(found), table)
    text, image = [], []
    for pair, (one, other) in zip(captions, places, strict=True):
        s = {(c, i): table.rows[pair[c]] @ found[(one, other)[i]] for c in (0, 1) for i in (0, 1)}
        # The paper's definitions, section 4.
        text.append(s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1])
        image.append(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0])
    expected = {"text": text, "image": image, "group": [a and b for a, b in zip(text, image, strict=True)]}
    assert {name: figure.value for name, figure in got.items()} == pytest.approx(
        {name: 100 * np.mean(hits) for name, hits in expected.items()}
    )
    assert 0 < got["group"].value < got["text"].value


def test_sugarcrepe_and_ties() -> None:
    captions = (("dog", "cat"), ("fox", "cat"), ("same", "same"))
    table: Any = Table(["dog", "cat", "fox", "same"])
    found = np.stack([table.rows["dog"], table.rows["cat"], table.rows["same"]])
    got = matching(Matching(np.array([[0], [1], [2]]), captions), torch.tensor(found), table)
    # The first is right, the second's image is the negative's, and a caption that is its own negative is a tie.
    assert {name: figure.value for name, figure in got.items()} == {"text": pytest.approx(100 / 3)}


def test_winogavils_jaccard() -> None:
    sizes = [5, 6, 10, 12, 12]
    cues = ("Jazz", "orange", "Sea", "idea", "word")
    table: Any = Table(["A jazz", "An orange", "A sea", "An idea", "A word"])
    ends = np.cumsum([0, *sizes])
    places = tuple(np.arange(start, end) for start, end in pairwise(ends))
    right = tuple(np.isin(np.arange(size), RANDOM.choice(size, 3, replace=False)) for size in sizes)
    found = images(int(ends[-1]))
    got = association(Association(cues, places, right), torch.tensor(found), table)
    scores = []
    for prompt, where, truth in zip(table.rows, places, right, strict=True):
        nearest = np.argsort(found[where] @ table.rows[prompt])[-3:]
        scores.append(jaccard_score(truth, np.isin(np.arange(len(where)), nearest)))
    assert got["jaccard"].value == pytest.approx(100 * np.mean(scores))
    assert got["jaccard_5-6"].value == pytest.approx(100 * np.mean(scores[:2]))
    assert got["jaccard_10-12"].value == pytest.approx(100 * np.mean(scores[2:]))
