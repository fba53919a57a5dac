"""What is near to a teacher follows from how near strangers come to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from teacher_cache.report.duplicates import nearest
from teacher_cache.report.threshold import near_threshold

N, COPIES = 3000, 40


def unit(rows: Any) -> npt.NDArray[np.float16]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def strangers(teacher: str, random: np.random.Generator) -> Any:
    """Rows of unrelated images: of a strong teacher in all directions, of a weak one in a narrow and flat cone."""
    if teacher == "strong":
        return random.normal(size=(N, 128))
    flat = random.normal(size=(5, 128))
    return 6 * random.normal(size=(1, 128)) + random.normal(size=(N, 5)) @ flat


@pytest.mark.parametrize(("teacher", "at"), [("strong", 0.02), ("weak", 2e-5)])
def test_copies_are_found_and_strangers_are_not(teacher: str, at: float) -> None:
    """The copies' distance, 1 - cosine, is `at`; at a fixed 0.95 nearly every image would be the weak one's."""
    random = np.random.default_rng(4)
    rows = unit(strangers(teacher, random).astype(np.float64)).astype(np.float64)
    aside = random.normal(size=(COPIES, 128))
    aside -= (aside * rows[:COPIES]).sum(axis=1, keepdims=True) * rows[:COPIES]
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    whole = unit(np.concatenate([rows, (1 - at) * rows[:COPIES] + np.sqrt(2 * at) * aside]))
    fixed = int((nearest(whole, 0.95).index >= 0).sum())
    assert fixed == 2 * COPIES if teacher == "strong" else fixed > 0.95 * N
    found = near_threshold(whole)
    assert found.doubt == ""
    assert found.cosine == pytest.approx(0.95) if teacher == "strong" else 0.99 < found.cosine < 1
    near = nearest(whole, found.cosine).index
    copies = np.r_[:COPIES, N : N + COPIES]
    assert (near[copies] >= 0).mean() > 0.95
    assert (np.delete(near, copies) >= 0).mean() < 0.01


def test_nothing_is_advised_where_it_cannot_be_known() -> None:
    random = np.random.default_rng(1)
    few = unit(random.normal(size=(49, 8)))
    assert near_threshold(few).doubt == "49 images are too few to know what is near to this teacher"
    copied = unit(np.repeat(random.normal(size=(100, 8)), 3, axis=0))
    assert near_threshold(copied).doubt.startswith("most images have exact copies")
    blind = unit(np.ones((400, 64)) + 2e-3 * random.normal(size=(400, 64)))
    assert near_threshold(blind).doubt.startswith("this teacher tells images apart too little")
