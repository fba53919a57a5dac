"""One HTML page of an ingest, finished or not: what came of the rows, and how fast."""

from __future__ import annotations

import datetime
import heapq
import shlex
from collections import Counter
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from ingest.fetched import may_pass
from ingest.ledger import reading
from ingest.report.causes import GROUPS, explain
from ingest.report.published import PUBLISHED, ROT, far_below
from ingest.report.tally import Rates, Spread, Tally, tally
from pages import render
from pages.axis import Axis
from pages.plot import histogram
from pages.sheet import drawn, part_of, thumbnail
from pages.words import in_words, say_value
from shards import Folder, Shard, ShardRecord, published_records, read_records
from shards.dataset import DatasetPlan
from shards.quantities import said_size

PAGE = "report.html"
_SHEET = 24
_TOP = 20


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
    page = render(
        "ingest.report",
        "report.html.j2",
        facts={"name": plan.name, "rows": plan.rows, "inputs": plan.lists[-1].inputs, "settings": settings},
        settings={name: say_value(value) for name, value in in_words(settings) if value},
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
        moment=_moment,
        speed_charts=rates and _speed_charts(rates),
        time_chart=rates and _time_chart(counted.seconds),
        size_charts=_size_charts(counted) if counted.statuses["success"] else {},
        sheet=_contact_sheet(folder, records, plan.name),
    )
    folder.publish(PAGE, page)
    return f"{folder.url.rstrip('/')}/{PAGE}"


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
    cells = []
    for place, row in drawn([records[number].count for number in numbers], name, _SHEET):
        record = records[numbers[place]]
        shard = Shard(folder, record)
        image, text, _ = shard.places(row)
        tar = record.file(".tar").name
        with reading(folder, tar):
            picture = thumbnail(part_of(folder, tar, *image))
            caption = part_of(folder, tar, *text).decode()
        cells.append({"image": picture, "caption": caption, "key": shard.keys[row]})
    return cells


def _speed_charts(rates: Rates) -> dict[str, Markup]:
    unit, name = min(
        (1, "seconds"), (60, "minutes"), (3600, "hours"), key=lambda pair: abs(rates.running / pair[0] - 60)
    )
    edges = rates.edges / unit
    fetched, images, size = rates.a_second.T
    across = Axis(0.0, float(edges[-1]))
    pauses = [(after / unit, "") for after, _ in rates.pauses]
    rows, sizes = f"URLs a second, over {name} of running", f"bytes a second as downloaded, over {name} of running"
    return {
        rows: histogram(
            across, [("area good half", edges, images), ("edge soft", edges, fetched)], rows, marks=pauses, most=5
        ),
        sizes: histogram(across, [("area c0 half", edges, size)], sizes, marks=pauses, most=5, say=said_size),
    }


def _time_chart(seconds: dict[bool, Spread]) -> Markup:
    return _of_spreads(
        [("area good half", seconds[True]), ("area bad half", seconds[False])], "URLs by their seconds", _seconds
    )


def _size_charts(counted: Tally) -> dict[str, Markup]:
    parts = {
        "shorter side of the original, pixels": (counted.original_sides, None),
        "original file": (counted.original_bytes, said_size),
        "stored file": (counted.stored_bytes, said_size),
    }
    known = {title: part for title, part in parts.items() if part[0].count}
    return {title: _of_spreads([("area c0 half", spread)], title, say) for title, (spread, say) in known.items()}


def _of_spreads(parts: list[tuple[str, Spread]], label: str, say: Callable[[float], str] | None) -> Markup:
    """Counts over a scale of equal ratios."""
    series = [(look, 10**edges, counts) for look, (counts, edges) in ((look, spread.bars()) for look, spread in parts)]
    ends = [float(edges[end]) for _, edges, counts in series if len(counts) for end in (0, -1)]
    return histogram(Axis(min(ends), max(ends), log=True, say=say), series, label, most=4)


def _seconds(value: float) -> str:
    return f"{value:g} s"


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
