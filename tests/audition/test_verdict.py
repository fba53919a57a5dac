"""Who is first, by how much, and whether it is told from chance: against numbers worked out here."""

from __future__ import annotations

import numpy as np
import pytest

from audition.verdict import Candidate, Verdict, in_words, judge


def heard(**figures: tuple[float, ...]) -> Verdict:
    return judge(
        [
            Candidate(teacher=name.partition("_")[0], scale=float(name.partition("_")[2]), figures=values)
            for name, values in figures.items()
        ]
    )


def test_the_margin_stands_beside_the_seeds_spread() -> None:
    figures = {"a_40": (10.0, 12.0, 11.0), "a_60": (15.0, 16.0, 17.0), "b_40": (9.0, 9.5, 10.0)}
    verdict = heard(**figures)
    spread = np.sqrt(np.mean([np.var(values, ddof=1) for values in figures.values()]))
    assert verdict.spread == pytest.approx(spread)
    assert [one.name for one in verdict.ranked] == ["a at 60", "a at 40", "b at 40"]
    assert verdict.second is not None
    assert verdict.rival is not None
    assert (verdict.second.over.name, verdict.second.margin) == ("a at 40", 5.0)
    assert (verdict.rival.over.name, verdict.rival.margin) == ("b at 40", 6.5)
    assert verdict.second.told
    said = in_words(verdict, "R")
    assert said[0] == "a at 60 is first: 16.00 % R, the mean of 3 seeds."
    assert f"by 5.00 points, {5 / spread:.1f} times the seeds' spread of {spread:.2f}." in said[1]
    assert len(said) == 3


def test_what_may_be_chance_is_called_so() -> None:
    """Two standard errors of a difference of means decide."""
    sd, seeds = 1.0, 2
    error = sd * np.sqrt(2 / seeds)
    for margin, told in ((1.99 * error, False), (2.01 * error, True)):
        half = sd / np.sqrt(2)
        verdict = heard(a_40=(10 - half, 10 + half), b_40=(10 - margin - half, 10 - margin + half))
        assert verdict.spread == pytest.approx(sd)
        assert verdict.second is not None
        assert verdict.second.told == told
        assert ("may be chance" in in_words(verdict, "R")[1]) != told


def test_one_seed_tells_nothing_and_one_candidate_has_no_rival() -> None:
    verdict = heard(a_40=(10.0,), a_60=(20.0,))
    assert verdict.spread is None
    assert verdict.rival is None
    assert "one seed cannot tell" in in_words(verdict, "R")[1]
    assert in_words(heard(a_40=(1.0, 2.0)), "R") == ["a at 40 is first: 1.50 % R, the mean of 2 seeds."]
