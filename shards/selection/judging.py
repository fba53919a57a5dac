"""Which samples of a dataset are kept, and why each of the others is not.

Samples stand in the dataset's order. Each rule is put to what those before it have left: first what a sample says of
itself (keys, conditions), then what takes all of them (an evaluation's images, duplicates, ranks, shares).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pictures.refusal import RefusedError
from shards.conditions import Condition
from shards.errors import UserError
from shards.fingerprint import seed64
from shards.near import image_hash, near_groups
from shards.progress import Meter
from shards.reader import Dataset
from shards.selection.columns import Columns, digests_of
from shards.selection.keys import WantedKeys
from shards.selection.settings import FilterSettings, amount_of
from shards.shard import Shard
from shards.side_table import SideTable

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class Judging:
    """Puts rules to the samples of a dataset, one after the other; memory is 2 bytes a sample, and 8 to 24 for a rule.

    `reasons`: what those were that left something out, each with how many samples; `codes` (n,) int16: which of them
    left a sample out, from 1 on, 0 for what is kept.
    """

    def __init__(self, dataset: Dataset, tables: Sequence[SideTable]) -> None:
        self.dataset, self._tables = dataset, tables
        self._offsets = np.concatenate([[0], np.cumsum([shard.count for shard in dataset.shards])]).astype(np.int64)
        self.codes = np.zeros(len(dataset), np.int16)
        self.reasons: dict[str, int] = {}

    def of(self, place: int) -> npt.NDArray[np.int16]:
        """The codes of a shard's samples."""
        return self.codes[self._offsets[place] : self._offsets[place + 1]]

    def apply(self, settings: FilterSettings) -> None:
        """Put every rule of the settings.

        Raises `UserError` for a column, key file or dataset that is not there, and where nothing is left.
        """
        if settings.keys is not None:
            wanted = WantedKeys.read(settings.keys)
            self._leave_out(f"not in {settings.keys}", ~self._each("keys", wanted.hold, np.bool_))
            wanted.refuse_if_none(len(self._kept()), self.dataset)
        for text in settings.where:
            self._leave_out(text, ~self._each(text, partial(_met, Condition.parse(text)), np.bool_))
        self._without(settings.unlike)
        if settings.unique == "embeddings":
            self._once_by_embeddings()
        elif settings.unique is not None:
            self._once(near=settings.unique == "near")
        if settings.best is not None:
            self._best(*amount_of(settings.best, "--best"))
        if settings.per is not None:
            column, most, _ = amount_of(settings.per, "--per")
            self._per(column, int(most), settings.seed)
        if settings.sample is not None:
            self._sample(*amount_of(settings.sample, "--sample", named=False)[1:], settings.seed)
        if not self._kept().size:
            told = ", ".join(f"{reason}: {count:,}" for reason, count in self.reasons.items())
            raise UserError(f"nothing is left of {len(self.codes):,} samples ({told})", where=settings.shards)

    def keep_only(self, kept: npt.NDArray[np.bool_], reason: str) -> None:
        """Leave out what is not among `kept` (n,)."""
        self._leave_out(reason, ~kept)

    def key_hashes(self, seed: int, purpose: str) -> Hashes:
        """(n,): a hash of each key, the same whatever else the dataset holds."""
        mark = seed64(purpose, seed)

        def drawn(columns: Columns) -> Hashes:
            return _mixed(digests_of(columns["key"].to_pylist()) ^ np.uint64(mark))

        return self._each("keys", drawn, np.uint64, every=True)

    def _kept(self) -> Ints:
        return np.flatnonzero(self.codes == 0)

    def _leave_out(self, reason: str, these: npt.NDArray[np.bool_]) -> None:
        fresh = these & (self.codes == 0)
        count = int(fresh.sum())
        if count:
            self.reasons[reason] = count
            self.codes[fresh] = len(self.reasons)

    def _each(
        self, label: str, judge: Callable[[Columns], npt.NDArray[Any]], kind: Any, *, every: bool = False
    ) -> npt.NDArray[Any]:
        """(n,): what `judge` says of each shard's samples; shards that have nothing left are not looked at."""
        out = np.zeros(len(self.codes), kind)
        places = [
            place
            for place, shard in enumerate(self.dataset.shards)
            if shard.count and (every or (self.of(place) == 0).any())
        ]

        def one(place: int) -> None:
            shard = self.dataset.shards[place]
            said = judge(Columns(shard, self._tables))
            assert len(said) == shard.count, f"{label} of shard {shard.id}"
            out[self._offsets[place] : self._offsets[place + 1]] = said
            shard.release()

        with (
            ThreadPoolExecutor(os.cpu_count() or 1) as pool,
            Meter(f"filter: {label}", len(places), unit="shards") as meter,
        ):
            for place, _ in zip(places, pool.map(one, places), strict=True):
                meter.advance(1, items=self.dataset.shards[place].count)
        return out

    def _numbers(self, column: str) -> npt.NDArray[np.float64]:
        """(n,): a column as numbers, NaN where it has none."""

        def judge(columns: Columns) -> npt.NDArray[np.float64]:
            values = columns[column]
            try:
                return np.asarray(pc.fill_null(values.cast(pa.float64()), np.nan))
            except pa.ArrowException as error:
                raise UserError(f"the column {column} holds no numbers ({error})", where="--best") from None

        return self._each(column, judge, np.float64)

    def _best(self, column: str, amount: float, is_share: bool) -> None:
        kept, values = self._kept(), self._numbers(column)
        known = kept[~np.isnan(values[kept])]
        most = round(amount * len(kept)) if is_share else int(amount)
        best = known[np.argsort(-values[known], kind="stable")[:most]]
        self._all_but(best, f"not among the best by {column}")

    def _per(self, column: str, most: int, seed: int) -> None:
        def judge(columns: Columns) -> Hashes:
            return digests_of([repr(value) for value in columns[column].to_pylist()])

        values = self._each(column, judge, np.uint64)
        kept, drawn = self._kept(), self.key_hashes(seed, "per")
        order = kept[np.lexsort((drawn[kept], values[kept]))]
        starts = np.flatnonzero(np.concatenate([[True], values[order][1:] != values[order][:-1]]))
        ranks = np.arange(len(order)) - np.repeat(starts, np.diff(np.concatenate([starts, [len(order)]])))
        self._all_but(order[ranks < most], f"more than {most:,} of this {column}")

    def _sample(self, amount: float, is_share: bool, seed: int) -> None:
        kept, drawn = self._kept(), self.key_hashes(seed, "sample")
        most = round(amount * len(kept)) if is_share else int(amount)
        if most > len(kept):
            raise UserError(f"{most:,} samples of {len(kept):,}", where="--sample", do="Ask for fewer")
        self._all_but(kept[np.argsort(drawn[kept], kind="stable")[:most]], "not drawn")

    def _all_but(self, these: Ints, reason: str) -> None:
        out = np.ones(len(self.codes), np.bool_)
        out[these] = False
        self._leave_out(reason, out)

    def _once(self, *, near: bool) -> None:
        """Of the kept samples whose images are equal, leave out all but the first."""
        hashes = self._each("images", _near_hashes if near else _exact_hashes, np.uint64)
        kept = self._kept()
        if near:
            first = near_groups(hashes[kept])
        else:
            _, firsts, group = np.unique(hashes[kept], return_index=True, return_inverse=True)
            first = firsts[group]
        out = np.zeros(len(self.codes), np.bool_)
        out[kept[first != np.arange(len(kept))]] = True
        self._leave_out(f"{'a near copy' if near else 'a copy'} of an earlier image", out)

    def _without(self, others: Sequence[str]) -> None:
        """Leave out images that another dataset has, or near copies of them."""
        if not others:
            return
        hashes = self._each("images", _near_hashes, np.uint64)
        for url in others:
            theirs = [_near_hashes(Columns(shard, ())) for shard in Dataset.open(url).shards if shard.count]
            foreign, kept = np.concatenate(theirs), self._kept()
            first = near_groups(np.concatenate([foreign, hashes[kept]]))[len(foreign) :]
            out = np.zeros(len(self.codes), np.bool_)
            out[kept[first < len(foreign)]] = True
            self._leave_out(f"a near copy of an image of {url}", out)

    def _once_by_embeddings(self) -> None:
        """Of kept samples that a report's table pairs up as near, leave out all but the first of each group."""
        keys = self._each("keys", lambda columns: digests_of(columns["key"].to_pylist()), np.uint64, every=True)

        def judge(columns: Columns) -> Hashes:
            named = columns["nearest_key"].to_pylist()
            found = digests_of([key or "" for key in named])
            return np.where([key is None for key in named], np.uint64(0), found)

        nearest = self._each("near embeddings", judge, np.uint64)
        order = np.argsort(keys, kind="stable")
        at = np.minimum(np.searchsorted(keys[order], nearest), max(0, len(order) - 1))
        other = order[at]
        paired = (nearest != 0) & (keys[other] == nearest) & (self.codes == 0) & (self.codes[other] == 0)
        root = np.arange(len(keys))
        for sample in np.flatnonzero(paired).tolist():
            one, two = _root(root, sample), _root(root, int(other[sample]))
            root[max(one, two)] = min(one, two)
        first = np.array([_root(root, sample) for sample in np.flatnonzero(paired).tolist()], np.int64)
        out = np.zeros(len(self.codes), np.bool_)
        at_paired = np.flatnonzero(paired)
        out[at_paired[first != at_paired]] = True
        out[other[at_paired][_roots(root, other[at_paired]) != other[at_paired]]] = True
        self._leave_out("its embedding is near an earlier one's", out)


