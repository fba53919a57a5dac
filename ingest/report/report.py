"""One HTML page of an ingest, finished or not: what came of the rows, and how fast. Nothing on it is loaded from
elsewhere, nothing can be clicked, and whatever came from the internet is escaped.
"""

from __future__ import annotations

import base64
import datetime
import heapq
import io
import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from ingest.fetched import may_pass
from ingest.ledger import reading
from ingest.report.causes import GROUPS, explain
from ingest.report.published import PUBLISHED, ROT, far_below
from ingest.report.tally import Rates, Spread, Tally, tally
from shards import Folder, Shard, ShardRecord, published_records, read_records, seed64
from shards.dataset import DatasetPlan
from shards.quantities import said_share, said_size, said_span

PAGE = "report.html"
_SHEET = 24
_THUMBNAIL = 192
_TOP = 20

# matplotlib knows no CSS: these stand for colours that follow the page's, light or dark.
_THEMED = {"#010101": "var(--soft)", "#010102": "var(--good)", "#010103": "var(--bad)", "#010104": "var(--blue)"}
_SOFT, _GOOD, _BAD, _BLUE = _THEMED
_PARTS = ("text", "axes.label", "axes.edge", "xtick.", "ytick.", "grid.")
_STYLE = {
    **{f"{part}{'.' if part == 'text' else ''}color": _SOFT for part in _PARTS},
    "svg.fonttype": "none",
    "svg.hashsalt": "clipstill",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
}


