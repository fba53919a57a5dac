"""The pages of runs: what is drawn is what was logged, whatever the log is like, and no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from distill.report import write_comparison, write_run_page
from distill.run_folder import RunFolder
from pages.axis import say_ticks
from pages.curves import thin
from shards import UserError

WIDTH = 5000
"""What a curve is as wide as, in its own units."""

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"

SETTINGS: dict[str, Any] = {
    "shards": "data/a",
    "out": "runs/a",
    "student": "ViT-S-32",
    "cache": "data/a-cache",
    "losses": {"fd": {"weight": 2000.0, "options": {}}, "affinity": {"weight": [[0, 1.0], [0.5, 0.25]], "options": {}}},
    "steps": 400,
    "batch_size": 256,
    "optimiser": {"lr": 0.001, "schedule": "cosine", "warmup": 50, "betas": [0.9, 0.98], "ema": None},
    "evaluation": {"shards": "data/v", "best": "eval/zero_shot/top1"},
    "precision": "bf16",
    "seed": 0,
}
FACTS: dict[str, Any] = {
    "student": {"name": "ViT-S-32", "parameters": {"image": 22_050_664, "text": 37_828_608}},
    "dataset": {"name": "a", "samples": 12_345, "content": "c0ffee"},
    "teachers": [{"name": "b", "model": "ViT-B-16:x", "fingerprint": "feed", "embed_dim": 512, "logit_scale": 100.0}],
    "steps": 400,
    "steps_per_epoch": 50,
    "device": "cpu",
    "processes": 2,
    "versions": {"torch": "2.15.0"},
}
LOG: list[dict[str, Any]] = [
    {
        "step": step,
        "loss": 7.0 - 0.01 * step,
        "fd": 2.0 + 0.001 * step,
        "grad_norm": 10.0 ** (step / 100 - 1),
        "lr": 1e-3 * step / 400,
        "measured": {"samples_per_second": 100.0 + step, "waited": 0.02, "seconds": step * 36.0},
    }
    for step in range(10, 401, 10)
] + [
    {"step": step, "eval/zero_shot/top1": top1, "eval/retrieval/text_to_image/mean_rank": 300.0 - top1}
    for step, top1 in ((100, 20.0), (200, 43.5), (300, 51.25), (400, 49.0))
]


class Page(HTMLParser):
    """What a browser makes of a page: tags, texts by id, table rows by id, and charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: defaultdict[str, str] = defaultdict(str)
        self.rows: defaultdict[str, list[list[str]]] = defaultdict(list)
        self.charts: dict[str, Chart] = {}
        self._chart: Chart | None = None
        self._open: list[tuple[str, dict[str, str]]] = []
        self.text = path.read_text()
        self.feed(self.text)
        self.close()
        assert not self._open, "the page is not complete"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.attributes += given.items()
        if tag not in {"meta", "br", "input", "wbr"}:
            self._open.append((tag, given))
        if "data-figure" in given:
            self._chart = self.charts[given["data-figure"]] = Chart()
        elif tag in {"tr", "td", "th"} and self._table() is not None:
            rows = self.rows[self._table() or ""]
            rows.append([]) if tag == "tr" else rows[-1].append("")
        elif self._chart is not None:
            axis = next((o["class"].split("by-")[1] for _, o in self._open if "by-" in o.get("class", "")), "")
            self._chart.take(tag, given, axis)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"{tag} closes another element"
        self._chart = None if tag == "figure" else self._chart

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        for _, given in self._open:
            self.texts[given.get("id", "")] += data
        if any(tag in {"td", "th"} for tag, _ in self._open) and self._table() is not None:
            self.rows[self._table() or ""][-1][-1] += data
        if self._chart is not None and self._open[-1][0] == "text":
            self._chart.ticks[-1] = (*self._chart.ticks[-1][:3], data)

    def _table(self) -> str | None:
        return next((given["id"] for tag, given in self._open if tag == "table"), None)


class Chart:
    """Curves by axis, kind and run; ticks as (kind and axis, x, y, text): x in units of `WIDTH`, y in pixels."""

    def __init__(self) -> None:
        self.curves: dict[tuple[str, str, int], list[np.ndarray]] = {}
        self.data: dict[int, tuple[list[float], list[float]]] = {}
        self.ticks: list[tuple[str, float, float, str]] = []
        self.marks: list[tuple[str, float]] = []

    def take(self, tag: str, given: dict[str, str], axis: str) -> None:
        kind = given.get("class", "")
        if tag == "text":
            self.ticks.append((f"{kind.split()[0]} {axis}".strip(), place(given["x"]), float(given["y"]) - 4, ""))
        elif tag == "line" and kind.startswith("mark"):
            self.marks.append((kind.removeprefix("mark "), place(given["x1"])))
        elif tag == "path" and "d" in given and kind.split()[0] in {"line", "mean"}:
            run = int(kind.split()[-1].removeprefix("s"))
            self.curves[axis, kind.split()[0], run] = [pixels(piece) for piece in given["d"].split("M")[1:]]
            if "data-values" in given:
                steps, values = (given[f"data-{name}"].split() for name in ("steps", "values"))
                self.data[run] = [float(step) for step in steps], [float(value) for value in values]

    def points(self, axis: str = "steps", kind: str = "line", run: int = 0) -> np.ndarray:
        """(n, 2): a curve read off the ticks as one does by eye, straight lines between values or their logarithms."""
        drawn = np.concatenate(self.curves[axis, kind, run])
        return np.stack([self._read(f"across {axis}", drawn[:, 0], 1), self._read("up", drawn[:, 1], 2)], 1)

    def _read(self, kind: str, places: np.ndarray, at: int) -> np.ndarray:
        found = [(tick[at], number(tick[3])) for tick in self.ticks if tick[0] == kind]
        pixel, value = np.array(found).T
        straight = np.allclose(np.diff(value) / np.diff(pixel), (value[-1] - value[0]) / (pixel[-1] - pixel[0]), 0.01)
        known = value if straight else np.log(value)
        read = known[0] + (places - pixel[0]) * (known[-1] - known[0]) / (pixel[-1] - pixel[0])
        return read if straight else np.exp(read)


