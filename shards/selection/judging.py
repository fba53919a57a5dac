"""Which samples of a dataset are kept, and why each of the others is not.

Samples stand in the dataset's order. Each rule is put to what those before it have left: first what a sample says of
itself (keys, conditions: `facts.py`), then what takes all of them (an evaluation's images, duplicates, ranks, shares).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import UserError
from shards.near import first_copies, near_any
from shards.selection.facts import Hashes, drawn
from shards.selection.settings import FilterSettings, amount_of

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Judging:
    """Leaves samples out, rule by rule; memory is 2 bytes a sample.

    `reasons`: what those were that left something out, each with how many samples; `codes` (n,) int16: which of them
    left a sample out, from 1 on, 0 for what is kept.
    """

    def __init__(self, samples: int) -> None:
        self.codes = np.zeros(samples, np.int16)
        self.reasons: dict[str, int] = {}

    def kept(self) -> Ints:
        """The places of what is kept."""
        return np.flatnonzero(self.codes == 0)

    def leave_out(self, reason: str, these: Bools) -> None:
        """Leave out those of `these` (n,) that are kept so far."""
        fresh = these & (self.codes == 0)
        count = int(fresh.sum())
        if count:
            self.reasons[reason] = count
            self.codes[fresh] = len(self.reasons)

    def leave_out_at(self, reason: str, places: Ints) -> None:
        """As `leave_out`, by places."""
        these = np.zeros(len(self.codes), np.bool_)
        these[places] = True
        self.leave_out(reason, these)

    def all_but(self, places: Ints, reason: str) -> None:
        """Leave out all that is not at these places."""
        these = np.ones(len(self.codes), np.bool_)
        these[places] = False
        self.leave_out(reason, these)


Facts = Mapping[str, npt.NDArray[Any]]


def judge(settings: FilterSettings, rules: Sequence[str], facts: Facts, foreign: Mapping[str, Hashes]) -> Judging:
    """Put every rule of the settings.

    `rules`: those of a sample alone, by their codes in `facts`; `foreign`: hashes of the images of each dataset that
    nothing shall be like. Raises `UserError` where nothing is left.
    """
    judging = Judging(len(facts["code"]))
    for number, reason in enumerate(rules, 1):
        judging.leave_out(reason, facts["code"] == number)
    for url, theirs in foreign.items():
        kept = judging.kept()
        alike = near_any(facts["near"][kept], theirs)
        judging.leave_out_at(f"a near copy of an image of {url}", kept[alike])
    if settings.unique == "embeddings":
        _once_by_embeddings(judging, facts)
    elif settings.unique is not None:
        _once(judging, facts, near=settings.unique == "near")
    if settings.best is not None:
        _best(judging, facts["number"], *amount_of(settings.best, "--best"))
    if settings.per is not None:
        column, most, _ = amount_of(settings.per, "--per")
        _per(judging, column, facts["group"], drawn(facts["key"], "per", settings.seed), int(most))
    if settings.sample is not None:
        _, amount, is_share = amount_of(settings.sample, "--sample", named=False)
        _sample(judging, drawn(facts["key"], "sample", settings.seed), amount, is_share)
    if not judging.kept().size:
        told = ", ".join(f"{reason}: {count:,}" for reason, count in judging.reasons.items())
        raise UserError(f"nothing is left of {len(judging.codes):,} samples ({told})", where=settings.shards)
    return judging


def _best(judging: Judging, values: npt.NDArray[np.float64], column: str, amount: float, is_share: bool) -> None:
    kept = judging.kept()
    known = kept[~np.isnan(values[kept])]
    most = round(amount * len(kept)) if is_share else int(amount)
    judging.all_but(known[np.argsort(-values[known], kind="stable")[:most]], f"not among the best by {column}")


def _per(judging: Judging, column: str, values: Hashes, draw: Hashes, most: int) -> None:
    kept = judging.kept()
    order = kept[np.lexsort((draw[kept], values[kept]))]
    starts = np.flatnonzero(np.concatenate([[True], values[order][1:] != values[order][:-1]]))
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff(np.concatenate([starts, [len(order)]])))
    judging.all_but(order[ranks < most], f"more than {most:,} of this {column}")


def _sample(judging: Judging, draw: Hashes, amount: float, is_share: bool) -> None:
    kept = judging.kept()
    most = round(amount * len(kept)) if is_share else int(amount)
    if most > len(kept):
        raise UserError(f"{most:,} samples of {len(kept):,}", where="--sample", do="Ask for fewer")
    judging.all_but(kept[np.argsort(draw[kept], kind="stable")[:most]], "not drawn")


def _once(judging: Judging, facts: Facts, *, near: bool) -> None:
    """Of the kept samples whose images are equal, leave out all but the first."""
    kept = judging.kept()
    if near:
        first = first_copies(facts["near"][kept])
    else:
        _, firsts, group = np.unique(facts["exact"][kept], return_index=True, return_inverse=True)
        first = firsts[group]
    reason = f"{'a near copy' if near else 'a copy'} of an earlier image"
    judging.leave_out_at(reason, kept[first != np.arange(len(kept))])


def _once_by_embeddings(judging: Judging, facts: Facts) -> None:
    """Of kept samples that a report's table pairs up as near, leave out all but the first of each group.

    A group reaches over others: the table knows the nearest of each sample alone, so of three copies two pairs.
    """
    keys, nearest = facts["key"], facts["nearest"]
    order = np.argsort(keys, kind="stable")
    other = order[np.minimum(np.searchsorted(keys[order], nearest), max(0, len(order) - 1))]
    paired = (nearest != 0) & (keys[other] == nearest) & (judging.codes == 0) & (judging.codes[other] == 0)
    root = np.arange(len(keys))
    at = np.flatnonzero(paired)
    for sample in at.tolist():
        one, two = _root(root, sample), _root(root, int(other[sample]))
        root[max(one, two)] = min(one, two)
    members = np.union1d(at, other[at])
    first = np.array([_root(root, place) for place in members.tolist()], np.int64)
    judging.leave_out_at("its embedding is near an earlier one's", members[first != members])


def _root(root: Ints, at: int) -> int:
    while root[at] != at:
        root[at] = root[root[at]]
        at = int(root[at])
    return at