def _root(root: Ints, at: int) -> int:
    while root[at] != at:
        root[at] = root[root[at]]
        at = int(root[at])
    return at


def _roots(root: Ints, these: Ints) -> Ints:
    return np.array([_root(root, at) for at in these.tolist()], np.int64)


def _met(condition: Condition, columns: Columns) -> npt.NDArray[np.bool_]:
    values = columns[condition.column]
    return np.asarray(
        condition.met_by(pa.chunked_array([values])).combine_chunks().to_numpy(zero_copy_only=False), np.bool_
    )


def _images(columns: Columns) -> Iterator[bytes]:
    shard: Shard = columns.shard
    return (shard.image_bytes(row) for row in range(shard.count))


def _exact_hashes(columns: Columns) -> Hashes:
    return np.array(
        [int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) for data in _images(columns)], np.uint64
    )


def _near_hashes(columns: Columns) -> Hashes:
    shard, found = columns.shard, np.zeros(columns.shard.count, np.uint64)
    for row, data in enumerate(_images(columns)):
        try:
            found[row] = image_hash(data)
        except RefusedError as error:
            raise UserError(
                f"the image of {shard.keys[row]} does not decode ({error})",
                where=shard.tar,
                do="Run `clipstill shards verify`",
            ) from None
    return found


def _mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: neighbours in, strangers out."""
    with np.errstate(over="ignore"):
        z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