def pixels(piece: str) -> np.ndarray:
    """A piece of a curve: where it starts, then moves from point to point, upright in tenths of a pixel."""
    start, moves = piece.split("l")
    parts = [start.split(), *zip(*[iter(moves.split())] * 2, strict=True)]
    return np.cumsum(np.array(parts, np.float64), axis=0)[1:] * [1, 0.1]


def place(share: str) -> float:
    """A share of the chart's width, in the units of its curves."""
    return float(share.removesuffix("%")) * WIDTH / 100


def number(text: str) -> float:
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    return float(text.rstrip("kMG").replace("−", "-")) * factor


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "a", log: Sequence[dict[str, Any]] = LOG, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        settings = SETTINGS | {"out": str(folder)} | changes.pop("settings", {})
        facts = FACTS | changes.pop("facts", {})
        (folder / "settings.json").write_text(json.dumps({"identity": {}, "settings": settings, "facts": facts}))
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        if "events" in changes:
            (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in changes["events"]))
        if "done" in changes:
            (folder / "done.json").write_text(json.dumps(changes["done"]))
        return folder

    return make


def logged(name: str, log: Sequence[dict[str, Any]] = LOG) -> tuple[list[float], list[float]]:
    lines = [line for line in log if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


@pytest.mark.parametrize("name", ["loss", "fd", "lr", "grad_norm", "eval/zero_shot/top1"])
def test_a_curve_goes_through_what_was_logged(make_run: Callable[..., Path], name: str) -> None:
    chart = Page(write_run_page(make_run())).charts[name]
    steps, values = logged(name)
    assert chart.data[0][0] == steps
    assert chart.data[0][1] == pytest.approx(values, rel=1e-5)
    # A tenth of a pixel of 160 is the least that can be drawn; on the logarithmic axis that is 0.5 % of a value.
    close = {"rel": 0.01} if name == "grad_norm" else {"abs": (max(values) - min(values)) / 400}
    read = chart.points()
    assert read[:, 0] == pytest.approx(steps, abs=1)
    assert read[:, 1] == pytest.approx(values, **close)
    assert len(chart.curves["steps", "line", 0]) == 1


def test_what_is_nested_is_drawn_by_its_path_and_nothing_is_left_out(make_run: Callable[..., Path]) -> None:
    page = Page(write_run_page(make_run()))
    names = [name for line in LOG for name in [*line, *(f"measured/{name}" for name in line.get("measured", ()))]]
    assert set(page.charts) == set(names) - {"step", "measured", "measured/seconds"}
    assert page.charts["measured/samples_per_second"].data[0][1] == [100.0 + step for step in logged("loss")[0]]


def of_one_loss(weight: float, term: str = "affinity", *, drift: float = 0.0) -> list[dict[str, Any]]:
    values = [3.0, 2.0, 1.5, 1.25]
    return [
        {"step": step, "loss": weight * value + drift * step, term: value, "eval/top1": 1.0 * step}
        for step, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(("weight", "told"), [(1.0, "loss: affinity"), (2000.0, "loss: 2000 × affinity")])
def test_with_one_loss_its_curve_is_not_drawn_twice(make_run: Callable[..., Path], weight: float, told: str) -> None:
    page = write_run_page(make_run("a", log=of_one_loss(weight)))
    assert set(Page(page).charts) == {"loss", "eval/top1"}
    assert told in page.read_text()
    # What is not the loss by a constant factor is news.
    page = write_run_page(make_run("b", log=of_one_loss(weight, drift=0.01 * weight)))
    assert set(Page(page).charts) == {"loss", "affinity", "eval/top1"}


@pytest.mark.parametrize(
    ("first", "second", "drawn"),
    [
        (of_one_loss(1), of_one_loss(1), set()),
        (of_one_loss(1), of_one_loss(1, "contrastive"), set()),
        # Before their weights they can be compared.
        (of_one_loss(1), of_one_loss(2), {"affinity"}),
        (of_one_loss(1), LOG, {"affinity", "fd"}),
    ],
    ids=["one", "one each", "weights", "more"],
)
def test_runs_of_one_loss_are_compared_by_the_loss(
    make_run: Callable[..., Path], first: Any, second: Any, drawn: set[str]
) -> None:
    runs = [make_run("a", log=first), make_run("b", log=second)]
    charts = Page(write_comparison(runs, runs[0].parent / "c.html")).charts
    assert set(charts) & {"affinity", "contrastive", "fd"} == drawn
    assert "loss" in charts


def test_what_is_not_finite_is_a_gap(make_run: Callable[..., Path]) -> None:
    values = [3.0, 2.5, math.nan, 2.0, math.inf, math.nan, 1.5, 1.0, None, 0.5]
    log = [{"step": step, "loss": value} for step, value in enumerate(values, 1)]
    chart = Page(write_run_page(make_run(log=log))).charts["loss"]
    assert [len(piece) for piece in chart.curves["steps", "line", 0]] == [2, 1, 2, 1]
    assert chart.data[0] == ([1, 2, 4, 7, 8, 10], [3.0, 2.5, 2.0, 1.5, 1.0, 0.5])


def test_on_a_logarithmic_axis_what_is_not_positive_is_a_gap(make_run: Callable[..., Path]) -> None:
    log = [{"step": step, "grad_norm": value} for step, value in enumerate([1.0, 100.0, 0.0, 10.0, -1.0], 1)]
    chart = Page(write_run_page(make_run(log=log))).charts["grad_norm"]
    assert [len(piece) for piece in chart.curves["steps", "line", 0]] == [2, 1]
    assert chart.points()[:, 1] == pytest.approx([1.0, 100.0, 10.0], rel=0.02)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12, 1e12, math.nan])
