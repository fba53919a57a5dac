"""Numbers and words that are counted, whatever their number, in flat memory; with the keys of a few samples of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

EDGES = np.concatenate([np.arange(256), *((np.arange(128, 256) << power) for power in range(1, 40))]).astype(np.int64)
"""Whole numbers below 256 have a bin each, larger ones one of less than a hundredth of them."""
KEYS = 3
"""So many samples are named of a bin or a word."""
_MOST_WORDS = 100_000
"""Of more words than these, the rarest are forgotten."""

Numbers = npt.NDArray[np.int64]


class Measure:
    """A whole number of each sample, 0 or more. `scale`: how many of these are one of what it is said in."""

    def __init__(self, scale: int = 1) -> None:
        self.scale = scale
        self.counts = np.zeros(len(EDGES), np.int64)
        self.total = 0
        self.smallest = self.largest = 0
        self._named = np.zeros(len(EDGES), np.int8)
        self._keys: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return int(self.counts.sum())

    def add(self, values: Numbers, keys: Sequence[str]) -> None:
        """Count `values` (n,), of the samples with these keys."""
        if not len(values):
            return
        low, high = int(values.min()), int(values.max())
        self.smallest = min(self.smallest, low) if len(self) else low
        self.largest = max(self.largest, high)
        self.total += int(values.sum())
        places = np.searchsorted(EDGES, values, side="right") - 1
        self.counts += np.bincount(places, minlength=len(EDGES))
        wanted = np.flatnonzero(self._named[places] < KEYS)
        for at in wanted[_first_of_each(places[wanted])].tolist():
            place = int(places[at])
            if self._named[place] < KEYS:
                self._named[place] += 1
                self._keys.setdefault(place, []).append(keys[at])

    @property
    def mean(self) -> float:
        return self.total / len(self) / self.scale

    def percentile(self, percent: float) -> tuple[float, list[str]]:
        """The value that `percent` of the samples do not exceed, exact below 256 and to a hundredth above, and keys of
        samples that have it. There must be samples.
        """
        place = int(np.searchsorted(np.cumsum(self.counts), max(1, np.ceil(len(self) * percent / 100))))
        if percent in {0, 100}:
            value = float(self.largest if percent else self.smallest)
        else:
            value = float(np.clip((EDGES[place] + _end(place)) // 2, self.smallest, self.largest))
        return value / self.scale, self._keys[place]

    def in_bars(self, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The share of the samples between each two of `edges` (n + 1,), ascending, in the unit that it is said in."""
        used = np.flatnonzero(self.counts)
        values = EDGES[used].clip(self.smallest, self.largest) / self.scale
        bars = np.histogram(values, edges, weights=self.counts[used].astype(np.float64))[0]
        return np.asarray(bars / max(len(self), 1))


def _end(place: int) -> int:
    """The largest number of a bin."""
    return int(EDGES[place + 1]) - 1 if place + 1 < len(EDGES) else int(EDGES[place])


def _first_of_each(places: Numbers) -> Numbers:
    """Where the first few of each value stand, in order."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    again = np.zeros(len(ordered), bool)
    again[KEYS:] = ordered[KEYS:] == ordered[:-KEYS]
    return np.sort(order[~again])


@dataclass(slots=True)
class Count:
    """How many samples, and the keys of a few."""

    samples: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, samples: int, keys: Sequence[str]) -> None:
        self.samples += samples
        self.keys += keys[: KEYS - len(self.keys)]


class Words:
    """Words (formats, hosts, labels, ...) and how many samples have each. `short`: how many samples a count may lack,
    because rare words were forgotten.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}
        self.short = 0

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, word: str) -> bool:
        return word in self._counts

    def __getitem__(self, word: str) -> Count:
        return self._counts.get(word, Count())

    @property
    def samples(self) -> int:
        return sum(count.samples for count in self._counts.values())

    def add(self, word: str, samples: int, keys: Sequence[str]) -> None:
        self._counts.setdefault(word, Count()).add(samples, keys)

    def add_all(self, words: Mapping[str, Count]) -> None:
        for word, count in words.items():
            self.add(word, count.samples, count.keys)
        if len(self._counts) > _MOST_WORDS:
            kept = list(self.most_common(_MOST_WORDS // 2))
            self.short += kept[-1][1].samples
            self._counts = dict(kept)

    def most_common(self, most: int) -> Iterator[tuple[str, Count]]:
        """The words with the most samples; of equally many the first by name."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1].samples, item[0]))
        return iter(ordered[:most])
