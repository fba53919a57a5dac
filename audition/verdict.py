"""What figures of several seeds tell: who is first, by how much, and whether that is more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A teacher at a scale: what its students came to, one figure a seed, higher is better."""

    teacher: str
    scale: float
    figures: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.figures)

    @property
    def name(self) -> str:
        return f"{self.teacher} at {self.scale:g}"


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far the winner is before another: `margin` of means; `told` if it is beyond two standard errors of it."""

    over: Candidate
    margin: float
    told: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`ranked` by mean. `spread`: the standard deviation over seeds, of all candidates together; None of one seed.

    `second` and `rival` are the winner's leads over the next candidate, and over the best one of any other teacher;
    None where there is none.
    """

    ranked: tuple[Candidate, ...]
    spread: float | None
    second: Lead | None
    rival: Lead | None

    @property
    def winner(self) -> Candidate:
        return self.ranked[0]


def judge(candidates: Sequence[Candidate]) -> Verdict:
    """Candidates have equally many figures. Of equal means the first given is first."""
    ranked = tuple(sorted(candidates, key=lambda one: -one.mean))
    seeds = len(ranked[0].figures)
    spread = None
    if seeds > 1:
        spread = math.sqrt(statistics.fmean(statistics.variance(one.figures) for one in ranked))

    def lead(over: Candidate | None) -> Lead | None:
        if over is None:
            return None
        margin = ranked[0].mean - over.mean
        error = None if spread is None else spread * math.sqrt(2 / seeds)
        return Lead(over=over, margin=margin, told=error is not None and margin > 2 * error)

    others = (one for one in ranked if one.teacher != ranked[0].teacher)
    return Verdict(
        ranked=ranked,
        spread=spread,
        second=lead(ranked[1] if len(ranked) > 1 else None),
        rival=lead(next(others, None)),
    )


def in_words(verdict: Verdict, figure: str) -> list[str]:
    """The verdict in sentences."""
    first, seeds = verdict.winner, len(verdict.winner.figures)
    said = [f"{first.name} is first: {first.mean:.2f} % {figure}, the mean of {seeds} seed{'' if seeds == 1 else 's'}."]
    leads = {lead.over: lead for lead in (verdict.second, verdict.rival) if lead is not None}
    for over, lead in leads.items():
        if verdict.spread is None:
            said.append(
                f"It leads {over.name} by {lead.margin:.2f} points; one seed cannot tell whether that is chance."
            )
            continue
        times = f"{lead.margin / verdict.spread:.1f} times" if verdict.spread else "beyond"
        told = "" if lead.told else ", which may be chance"
        beside = f"{times} the seeds' spread of {verdict.spread:.2f}"
        said.append(f"It leads {over.name} by {lead.margin:.2f} points, {beside}{told}.")
    return said