def test_a_figure_that_never_changes_is_drawn(make_run: Callable[..., Path], value: float) -> None:
    log = [{"step": step, "loss": value, "grad_norm": value} for step in (1, 2, 3)]
    chart = Page(write_run_page(make_run(log=log))).charts["loss"]
    assert chart.data[0][1] == ([] if math.isnan(value) else [value] * 3)


@pytest.mark.parametrize("value", [1.231, 10.0, 50.0, 8192.5])
def test_what_hardly_changes_looks_so_and_has_short_ticks(make_run: Callable[..., Path], value: float) -> None:
    values = [value, value * 1.00004, value * 1.0001]
    log = [{"step": step, "loss": 1.0, "measured": {"memory_gb": value}} for step, value in enumerate(values, 1)]
    chart = Page(write_run_page(make_run(log=log))).charts["measured/memory_gb"]
    ticks = [text for kind, _, _, text in chart.ticks if kind == "up"]
    assert len(ticks) >= 2
    assert max(len(text.replace(".", "")) for text in ticks) <= 4
    # All of the chart is 2 % of the value, of its 160 pixels.
    drawn = np.concatenate(chart.curves["steps", "line", 0])
    assert np.ptp(drawn[:, 1]) == pytest.approx(160 * 0.0001 / 0.02, abs=0.1)
    assert chart.points()[:, 1] == pytest.approx(values, rel=0.0002)


def test_what_was_logged_once_is_listed_and_not_drawn(make_run: Callable[..., Path]) -> None:
    log = [{"step": 4, "loss": 2.5, "logit_scale": 14.25}, {"step": 4, "eval/top1": 3.5, "eval/mean_rank": 90.875}]
    short = make_run(log=log)
    page = Page(write_run_page(short))
    assert page.charts == {}
    assert page.rows["loss-once"][1:] == [["loss", "2.500", "4"]]
    assert page.rows["stability-once"][1:] == [["logit scale", "14.25", "4"]]
    assert page.rows["evaluation-once"][1:] == [["top1", "3.500", "4"], ["mean rank", "90.88", "4"]]

    # As soon as any run has two, those of all are drawn.
    longer = make_run("b", log=[*log, {"step": 8, "eval/top1": 4.5}])
    page = Page(write_run_page(longer))
    assert set(page.charts) == {"eval/top1"}
    assert page.rows["evaluated"][1:] == [["top1", "4.500", "4.500", "8"], ["mean rank", "90.88", "90.88", "4"]]
    page = Page(write_comparison([short, longer], short.parent / "c.html"))
    assert {name: sorted(chart.data) for name, chart in page.charts.items()} == {"eval/top1": [0, 1]}
    rows = {row[0]: row[1:] for row in page.rows["figures"]}
    assert rows["mean rank"] == ["90.8890.88 at 4"] * 2
    assert rows["logit scale"] == ["14.25"] * 2


