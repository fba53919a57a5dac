"""Retrieval against a brute-force count, on the cases that usually flatter: several captions, ties, NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation import recall, recall_of_groups
from evaluation.retrieval import _summary

MEDIANS = ("median_rank", "median_rank_open_clip")


def by_hand(images: np.ndarray, texts: np.ndarray, text_to_image: np.ndarray) -> dict[str, dict[str, float]]:
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    similarity = images @ texts.T
    image_ranks = []
    for image in range(len(images)):
        order = np.argsort(-similarity[image])
        image_ranks.append(1 + min(place for place, text in enumerate(order) if text_to_image[text] == image))
    text_ranks = []
    for text in range(len(texts)):
        order = list(np.argsort(-similarity[:, text]))
        text_ranks.append(1 + order.index(text_to_image[text]))

    def summary(ranks: list[int]) -> dict[str, float]:
        recalls = {f"R@{k}": 100 * float(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}
        # As open_clip has it: the median of ranks from 0, rounded down, and 1.
        theirs = np.floor(np.median(np.array(ranks) - 1)) + 1
        medians = {"median_rank": float(np.median(ranks)), "median_rank_open_clip": theirs}
        return {**recalls, "mean_rank": float(np.mean(ranks)), **medians}

    return {"image_to_text": summary(image_ranks), "text_to_image": summary(text_ranks)}


def pairs(count: int, captions: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    images = rng.normal(size=(count, 16))
    text_to_image = rng.permutation(np.repeat(np.arange(count), captions))
    texts = images[text_to_image] + noise * rng.normal(size=(count * captions, 16))
    return images * 3, texts, text_to_image


@pytest.mark.parametrize("captions", [1, 5])
def test_equals_the_brute_force_count(captions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A few rows a block, the last block not full.
    monkeypatch.setattr("evaluation.retrieval._SIMILARITIES_A_BLOCK", 7 * 60)
    images, texts, text_to_image = pairs(60, captions, noise=2.0)
    got = recall(torch.tensor(images), torch.tensor(texts), torch.tensor(text_to_image))
    expected = by_hand(images, texts, text_to_image)
    for way in ("image_to_text", "text_to_image"):
        assert got[way] == pytest.approx(expected[way])
        assert 0 < got[way]["R@1"] < got[way]["R@5"] < got[way]["R@10"] < 100


def test_the_median_of_an_even_number_of_ranks_has_two_names() -> None:
    """Ranks 1, 1, 2, 3, 3, 4: the median is 2.5, and 2 as open_clip and CLIP-KD report it."""
    ranks = torch.tensor([3, 1, 4, 1, 3, 2])
    found = _summary(ranks)
    assert [found[name] for name in MEDIANS] == [2.5, 2.0]


def test_any_caption_of_the_image_is_a_hit() -> None:
    images = torch.eye(3)
    # The first caption of image 0 looks like image 1; its second one is right.
    texts = torch.tensor([[0.1, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])
    got = recall(images, texts, torch.tensor([0, 0, 1, 2]))
    assert got["image_to_text"]["R@1"] == pytest.approx(200 / 3)
    assert got["text_to_image"]["R@1"] == pytest.approx(75.0)
    # Image 1 finds image 0's first caption before its own.
    assert got["image_to_text"]["mean_rank"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("value", [0.0, 0.3, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embeddings_that_say_nothing_find_nothing(value: float, dtype: torch.dtype) -> None:
    count, dim = 37, 513
    constant = torch.full((count, dim), value, dtype=dtype)
    got = recall(constant, constant.clone(), torch.arange(count))
    for way in ("image_to_text", "text_to_image"):
        assert got[way] == {"R@1": 0, "R@5": 0, "R@10": 0, "mean_rank": count, **dict.fromkeys(MEDIANS, count)}


def test_equal_rows_tie_wherever_they_stand() -> None:
    # Each image and each text occurs in pairs; blocked matrix products round equal rows differently by position.
    rng = np.random.default_rng(1)
    rows = torch.tensor(rng.normal(size=(101, 511)), dtype=torch.float32)
    twice = torch.cat([rows, rows])
    got = recall(twice, twice, torch.arange(202))
    assert got["image_to_text"]["R@1"] == 0
    assert got["image_to_text"]["mean_rank"] == 2
    assert got["text_to_image"]["mean_rank"] == 2


def test_rows_that_barely_differ_are_still_told_apart() -> None:
    # Their cosine is 1 - 5e-9: one number in float32, two in float64.
    rows = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    assert recall(rows, rows, torch.arange(2))["image_to_text"]["R@1"] == 100.0


def test_nan_counts_against_the_model_both_as_question_and_as_answer() -> None:
    images = torch.eye(20)
    images[4] = torch.nan
    got = recall(images, torch.eye(20), torch.arange(20))
    assert got["image_to_text"]["R@10"] == pytest.approx(95.0)
    assert got["text_to_image"]["R@1"] == 0


def test_an_image_without_caption_only_distracts() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    texts = torch.tensor([[0.9, 0.1], [0.0, 1.0]])
    got = recall(images, texts, torch.tensor([0, 1]))
    assert got["image_to_text"]["R@1"] == 100.0
    assert got["text_to_image"]["R@1"] == 50.0


def test_groups_let_several_images_be_right() -> None:
    def onehot(*rows: int) -> Tensor:
        return torch.eye(4)[list(rows)]

    # Images 0 and 1 are one group; the text of image 0 looks exactly like image 1.
    images, texts = onehot(0, 1, 2), onehot(1, 0, 2)
    apart = recall(images, texts, torch.tensor([0, 1, 2]))
    together = recall_of_groups(images, texts, torch.tensor([5, 5, 9]), torch.tensor([5, 5, 9]))
    assert apart["text_to_image"]["R@1"] == pytest.approx(100 / 3)
    assert together["text_to_image"]["R@1"] == 100.0
    assert together["image_to_text"]["R@1"] == 100.0
