"""A few lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from shards.quantities import said_share, said_size
from stats.collect import Figures, OfDataset
from stats.measures import Words

_SHOWN = 3


def lines_of(figures: Figures) -> Iterator[str]:
    """What stands at the top of the page, in plain text."""
    for number, dataset in enumerate(figures.datasets):
        size = said_size(dataset.measures["bytes"].total)
        yield f"{dataset.name}: {dataset.samples:,} samples in {_many(dataset.shards, 'shard')}, {size} of images"
        yield from (f"  {line}" for line in _of_dataset(figures, number, dataset))
    for pair in figures.pairs:
        names = " and ".join(figures.datasets[number].name for number in (pair.one, pair.other))
        yield f"{names} have {pair.images:,} images and {pair.captions:,} captions in common"


def _of_dataset(figures: Figures, number: int, dataset: OfDataset) -> Iterator[str]:
    if dataset.refused.samples:
        of = f"{dataset.refused.samples:,} of {dataset.rows:,} rows are no samples"
        yield f"rows: {of} ({_common(dataset.refused)})"
    sides = [dataset.measures[name] for name in ("width", "height")]
    of = f", {' × '.join(f'{side.percentile(50)[0]:.0f}' for side in sides)} px at the median" if len(sides[0]) else ""
    size = said_size(dataset.measures["bytes"].percentile(50)[0])
    images = f"{_common(dataset.of('format'))}{of}, {size}; {_repeated(int(figures.images.repeats[number]))}"
    unreadable = dataset.of("unreadable")
    yield f"images: {images}" + (f"; {unreadable.samples:,} of unknown size" if unreadable.samples else "")
    words = dataset.measures["words"]
    if dataset.captioned and len(words):
        of = f"{words.percentile(50)[0]:.0f} words at the median ({words.smallest:,} to {words.largest:,})"
        repeats = _repeated(int(figures.captions.repeats[number]))
        several = dataset.measures["captions"]
        many = f"; {several.mean:.1f} a sample" if several.largest > 1 else ""
        yield f"captions: {of}; {dataset.empty.samples:,} empty; {repeats}{many}"
    elif dataset.captioned:
        yield "captions: all are empty"
    else:
        yield "captions: none"
    hosts = dataset.of("host")
    if hosts.samples:
        yield f"sources: {_many(len(hosts), 'host')} ({_common(hosts)})"
    for column, words_of in dataset.columns.items():
        yield f"{column}: {len(words_of):,} different ({_common(words_of)})"


def _common(words: Words) -> str:
    shown = [f"{word} {said_share(count.samples, words.samples)}" for word, count in words.most_common(_SHOWN)]
    return ", ".join(shown) + (", ..." if len(words) > _SHOWN else "")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _repeated(count: int) -> str:
    return "none twice" if not count else f"{count:,} {'repeats' if count == 1 else 'repeat'} an earlier one"