def test_a_long_curve_keeps_its_extremes_its_ends_and_its_gaps(make_run: Callable[..., Path]) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(5, 0.1, 30_000)
    values[12_345], values[23_456], values[20_000] = 9.0, 1.0, math.nan
    log = [{"step": 10 * at, "loss": value} for at, value in enumerate(values.tolist(), 1)]
    page = write_run_page(make_run(log=log))
    chart = Page(page).charts["loss"]
    steps, drawn = chart.data[0]
    assert 900 <= len(steps) <= 1000
    assert len(chart.curves["steps", "line", 0]) == 2
    assert (steps[0], steps[-1]) == (10, 300_000)
    assert drawn == pytest.approx([values[int(step) // 10 - 1] for step in steps], rel=1e-5)
    assert (drawn[steps.index(123_460)], drawn[steps.index(234_570)]) == (9.0, 1.0)
    assert page.stat().st_size < 100_000


@pytest.mark.parametrize(("count", "missing"), [(1000, 0.0), (1001, 0.0), (2500, 0.5), (30_000, 0.9)])
def test_thinning_keeps_the_highest_and_lowest_of_every_part(count: int, missing: float) -> None:
    rng = np.random.default_rng(count)
    values = np.where(rng.random(count) < missing, np.nan, rng.normal(size=count))
    kept = thin(values, 1000)
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= 1000
    assert np.isfinite(values[kept]).all()
    finite = np.flatnonzero(np.isfinite(values))
    assert {finite[0], finite[-1]} <= set(kept)
    wide = 3 * count // 499
    for start in range(0, count - wide, wide):
        inside = kept[(kept >= start - wide) & (kept < start + 2 * wide)]
        assert np.nanmax(values[start : start + wide]) <= values[inside].max()
        assert np.nanmin(values[start : start + wide]) >= values[inside].min()


def test_ticks_share_one_unit() -> None:
    assert say_ticks([0, 5000, 10_000]) == ["0", "5k", "10k"]
    assert say_ticks([0, 500_000, 2_500_000]) == ["0", "0.5M", "2.5M"]
    assert say_ticks([-0.5, 0.00005]) == ["−0.5", "5e−5"]


def test_the_page_says_what_is_trained_and_how_far_it_is(make_run: Callable[..., Path]) -> None:
    page = Page(write_run_page(make_run()))
    assert page.texts["state"] == "Training run, at step 400 of 400."
    told = page.texts["what"]
    for words in ("ViT-S-32", "22.1 M (image) + 37.8 M (text)", "ViT-B-16:x", "512-d", "12,345 samples", "fd × 2000"):
        assert words in told
    assert "affinity × 1 at 0% → 0.25 at 50%" in told
    assert "400 steps of 256 samples = 8 epochs of 50 steps" in told
    assert "AdamW, lr 0.001, cosine, warm-up 50, betas 0.9, 0.98" in told
    assert json.loads(page.texts["settings"])["settings"]["seed"] == 0
    assert page.texts["loss"] == "3"
    assert page.texts["best"] == "51.25"
    assert page.texts["hours"] == "4 h"
    assert page.rows["evaluated"][1:] == [
        ["zero shot top1", "49", "51.25", "300"],
        ["retrieval text to image mean rank", "251", "248.8", "300"],
    ]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.26, "0.3 s"),
        (15.07, "15 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (90, "1.5 min"),
        (754, "13 min"),
        (3590, "1 h"),
        (11_600, "3.2 h"),
        (5_400_000, "1,500 h"),
    ],
)
def test_how_long_a_run_trained_is_told_in_the_unit_that_fits(
    make_run: Callable[..., Path], seconds: float, told: str
) -> None:
    run = make_run(log=[{"step": 1, "loss": 1.0, "measured": {"seconds": seconds}}])
    assert Page(write_run_page(run)).texts["hours"] == told


def test_a_finished_run_says_so(make_run: Callable[..., Path]) -> None:
    best = {"step": 300, "metric": "eval/zero_shot/top1", "value": 51.5}
    page = Page(write_run_page(make_run(done={"steps": 400, "loss": 3.0, "best": best})))
    assert page.texts["state"] == "Training run, finished, 400 steps."
    assert page.texts["best"] == "51.50"


def test_events_are_listed_and_marked_where_they_happened(make_run: Callable[..., Path]) -> None:
    events = [
        {"step": 100, "kind": "starved", "text": "steps waited 60 % of the time"},
        {"step": 500, "kind": "nan", "text": "loss is nan at step 500"},
    ]
    page = Page(write_run_page(make_run(events=events)))
    assert page.rows["events"][1:] == [[str(e["step"]), e["kind"], e["text"]] for e in events]
    for chart in page.charts.values():
        (kind, x), (last, end) = chart.marks
        ticks = {number(text): at for name, at, _, text in chart.ticks if name == "across steps"}
        assert (kind, last) == ("starved", "nan")
        assert x == pytest.approx(ticks[100], abs=0.6)
        assert end == pytest.approx(ticks[500], abs=0.6)


def test_no_text_becomes_markup_and_no_script_but_the_pages_own_may_run(make_run: Callable[..., Path]) -> None:
    log = [{"step": 1, "loss": 1.0, HOSTILE: 2.0, f"eval/{HOSTILE}": 3.0}]
    events = [{"step": 1, "kind": HOSTILE, "text": HOSTILE}]
    done = {"steps": 1, "loss": 1.0, "best": {"step": 1, "metric": HOSTILE, "value": 1.0}}
    hostile = {"student": HOSTILE, "losses": {HOSTILE: {"weight": 1}}, "shards": HOSTILE}
    facts = {"student": {"name": HOSTILE}, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    name = HOSTILE.replace("/", "")
    run = make_run(name, log=log, events=events, done=done, settings=hostile, facts=facts)
    for path in (write_run_page(run), write_comparison([run, make_run("b")], run.parent / "out.html")):
        page = Page(path)
        assert (page.tags["script"], page.tags["img"], page.tags["a"]) == (1, 0, 0)
        assert not [key for key, _ in page.attributes if key.startswith("on") or key in {"src", "href"}]
        assert not re.search(r"url\(|@import|http-equiv=.refresh", page.text)
        assert name in page.text.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace(
            "&#39;", "'"
        ).replace("&amp;", "&")
        script = re.search(r"<script>(.*)</script>", page.text, re.DOTALL)
        assert script
        digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
        (policy,) = [value for _, value in page.attributes if "default-src" in value]
        assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_a_run_that_has_only_begun_has_a_page(make_run: Callable[..., Path]) -> None:
    page = Page(write_run_page(make_run(log=[])))
    assert "no lines yet" in page.texts["notes"]
    assert page.charts == {}
    assert "ViT-S-32" in page.texts["what"]


def test_a_line_that_a_kill_cut_off_is_left_out(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 410, "lo')
    page = Page(write_run_page(run))
    assert page.texts["notes"] == "Line 45 of log.jsonl cannot be read: it was cut off and is left out."
    assert page.charts["loss"].data[0][0] == logged("loss")[0]


@pytest.mark.parametrize("line", ["what?", "3", '{"loss": 1}', '{"step": "x"}'])
def test_lines_after_one_that_is_none_are_left_out_and_the_page_says_so(
    make_run: Callable[..., Path], line: str
) -> None:
    run = make_run(log=LOG[:3])
    text = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([*text[:2], line, text[2]]) + "\n")
    page = Page(write_run_page(run))
    assert page.texts["notes"] == "Line 3 of log.jsonl cannot be read: the lines after it are left out."
    assert page.charts["loss"].data[0][0] == [10, 20]


def test_a_run_without_settings_or_facts_has_a_page_that_says_so(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "settings.json").write_text(json.dumps({"settings": SETTINGS | {"losses": {"affinity": 2.0}}}))
    page = Page(write_run_page(run))
    assert "no facts" in page.texts["notes"]
    assert "affinity × 2" in page.texts["what"]
    (run / "settings.json").unlink()
    page = Page(write_run_page(run))
    assert "settings.json is missing" in page.texts["notes"]
    assert page.charts["loss"].data[0][0] == logged("loss")[0]


def test_what_is_no_run_is_told_in_one_line(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"nowhere: no run in this folder: .* no such folder\. Give what"):
        write_run_page(tmp_path / "nowhere")
    (make_run() / "settings.json").write_text('{"settings": ')
    with pytest.raises(UserError, match=r"a/settings\.json: it is not JSON"):
        write_run_page(tmp_path / "a")


def test_a_page_is_made_of_the_run_alone_and_replaces_the_one_before(make_run: Callable[..., Path]) -> None:
    run = make_run()
    page = write_run_page(run)
    assert page == run / "report.html"
    first = page.read_bytes()
    page.write_text("an older one")
    assert write_run_page(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} == {"settings.json", "log.jsonl", "report.html"}


def inherited(name: str, shape: Sequence[int], elements: int, **more: Any) -> dict[str, Any]:
    """A row of inheritance.json as it stands there: of a tensor outside the layers unless `more` says otherwise."""
    row = {"student": name, "teacher": name, "tower": "image", "shape": shape, "slices": "[...]", "elements": elements}
    return row | {"stack": None, "layer": None, "layers": None, "heads": None} | more


def layer(ours: int, theirs: int, depths: Sequence[int] = (2, 5)) -> list[dict[str, Any]]:
    """A layer 32 wide of one 48 wide, with two of three heads."""
    place = {"stack": "transformer.resblocks", "layer": [ours, theirs], "layers": depths}
    at, there = (f"visual.transformer.resblocks.{number}." for number in (ours, theirs))
    norm = inherited(f"{at}ln_1.weight", [48], 32, teacher=f"{there}ln_1.weight", slices="[:32]", **place)
    bias = inherited(f"{at}attn.in_proj_bias", [144], 96, teacher=f"{there}attn.in_proj_bias", **place)
    return [norm, bias | {"slices": "(3, 3, 16)[:, :2, :]", "heads": [2, 3]}]


SCALE = inherited("logit_scale", [], 1, tower="logits")
PART = [inherited("visual.proj", [48, 24], 640, slices="[:32, :20]"), *layer(0, 0), *layer(1, 2)]


class Tower:
    """A tower in the page's section on inheritance: its caption, the words beside each drawing, and the drawings."""

    def __init__(self, figure: str) -> None:
        self._tree = ElementTree.fromstring(figure)
        self.caption = self._words(self._tree.find("figcaption"))
        self.facts = [self._words(facts) for facts in self._tree.iter("dl")]
        self.drawings = [self._read(svg) for svg in self._tree.iter("svg")]

    @classmethod
    def all(cls, page: Path) -> list[Tower]:
        return [cls(figure) for figure in re.findall(r'<figure class="tower.*?</figure>', page.read_text(), re.DOTALL)]

    @staticmethod
    def _words(part: Any) -> str:
        return " ".join(" ".join(part.itertext()).split())

    @staticmethod
    def _read(svg: Any) -> tuple[list[tuple[int, int]], list[int], list[int], list[int]]:
        """Lines (teacher's layer, student's layer) by where they begin and end, and the numbers in the cells:
        the teacher's, those of them that are hollow, and the student's, from left to right.
        """
        cells: dict[tuple[float, bool], int] = {}
        hollow = []
        for group in [svg, *svg.iter("g")]:
            texts = [text for text in group.findall("text") if (text.text or "").isdigit()]
            for rect, text in zip(group.findall("rect"), texts, strict=True):
                centre = float(rect.get("x")) + float(rect.get("width")) / 2
                assert float(text.get("x")) == centre
                cells[centre, rect.get("y") == "0"] = int(text.text)
                hollow += [int(text.text)] if rect.get("class") == "left" else []
        lines = []
        for path in svg.iter("path"):
            places = re.findall(r"[\d.]+", path.get("d"))
            lines.append((cells[float(places[0]), True], cells[float(places[-2]), False]))
        rows = [[number for (_, above), number in sorted(cells.items()) if above == of] for of in (True, False)]
        return lines, rows[0], hollow, rows[1]


def with_inheritance(run: Path, rows: Sequence[Any]) -> Path:
    (run / "inheritance.json").write_text(json.dumps({"elements": 0, "tensors": rows}))
    return run


def test_the_page_links_each_layer_to_the_one_it_was_taken_from(make_run: Callable[..., Path]) -> None:
    (tower,) = Tower.all(write_run_page(with_inheritance(make_run(), [*PART, SCALE])))
    assert tower.drawings == [([(0, 0), (2, 1)], [0, 1, 2, 3, 4], [1, 3, 4], [0, 1])]
    # 640 of the projection, 32 + 96 of each layer.
    assert tower.caption == "Image tower 896 elements in 5 tensors"
    assert tower.facts == ["layers 2 of 5 width 32 of 48 heads 2 of 3 elements 256 in these layers"]


def test_what_was_inherited_is_listed_tensor_by_tensor(make_run: Callable[..., Path]) -> None:
    hostile = inherited(f"a.{HOSTILE}", [1200], 1200, teacher=HOSTILE, slices=HOSTILE, stack=HOSTILE)
    rows = [*PART, hostile | {"layer": [0, 0], "layers": [1, 1]}]
    page = Page(write_run_page(with_inheritance(make_run(settings={"initial": HOSTILE}), rows)))
    assert page.rows["inherited"][1:] == [
        ["visual.proj", "visual.proj", "[:32, :20]", "640"],
        *(
            [f"visual.transformer.resblocks.{at}.{name}" for at in (ours, ours * 2)] + [slices, elements]
            for ours in (0, 1)
            for name, slices, elements in (
                ("ln_1.weight", "[:32]", "32"),
                ("attn.in_proj_bias", "(3, 3, 16)[:, :2, :]", "96"),
            )
        ),
        [f"a.{HOSTILE}", HOSTILE, HOSTILE, "1,200"],
    ]
    assert (page.tags["script"], page.tags["img"]) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "student_scale", "told"),
    [
        ([*layer(0, 0, (1, 1)), SCALE], None, "Logit scale: inherited"),
        ([SCALE, SCALE | {"student": "logit_bias"}], None, "Logit scale and logit bias: inherited"),
        ([SCALE], 20.0, "Logit scale: not inherited, student_scale pins it to 20.0."),
        (PART, None, "Logit scale: not inherited, the student's towers are not configured as those"),
    ],
)
def test_the_page_says_what_became_of_the_logit_scale(
    make_run: Callable[..., Path], rows: list[Any], student_scale: float | None, told: str
) -> None:
    run = with_inheritance(make_run(settings={"student_scale": student_scale}), rows)
    assert told in Page(write_run_page(run)).texts["logits"]


