"""One page about datasets, one beside the other: their numbers, and the keys of samples behind each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pages import render
from pages.axis import Axis
from pages.plot import histogram
from shards.quantities import said_share, said_size
from stats.collect import Figures, OfDataset
from stats.measures import Measure, Words

_TOP = 20
_BARS = 60
_PERCENTS = (("smallest", 0), ("5 %", 5), ("median", 50), ("95 %", 95), ("largest", 100))
_CUT = 99.5
"""A linear axis ends at this percentile."""
_LOOKS = ("area c0 half", *(f"edge c{number}" for number in (1, 2, 3, 4, 5)))


def page_of(figures: Figures) -> bytes:
    """The page, one HTML file with nothing outside it. Equal datasets give equal pages."""
    datasets = figures.datasets
    looks = [(_LOOKS[number % len(_LOOKS)], dataset) for number, dataset in enumerate(datasets)]
    images = [
        _chart(looks, "shorter", "shorter side, pixels"),
        _chart(looks, "aspect", "aspect ratio, width by height", say=lambda value: f"{value:g}"),
        _chart(looks, "bytes", "bytes an image", say=said_size),
    ]
    captions = [_bars(looks, "words", "words a caption"), _bars(looks, "characters", "characters a caption")]
    if any(dataset.measures["captions"].largest > 1 for dataset in datasets):
        captions.append(_bars(looks, "captions", "captions a sample"))
    columns = sorted({name for dataset in datasets for name in dataset.columns})
    return render(
        "stats",
        "stats.html.j2",
        datasets=datasets,
        overview=_overview(figures),
        looks=[(look.removesuffix(" half").removeprefix("area "), dataset.name) for look, dataset in looks],
        refused=_table([(dataset.refused, dataset.rows) for dataset in datasets]),
        images=[chart for chart in images if chart],
        captions=[chart for chart in captions if chart],
        sizes=_spread(
            datasets,
            {
                "width": "width, px",
                "height": "height, px",
                "shorter": "shorter side, px",
                "aspect": "aspect ratio",
                "bytes": "file",
            },
        ),
        lengths=_spread(datasets, {"words": "words", "characters": "characters", "captions": "captions a sample"}),
        tables={
            name: _table([(dataset.of(name), dataset.samples) for dataset in datasets])
            for name in ("format", "size", "unreadable", "host", *columns)
        },
        columns=columns,
        totals={name: [len(dataset.of(name)) for dataset in datasets] for name in ("format", "size", "host", *columns)},
        repeats=figures.images,
        said_twice=figures.captions,
        pairs=figures.pairs,
    )


def _overview(figures: Figures) -> list[dict[str, Any]]:
    """Name, id, and a value of each dataset."""
    rows: list[tuple[str, str, Callable[[int, OfDataset], str]]] = [
        ("samples", "samples", lambda _, one: f"{one.samples:,}"),
        ("shards", "shards", lambda _, one: f"{one.shards:,}"),
        ("bytes", "bytes of images", lambda _, one: said_size(one.measures["bytes"].total)),
        ("refused", "rows that are no samples", lambda _, one: f"{one.refused.samples:,} of {one.rows:,}"),
        ("median", "the median image, px", lambda _, one: _median(one)),
        ("file", "the median file", lambda _, one: said_size(one.measures["bytes"].percentile(50)[0])),
        ("repeats", "images that repeat an earlier one", lambda at, _: f"{figures.images.repeats[at]:,}"),
        ("empty", "empty captions", lambda _, one: f"{one.empty.samples:,}" if one.captioned else "no captions"),
        ("said", "captions that repeat an earlier one", lambda at, one: _if(one, f"{figures.captions.repeats[at]:,}")),
    ]
    return [
        {"id": name, "words": words, "values": [say(at, one) for at, one in enumerate(figures.datasets)]}
        for name, words, say in rows
    ]


def _if(dataset: OfDataset, said: str) -> str:
    return said if dataset.captioned else "–"


def _median(dataset: OfDataset) -> str:
    sides = [dataset.measures[name] for name in ("width", "height")]
    return " × ".join(f"{side.percentile(50)[0]:,.0f}" for side in sides) if len(sides[0]) else "unknown"


def _table(found: Sequence[tuple[Words, int]]) -> list[dict[str, Any]]:
    """The words with the largest shares of the datasets: how many samples of each have it, and some of their keys."""
    totals: dict[str, float] = {}
    for words, whole in found:
        for word, count in words.most_common(_TOP):
            totals[word] = totals.get(word, 0.0) + count.samples / whole
    order = sorted(totals, key=lambda word: (-totals[word], word))[:_TOP]
    return [
        {
            "word": word,
            "cells": [
                {
                    "count": words[word].samples,
                    "share": said_share(words[word].samples, whole),
                    "keys": words[word].keys,
                }
                for words, whole in found
            ],
        }
        for word in order
    ]


def _spread(datasets: Sequence[OfDataset], names: dict[str, str]) -> list[dict[str, Any]]:
    """Of each measure its smallest, largest and some percentiles, with keys of samples that have it."""
    found = []
    for name, words in names.items():
        known = [dataset for dataset in datasets if len(dataset.measures[name])]
        if known and not (name == "captions" and all(dataset.measures[name].largest <= 1 for dataset in known)):
            found.append({"words": words, "rows": [_percentiles(dataset, name) for dataset in known]})
    return found


def _percentiles(dataset: OfDataset, name: str) -> dict[str, Any]:
    cells = []
    for label, percent in _PERCENTS:
        value, keys = dataset.measures[name].percentile(percent)
        cells.append({"label": label, "said": _say(name, value), "keys": keys[:2]})
    return {"name": dataset.name, "cells": cells}


def _say(name: str, value: float) -> str:
    return said_size(value) if name == "bytes" else f"{value:.2f}" if name == "aspect" else f"{value:,.0f}"


def _chart(
    looks: Sequence[tuple[str, OfDataset]], name: str, title: str, *, say: Callable[[float], str] | None = None
) -> dict[str, Any] | None:
    """Shares of the samples over a scale of equal ratios."""
    known = [(look, dataset.measures[name]) for look, dataset in looks if dataset.measures[name].largest]
    if not known:
        return None
    low = min(max(measure.smallest, 1) / measure.scale for _, measure in known)
    high = max(measure.largest / measure.scale for _, measure in known)
    fine = next((fine for fine in (80, 40, 20, 10) if np.log10(high / low) * fine <= _BARS), 5)
    first = int(np.floor(np.log10(low) * fine + 1e-9))
    last = max(int(np.ceil(np.log10(high) * fine)), first + 1)
    # A number that is an edge lies above it, the largest one too.
    edges = 10 ** (np.arange(first, last + 2) / fine) * (1 - 1e-9)
    return {"title": title, "chart": _drawn(known, edges, title, log=True, say=say)}


def _bars(looks: Sequence[tuple[str, OfDataset]], name: str, title: str) -> dict[str, Any] | None:
    """Shares of the samples, as many numbers to a bar as it takes; what is far out is left out."""
    known = [(look, dataset.measures[name]) for look, dataset in looks if len(dataset.measures[name])]
    if not known:
        return None
    top = int(max(measure.percentile(_CUT)[0] for _, measure in known))
    step = max(1, -(-(top + 1) // _BARS))
    edges = np.arange(0, top + 1 + step, step, dtype=np.float64)
    beyond = any(measure.largest >= edges[-1] for _, measure in known)
    more = f"; the longest {100 - _CUT:g} % are left out" if beyond else ""
    return {"title": title + more, "chart": _drawn(known, edges, title, log=False, say=_whole)}


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else ""


def _drawn(
    known: Sequence[tuple[str, Measure]],
    edges: np.ndarray,
    title: str,
    *,
    log: bool,
    say: Callable[[float], str] | None = None,
) -> Markup:
    series = [(look, edges, measure.in_bars(edges)) for look, measure in known]
    across = Axis(float(edges[0]), float(edges[-1]), log=log, say=say)
    return histogram(across, series, f"{title}, share of samples", most=5, say=lambda share: f"{100 * share:.3g} %")
