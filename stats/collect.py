"""Everything that is said of some datasets, from one pass over their shards.

Memory does not grow with the samples: what is kept of each is counted away, or lies in a file until it is compared.
"""

from __future__ import annotations

import os
import shlex
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pages.sheet import drawn
from shards import Dataset, Shard
from shards.dataset import DatasetPlan
from shards.progress import Meter
from stats.ledgers import count_rows
from stats.measures import Count, Measure, Words
from stats.repeats import Group, Repeated, Repeats
from stats.shard import ASPECT_SCALE, NUMBERS, OWN_WORDS, Cell, ShardFigures, picture_of, read_shard

_SHEET = 24
_GROUPS = 12
_PICTURED = 6
_AT_ONCE = 10_000
"""So many samples of a shard are read before they are counted away."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Same:
    """Samples of a dataset that have the same image or caption: how many, the keys of some, and one to look at."""

    size: int
    keys: tuple[str, ...]
    cell: Cell


@dataclass(eq=False)
class OfDataset:
    """What is said of one dataset. `name` tells it from the others; `place` is how a command line names it.

    `rows` of its ledgers, of which those in `refused` are no samples, by status and cause.
    `measures` by name, of the samples of which each is known; `words` by column. `images` and `captions`: those that
    several samples have.
    """

    name: str
    place: str
    samples: int
    shards: int
    captioned: bool
    rows: int
    refused: Words
    measures: dict[str, Measure] = field(
        default_factory=lambda: {name: Measure(ASPECT_SCALE if name == "aspect" else 1) for name in NUMBERS}
    )
    words: dict[str, Words] = field(default_factory=dict)
    empty: Count = field(default_factory=Count)
    cells: list[Cell] = field(default_factory=list)
    images: tuple[Same, ...] = ()
    captions: tuple[Same, ...] = ()

    def of(self, column: str) -> Words:
        """The words of a column, none if no sample has it."""
        return self.words.get(column, Words())

    @property
    def columns(self) -> dict[str, Words]:
        """The columns of the metadata that are counted: labels and licences."""
        return {name: words for name, words in self.words.items() if name not in OWN_WORDS}

    def add(self, shard: ShardFigures) -> None:
        for name, (values, rows) in shard.numbers.items():
            self.measures[name].add(values, [shard.keys[row] for row in rows.tolist()])
        for column, words in shard.words.items():
            self.words.setdefault(column, Words()).add_all(words)
        self.empty.add(shard.empty.samples, shard.empty.keys)
        self.cells += shard.cells


@dataclass(frozen=True)
class Both:
    """Two datasets (by their numbers) have `images` and `captions` in common, so many different ones; keys of some."""

    one: int
    other: int
    images: int
    captions: int
    keys: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figures:
    """What is said of each dataset, and of all of them together."""

    datasets: tuple[OfDataset, ...]
    images: Repeated
    captions: Repeated
    pairs: tuple[Both, ...]


def figures_of(urls: Sequence[str]) -> Figures:
    """Read these datasets, every shard once, on all cores. Raises `UserError` if one is none, or is damaged."""
    opened = [Dataset.open(url) for url in urls]
    named = _named(opened)
    found = []
    for dataset, name, url in zip(opened, named, urls, strict=True):
        records = {shard.id: shard.record for shard in dataset.shards}
        rows, refused = count_rows(DatasetPlan.read(dataset.folder), records)
        of = (len(dataset), len(dataset.shards), dataset.captioned, rows, refused)
        found.append(OfDataset(name, shlex.quote(url), *of))
    with (
        Repeats(len(opened)) as images,
        Repeats(len(opened)) as captions,
        Meter("shards stats", sum(len(dataset.shards) for dataset in opened), unit="shards") as meter,
    ):
        for number, (dataset, into) in enumerate(zip(opened, found, strict=True)):
            for piece, figures in _read(dataset, _SHEET if len(opened) == 1 else _SHEET // 2):
                into.add(figures)
                images.add(number, figures.images, piece.place, np.array(piece.rows))
                captions.add(number, figures.texts, piece.place, figures.text_rows + piece.rows.start)
                meter.advance(int(piece.is_last), items=len(piece.rows))
        repeated = images.found(_GROUPS), captions.found(_GROUPS)
    for number, (dataset, into) in enumerate(zip(opened, found, strict=True)):
        into.images = tuple(_same(dataset, repeated[0].largest[number], _PICTURED))
        into.captions = tuple(_same(dataset, repeated[1].largest[number], 0))
    return Figures(tuple(found), *repeated, tuple(_pairs(opened, *repeated)))


def _named(datasets: Sequence[Dataset]) -> list[str]:
    """A name for each, its own unless another has it too."""
    names = [dataset.name for dataset in datasets]
    return [name if names.count(name) == 1 else str(one.folder) for name, one in zip(names, datasets, strict=True)]


@dataclass(frozen=True)
class _Piece:
    """Neighbouring rows of a shard, which is at `place` in its dataset: somebody's tar may have millions."""

    place: int
    shard: Shard
    rows: range

    @property
    def is_last(self) -> bool:
        return self.rows.stop == self.shard.count


def _pieces(dataset: Dataset) -> Iterator[_Piece]:
    for place, shard in enumerate(dataset.shards):
        for start in range(0, shard.count, _AT_ONCE) or [0]:
            yield _Piece(place, shard, range(start, min(start + _AT_ONCE, shard.count)))


def _read(dataset: Dataset, cells: int) -> Iterator[tuple[_Piece, ShardFigures]]:
    """The figures of every piece, in order."""
    shown: dict[int, set[int]] = {}
    for place, row in drawn([shard.count for shard in dataset.shards], dataset.name, cells):
        shown.setdefault(place, set()).add(row)

    def read(piece: _Piece) -> tuple[_Piece, ShardFigures]:
        of = read_shard(piece.shard, piece.rows, shown.get(piece.place, ()), captioned=dataset.captioned)
        return piece, of

    with warnings.catch_warnings():
        # Here, not where images are opened: changing the filters is not safe in threads.
        warnings.simplefilter("ignore")
        for piece, figures in _ahead(read, _pieces(dataset)):
            yield piece, figures
            if piece.is_last:
                piece.shard.release()


def _ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """The results in order, made on every core, few of them before they are wanted."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * (os.cpu_count() or 1):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _same(dataset: Dataset, groups: Sequence[Group], pictured: int) -> Iterator[Same]:
    """The groups with keys; the first ones with a picture."""
    for number, group in enumerate(groups):
        keys = tuple(_key(dataset, place) for place in group.places)
        shard, row = dataset.shards[group.places[0][0]], group.places[0][1]
        image = picture_of(shard.image_bytes(row)) if number < pictured else ""
        yield Same(group.size, keys, Cell(keys[0], image, shard.caption(row).strip()))
        shard.release()


def _pairs(datasets: Sequence[Dataset], images: Repeated, captions: Repeated) -> Iterator[Both]:
    for (one, other), places in images.shared_places.items():
        keys = tuple((_key(datasets[one], a), _key(datasets[other], b)) for a, b in places)
        yield Both(one, other, int(images.shared[one, other]), int(captions.shared[one, other]), keys)


def _key(dataset: Dataset, place: tuple[int, int]) -> str:
    return dataset.shards[place[0]].keys[place[1]]