def test_a_resnet_is_drawn_stage_by_stage(
    make_run: Callable[..., Path], tmp_path: Path, save_student: Callable[..., str]
) -> None:
    """From the rows of a real one, so with open_clip's own names."""
    from clip_models import LoadedModel, create_student  # noqa: PLC0415
    from clip_models.inheritance import inherit, write_inheritance  # noqa: PLC0415

    wide = {"image": 64, "width": 8, "layers": 3, "vision_layers": [4, 1, 2, 3]}
    teacher = create_student(save_student(tmp_path / "teacher.json", **wide), 0)
    narrow = {"image": 64, "width": 4, "layers": 1, "vision_layers": [2, 1, 1, 2]}
    student, own = create_student(save_student(tmp_path / "student.json", **narrow), 0)
    run = make_run()
    rows = inherit(student, own, LoadedModel("t", *teacher, *[None] * 2))  # type: ignore[arg-type]
    write_inheritance(rows, run / "inheritance.json")
    image, text = Tower.all(write_run_page(run))
    drawn = [(lines, hollow) for lines, _, hollow, _ in image.drawings]
    assert drawn == [([(0, 0), (2, 1)], [1, 3]), ([(0, 0)], []), ([(0, 0)], [1]), ([(0, 0), (1, 1)], [2])]
    # A stage puts out four times its planes, which double from stage to stage and begin with the width.
    for facts, stage, told in zip(
        image.facts,
        (1, 2, 3, 4),
        ("2 of 4 width 16 of 32", "1 of 1 width 32 of 64", "1 of 2 width 64 of 128", "2 of 3 width 128 of 256"),
        strict=True,
    ):
        state = student.visual.state_dict()
        size = sum(value.numel() for name, value in state.items() if name.startswith(f"layer{stage}."))
        assert facts == f"layer{stage} layers {told} elements {size:,} in these layers"
    # 32 times the width over heads of 64.
    assert image.caption.endswith("; 2 of 4 heads in its attention pool")
    assert text.drawings == [([(0, 0)], [0, 1, 2], [1, 2], [0])]
    assert text.facts[0].startswith("layers 1 of 3 width 16 of 16 heads 2 of 2")