def write_report(url: str) -> str:
    """Write `report.html` into the dataset at `url`, a path or on an object store; returns the page's place.

    Reads every ledger and index that is published. Equal datasets give equal pages.

    Raises:
        UserError: no dataset that `clipstill ingest` wrote, or a damaged one.
    """
    folder = Folder(url)
    plan = DatasetPlan.read(folder, unfinished=True)
    settings, names = plan.settings, published_records(folder)
    missing = plan.missing(names)
    records = read_records(folder, [names[shard] for shard in sorted(plan.wanted.keys() - missing)])
    retried = {shard for stage in plan.retries for shard in stage.numbers}
    counted = tally(folder, plan.name, plan.rows, records, retried)
    rates = counted.timeline.rates()
    environment = Environment(
        loader=PackageLoader("ingest.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "count": "{:,}".format,
        "share": said_share,
        "size": said_size,
        "span": said_span,
        "moment": _moment,
        "options": _with_options,
    }
    page = environment.get_template("report.html.j2").render(
        facts={"name": plan.name, "rows": plan.rows, "inputs": plan.lists[-1].inputs, "settings": settings},
        settings=_flat(settings),
        place=shlex.quote(url),
        shards={
            "planned": len(plan.wanted),
            "first": len(plan.wanted) - len(retried),
            "done": len(records),
        },
        missing=missing,
        rounds=len(plan.retries),
        tally=counted,
        outcome=_outcome(counted, plan.rows),
        causes=_causes(counted),
        groups=_groups(counted),
        normal=_normal(counted, settings["source"]),
        failing=_hosts(counted, "failed"),
        largest=_hosts(counted, "rows"),
        stored=sum(record.file(".tar").bytes for record in records.values()),
        rates=rates,
        speed_chart=rates and _speed_chart(rates),
        time_chart=rates and _time_chart(counted.seconds),
        size_chart=_size_chart(counted) if counted.statuses["success"] else "",
        sheet=_contact_sheet(folder, records, plan.name),
    )
    folder.publish(PAGE, page.encode())
    return f"{folder.url.rstrip('/')}/{PAGE}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings that say something, by their names in words."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        words = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            found |= _flat(value, f"{words} ")
        elif value:
            parts = value if isinstance(value, list) else ["yes" if value is True else value]
            found[words] = ", ".join(map(str, parts))
    return found


def _outcome(counted: Tally, rows: int) -> dict[str, int]:
    """What became of the rows; the values add up to `rows`."""
    retryable = sum(count for cause, count in counted.causes.items() if may_pass(cause))
    return {
        "samples": counted.statuses["success"],
        "retryable": retryable,
        "lost": counted.causes.total() - retryable,
        "duplicates": counted.statuses["duplicate"],
        "filtered": counted.statuses["filtered"],
        "waiting": rows - counted.rows,
    }


def _causes(counted: Tally) -> list[dict[str, Any]]:
    order = sorted(counted.causes.items(), key=lambda item: (-item[1], item[0]))
    return [
        {
            "cause": cause,
            "rows": rows,
            "retryable": may_pass(cause),
            "words": explain(cause),
            "example": counted.examples[cause],
        }
        for cause, rows in order
    ]


def _groups(counted: Tally) -> list[tuple[str, int]]:
    """Failed rows by group of causes, those that there are, the largest first."""
    sums = Counter(dict.fromkeys(GROUPS, 0))
    for cause, rows in counted.causes.items():
        sums[explain(cause).group] += rows
    return [(group, rows) for group, rows in sums.most_common() if rows]


def _normal(counted: Tally, source: dict[str, Any]) -> dict[str, Any] | None:
    """The yield beside what others published for this list; None where nothing was, or nothing is fetched yet."""
    published = PUBLISHED.get(source["format"], ())
    wanted = counted.wanted
    if not published or not wanted:
        return None
    share = counted.statuses["success"] / wanted
    return {"published": published, "share": share, "below": far_below(share, published), "rot": ROT}


def _hosts(counted: Tally, by: str) -> list[dict[str, Any]]:
    """The hosts with the most `by`, which is "rows" or "failed"; none that has none."""
    found: list[dict[str, Any]] = [
        {"name": name, "rows": host.rows, "failed": host.failed.total(), "bytes": host.bytes, "causes": host.failed}
        for name, host in counted.hosts.items()
    ]
    chosen = heapq.nsmallest(_TOP, (host for host in found if host[by]), key=lambda host: (-host[by], host["name"]))
    return [{**host, "main": _first(host["causes"])} for host in chosen]


def _first(causes: Counter[str]) -> str:
    return min(causes, key=lambda cause: (-causes[cause], cause), default="")


def _contact_sheet(folder: Folder, records: dict[int, ShardRecord], name: str) -> list[dict[str, str]]:
    """Random samples, ever the same of the same shards: a small JPEG as a data URL, caption and key."""
    numbers = sorted(records)
    ends = np.cumsum([records[number].count for number in numbers])
    total = int(ends[-1]) if numbers else 0
    chosen: set[int] = set()
    draws = itertools.count()
    while len(chosen) < min(_SHEET, total):
        chosen.add(seed64("contact sheet", name, next(draws)) % total)
    cells = []
    for sample in sorted(chosen):
        at = int(np.searchsorted(ends, sample, side="right"))
        record = records[numbers[at]]
        shard, row = Shard(folder, record), sample - int(ends[at]) + record.count
        image, text, _ = shard.places(row)
        tar = record.file(".tar").name
        with reading(folder, tar):
            thumbnail = _thumbnail(_part(folder, tar, *image))
            caption = _part(folder, tar, *text).decode()
        cells.append({"image": thumbnail, "caption": caption, "key": shard.keys[row]})
    return cells


def _part(folder: Folder, name: str, start: int, size: int) -> bytes:
    # A sample without a caption: of nothing, a store may send everything.
    if size == 0:
        return b""
    # Not through `Folder.fetch`: of a tar on an object store, a few kilobytes are wanted.
    fs, path = fsspec.core.url_to_fs(f"{folder.url}/{name}")
    return bytes(fs.cat_file(path, start=start, end=start + size))


def _thumbnail(data: bytes) -> str:
    """Encoded anew: what is shown is an image and small, whatever the stored bytes hold beside it."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * _THUMBNAIL, 2 * _THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


@mpl.rc_context(_STYLE)
def _speed_chart(rates: Rates) -> str:
    figure, (images, size) = _axes(10, 2.6, columns=2)
    unit, name = min(
        (1, "seconds"), (60, "minutes"), (3600, "hours"), key=lambda pair: abs(rates.running / pair[0] - 60)
    )
    edges = rates.edges / unit
    images.stairs(rates.a_second[:, 0], edges, color=_SOFT, lw=1, label="fetched")
    images.stairs(rates.a_second[:, 1], edges, color=_GOOD, fill=True, alpha=0.75, label="became samples")
    images.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0)
    images.set(title="URLs a second", ylim=(0, None))
    size.stairs(rates.a_second[:, 2], edges, color=_BLUE, fill=True, alpha=0.75)
    size.set(title="bytes a second, as downloaded", ylim=(0, None))
    for axis in (images, size):
        axis.set(xlabel=f"{name} of running", xlim=(0, edges[-1]))
        for after, _ in rates.pauses:
            axis.axvline(after / unit, color=_BAD, ls="--", lw=1)
    return _svg(figure)


@mpl.rc_context(_STYLE)
def _time_chart(seconds: dict[bool, Spread]) -> str:
    figure, (axis,) = _axes(6.6, 2.4)
    for outcome, colour, label in ((True, _GOOD, "became samples"), (False, _BAD, "failed")):
        counts, edges = seconds[outcome].bars()
        axis.stairs(counts, edges, color=colour, fill=True, alpha=0.55, label=label)
    _log_ticks(axis, lambda value: f"{value:g} s")
    axis.set(title="URLs by the seconds they took, with all attempts")
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0)
    return _svg(figure)


@mpl.rc_context(_STYLE)
def _size_chart(counted: Tally) -> str:
    parts = [
        (counted.original_sides, "shorter side of the original", lambda value: f"{value:g} px"),
        (counted.original_bytes, "original file", said_size),
        (counted.stored_bytes, "stored file", said_size),
    ]
    known = [part for part in parts if part[0].count]
    figure, axes = _axes(10, 2.4, columns=len(known))
    for axis, (spread, title, text) in zip(axes, known, strict=True):
        counts, edges = spread.bars()
        axis.stairs(counts, edges, color=_BLUE, fill=True, alpha=0.75)
        _log_ticks(axis, text)
        axis.set(title=title)
    return _svg(figure)


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else EngFormatter(sep="")(value))
    return figure, axes


def _log_ticks(axis: Any, text: Callable[[float], str]) -> None:
    """Ticks for an axis of decimal logarithms: a handful of round numbers."""
    low, high = axis.get_xlim()
    span = high - low
    fine = (1, 1.5, 2, 3, 4, 5, 7) if span < 0.7 else (1, 2, 5)
    steps = fine if span < 1.5 else (1, 3) if span < 2.5 else (1,)
    every = 1 if span < 5 else 2
    values = [step * 10.0**power for power in range(math.floor(low), math.ceil(high), every) for step in steps]
    inside = [value for value in values if low <= math.log10(value) <= high]
    axis.set_xticks([math.log10(value) for value in inside], [text(value) for value in inside])


def _svg(figure: Figure) -> str:
    """A figure as inline SVG in the page's colours, with text as text; equal figures give equal bytes."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = sink.getvalue()
    for colour, themed in _THEMED.items():
        text = text.replace(colour, themed)
    return text[text.index("<svg") :]


def _with_options(text: str) -> Markup:
    """A text of ours in which command-line options are set as code, and not broken."""
    return Markup(re.sub(r"--[a-z-]+", r"<code>\g<0></code>", str(escape(text))))


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