def left(**changes: Any) -> dict[str, Any]:
    """A report of one tower of two layers, half of it gone."""
    tower = {
        "full": {"width": 8, "heads": 2, "mlp": 32},
        "before": {"width": 8, "heads": [2, 2]},
        "width": 6,
        "layers": [{"heads": 1, "mlp": 20, "kept_heads": [1]}, {"heads": 0, "mlp": 9, "kept_heads": []}],
        "parameters": {"full": 2000, "before": 2000, "kept": 1000},
    }
    parameters = tower["parameters"]
    return {
        "target": 0.6,
        "expected": 0.5,
        "sparsity": 0.5,
        "parameters": parameters,
        "towers": {"vision": tower},
    } | changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"step": 1200}, "If it ended after step 1,200, the run would leave out 50.0% of 2,000 parameters"),
        (
            {"step": 8000, "delivered": {"image": 5_620_000, "text": 21_520_000}},
            "The run leaves out 50.0% of 2,000 parameters of attention and MLPs, 60.0% asked for, and keeps 1,000. The "
            "model that it delivers has 5.62 M (image) + 21.5 M (text) parameters in all",
        ),
    ],
    ids=["on the way", "delivered"],
)
def test_what_pruning_leaves_is_said_and_drawn_on_the_way_and_at_the_end(
    make_run: Callable[..., Path], changes: dict[str, Any], told: str
) -> None:
    run = make_run(settings={"prune": {"target": 0.6}})
    (run / "pruning.json").write_text(json.dumps(left(**changes)))
    page = Page(write_run_page(run))
    assert told in page.text
    assert "6 of 8" in page.text


@pytest.mark.parametrize(("before", "told"), [([2, 2], False), ([2, 1], True)], ids=["first stage", "later stage"])
def test_the_page_says_that_heads_of_earlier_runs_are_not_drawn(
    make_run: Callable[..., Path], before: list[int], told: bool
) -> None:
    run, report = make_run(), left(step=1)
    report["towers"]["vision"]["before"]["heads"] = before
    (run / "pruning.json").write_text(json.dumps(report))
    assert ("heads that earlier runs left out are not drawn" in Page(write_run_page(run)).text) == told


def test_what_is_left_and_inherited_comes_before_the_curves(make_run: Callable[..., Path]) -> None:
    run = make_run(events=[{"step": 1, "kind": "nan", "text": "loss is nan"}])
    with_inheritance(run, PART)
    (run / "pruning.json").write_text(json.dumps(left(step=1)))
    headings = re.findall(r"<h2>(.*?)</h2>", write_run_page(run).read_text())
    assert headings[:4] == ["What is trained", "What is left", "Inheritance", "Loss"]
    assert headings[-1] == "Events"


PRUNED = [
    {
        "step": step,
        "prune/sparsity": 0.1 * step,
        "prune/sparsity/vision": 0.12 * step,
        "prune/sparsity/text": 0.08 * step,
        "prune/target": 0.5,
        "prune/penalty": 3.0 - step,
        "prune/lambda1": 10.0 + step,
        "prune/lambda2": 10.0 + 2 * step,
    }
    for step in (1, 2, 3)
]


def test_the_share_left_out_lies_over_the_one_asked_for(make_run: Callable[..., Path]) -> None:
    runs = [make_run("a", log=PRUNED), make_run("b", log=PRUNED)]
    page = write_run_page(runs[0])
    charts = Page(page).charts
    assert set(charts) == {"prune/sparsity", "prune/penalty", "prune/lambda1"}
    for first, named in (
        ("prune/sparsity", {"left out": "", "asked for": "target", "left out of the image tower": "sparsity/vision"}),
        ("prune/lambda1", {"λ1": "lambda1", "λ2": "lambda2"}),
    ):
        # The name beside the swatch with the look of a line is what that line is of.
        (caption,) = re.findall(rf'data-figure="{first}"><figcaption>(.*?)</figcaption>', page.read_text(), re.DOTALL)
        legend = re.findall(r'data-line="(\d+)"><svg.*?class="s(\d+)".*?</svg>(.*?)</small>', caption)
        looks = {name: int(look) for look, _, name in legend}
        assert [look for look, _, _ in legend] == [swatch for _, swatch, _ in legend]
        assert set(looks.values()) == set(charts[first].data)
        for name, figure in named.items():
            wanted = [line[f"prune/{figure}" if figure else first] for line in PRUNED]
            assert charts[first].points(run=looks[name])[:, 1] == pytest.approx(wanted, rel=0.02)
    # Over each other, colours are the runs', so each figure has its chart.
    charts = Page(write_comparison(runs, runs[0].parent / "c.html")).charts
    assert set(charts) == set(PRUNED[0]) - {"step"}
    assert all(sorted(chart.data) == [0, 1] for chart in charts.values())


@pytest.mark.parametrize("written", ["", "[]", "{}", json.dumps(left(towers={"vision": {}}))])
def test_a_damaged_pruning_report_is_noted_and_the_rest_is_shown(make_run: Callable[..., Path], written: str) -> None:
    run = make_run()
    (run / "pruning.json").write_text(written)
    page = Page(write_run_page(run))
    assert page.texts["notes"].startswith("pruning.json cannot be read")
    assert page.charts["loss"].data[0][0] == logged("loss")[0]


def test_a_run_that_prunes_or_inherited_nothing_has_no_such_section(make_run: Callable[..., Path]) -> None:
    pruned = with_inheritance(make_run(settings={"prune": {"target": 0.5}}), PART)
    for run in (pruned, make_run("b")):
        page = Page(write_run_page(run))
        assert "inheritance" not in page.text.lower()
        assert not page.texts["notes"]


@pytest.mark.parametrize("written", ["", "{", "[]", '{"tensors": [3]}', json.dumps({"tensors": [{"student": "a"}]})])
def test_a_damaged_inheritance_is_noted_and_the_rest_is_shown(make_run: Callable[..., Path], written: str) -> None:
    run = make_run()
    (run / "inheritance.json").write_text(written)
    path = write_run_page(run)
    page = Page(path)
    assert page.texts["notes"].startswith("inheritance.json cannot be read")
    assert page.charts["loss"].data[0][0] == logged("loss")[0]
    assert not Tower.all(path)


def clock(*processes: Sequence[float]) -> list[dict[str, Any]]:
    """Log lines every 10 steps; each process's clock in seconds."""
    seconds = [value for process in processes for value in process]
    return [{"step": 10 * at, "loss": 1.0, "measured": {"seconds": value}} for at, value in enumerate(seconds, 1)]


@pytest.mark.parametrize(
    ("processes", "resumed"),
    [
        ([[360, 720, 1080], [180, 540]], []),
        ([[360, 720, 1080], [180, 540]], [30]),
        # The second process's first line comes later on its clock than the first one's last.
        ([[360], [720, 1080], [1440]], [10, 30]),
    ],
)
def test_hours_go_on_where_the_process_before_ended(
    make_run: Callable[..., Path], processes: list[list[float]], resumed: list[int]
) -> None:
    events = [{"step": step, "kind": "resumed", "text": "went on"} for step in resumed]
    run = make_run(log=clock(*processes), events=events)
    wanted: list[float] = []
    for process in processes:
        before = wanted[-1] if wanted else 0.0
        wanted += [before + seconds / 3600 for seconds in process]
    assert RunFolder.read(run).hours.values == pytest.approx(wanted)
    chart = Page(write_comparison([run, make_run("b", log=LOG[:1])], run.parent / "c.html")).charts["loss"]
    assert chart.points("hours")[:, 0] == pytest.approx(wanted, abs=wanted[-1] / 2000)


def test_runs_lie_over_each_other_by_steps_samples_and_hours(make_run: Callable[..., Path]) -> None:
    short = [line for line in LOG if line["step"] <= 200]
    runs = [make_run("a"), make_run("b", log=short, settings={"batch_size": 1024})]
    chart = Page(write_comparison(runs, runs[0].parent / "c.html")).charts["loss"]
    for number_, (log, batch) in enumerate(((LOG, 256), (short, 1024))):
        steps, values = (np.array(part) for part in logged("loss", log))
        for axis, places in (("steps", steps), ("samples", steps * batch), ("hours", steps * 0.01)):
            read = chart.points(axis, run=number_)
            end = {"steps": 400, "samples": 200 * 1024, "hours": 4}[axis]
            assert read[:, 0] == pytest.approx(places, abs=end / 2000)
            assert read[:, 1] == pytest.approx(values, abs=0.02)
        assert chart.data[number_][1] == pytest.approx(values, rel=1e-5)


def test_an_evaluation_lies_where_training_was_by_then(make_run: Callable[..., Path]) -> None:
    runs = [make_run("a"), make_run("b")]
    chart = Page(write_comparison(runs, runs[0].parent / "c.html")).charts["eval/zero_shot/top1"]
    assert chart.points("hours")[:, 0] == pytest.approx([1, 2, 3, 4], abs=0.01)


def test_long_noisy_curves_have_their_means_drawn_over_them(make_run: Callable[..., Path]) -> None:
    log = [
        {"step": step, "loss": 2.0 + (-1) ** step + 0.001 * step, "grad_norm": 10.0 ** (-1) ** step, "logit_scale": 0.1}
        for step in range(1, 1501)
    ]
    runs = [make_run("a", log=log), make_run("b", log=log[:100])]
    charts = Page(write_comparison(runs, runs[0].parent / "c.html")).charts
    chart = charts["loss"]
    read = chart.points(kind="mean")
    assert len(read) == 150
    assert read[:, 1] == pytest.approx(2 + 0.001 * read[:, 0], abs=0.02)
    assert charts["grad_norm"].points(kind="mean")[:, 1] == pytest.approx([1.0] * 150, rel=0.02)
    assert charts["logit_scale"].points(kind="mean")[:, 1] == pytest.approx([0.1] * 150, rel=0.01)
    assert ("steps", "mean", 1) not in chart.curves
    assert ("steps", "mean", 0) not in Page(write_run_page(runs[0])).charts["loss"].curves


def test_only_settings_that_differ_are_listed(make_run: Callable[..., Path]) -> None:
    optimiser = SETTINGS["optimiser"] | {"lr": 0.0005, "ema": 0.9999}
    # 2000 is the same weight as 2000.0, and every run has a folder of its own.
    losses = {"fd": {"weight": 2000, "options": {}}, "contrastive": {"weight": 1.5, "options": {}}}
    changes = {"optimiser": optimiser, "losses": losses, "seed": 7}
    facts = {"device": "cuda", "teachers": [FACTS["teachers"][0] | {"logit_scale": 50.0}]}
    runs = [make_run("a"), make_run("b", settings=changes, facts=facts)]
    page = Page(write_comparison(runs, runs[0].parent / "c.html"))
    assert page.rows["differences"] == [
        ["setting", "a", "b"],
        ["loss affinity weight", "1 at 0% → 0.25 at 50%", "–"],
        ["optimiser lr", "0.001", "0.0005"],
        ["optimiser ema", "none", "0.9999"],
        ["seed", "0", "7"],
        ["teacher 1 logit scale", "100", "50"],
        ["device", "cpu", "cuda"],
        ["loss contrastive weight", "–", "1.5"],
    ]


def test_runs_with_equal_settings_differ_in_none(make_run: Callable[..., Path]) -> None:
    runs = [make_run("a"), make_run("b")]
    page = Page(write_comparison(runs, runs[0].parent / "c.html"))
    assert page.texts["differences"] == "In none of their settings."


def test_figures_stand_side_by_side_and_the_best_is_bold(make_run: Callable[..., Path]) -> None:
    better = [{name: value + 1 if name.startswith("eval/") else value for name, value in line.items()} for line in LOG]
    runs = [make_run("a"), make_run("b", log=better, done={"steps": 400, "loss": 3.0, "best": None})]
    page = Page(write_comparison(runs, runs[0].parent / "c.html"))
    rows = {row[0]: row[1:] for row in page.rows["figures"]}
    assert rows["state"] == ["at step 400 of 400", "finished, 400 steps"]
    assert rows["trained for"] == ["4 h", "4 h"]
    assert rows["zero shot top1"] == ["4951.25 at 300", "5052.25 at 300"]
    assert rows["retrieval text to image mean rank"] == ["251248.8 at 300", "252249.8 at 300"]
    assert rows["fd"] == ["2.4002.010 at 10"] * 2
    assert re.findall(r"<b>([\d.]+)</b>", page.text) == ["52.25", "248.8"]


def test_a_run_that_does_not_tell_its_batch_has_no_curve_over_samples(make_run: Callable[..., Path]) -> None:
    runs = [make_run("a"), make_run("b")]
    (runs[1] / "settings.json").unlink()
    page = Page(write_comparison(runs, runs[0].parent / "c.html"))
    drawn = {(axis, run) for axis, _, run in page.charts["loss"].curves}
    assert drawn == {(axis, run) for axis in ("steps", "samples", "hours") for run in (0, 1)} - {("samples", 1)}


def test_runs_of_one_name_are_told_apart_by_their_folders(make_run: Callable[..., Path]) -> None:
    runs = [make_run("old/a"), make_run("new/a")]
    page = Page(write_comparison(runs, runs[0].parent / "c.html"))
    assert page.rows["figures"][0][1:] == ["old/a", "new/a"]


def test_every_run_has_a_look_of_its_own(make_run: Callable[..., Path]) -> None:
    runs = [make_run(f"run-{at:02d}", log=LOG[:2]) for at in range(18)]
    page = write_comparison(runs, runs[0].parent / "c.html").read_text()
    looks = dict(re.findall(r"\.s(\d+) (\{ stroke: [^}]+\})", page))
    assert len(set(looks.values())) == len(looks) == 18
    palettes = [re.findall(r"--c\d: #(\w{6})", colours) for colours in re.findall(r"--c0: [^}]+", page)]
    assert [len(palette) for palette in palettes] == [6, 6], "light and dark"
    for palette in palettes:
        for seen in SEEN.values():
            lab = cielab(palette, seen)
            apart = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(6, 1)]
            assert apart.min() > 20, "2.3 is what an eye can just tell apart"


SEEN = {
    "by most": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
"""How linear RGB looks to those who lack one kind of cone: Machado, Oliveira and Fernandes 2009, table 1."""


def cielab(colours: Sequence[str], seen: Any) -> np.ndarray:
    """(n, 3): CIE L*a*b* of sRGB colours, D65."""
    srgb = np.array([[int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)] for colour in colours])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(seen), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.transpose(to_xyz) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize(
    ("names", "told"), [(["a"], "1 run was given"), (["a", "b"] * 10, "20 runs"), (["a", "b", "./a"], "given twice")]
)
def test_what_cannot_be_compared_is_told_in_one_line(
    tmp_path: Path, make_run: Callable[..., Path], names: list[str], told: str
) -> None:
    for name in ("a", "b"):
        make_run(name)
    with pytest.raises(UserError, match=told):
        write_comparison([tmp_path / name for name in names], tmp_path / "c.html")
    with pytest.raises(UserError, match="this is a folder"):
        write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert not (tmp_path / "c.html").exists()
