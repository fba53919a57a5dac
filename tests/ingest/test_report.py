"""The report's figures against the same figures counted by hand, and what hostile text can do on it: nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ingest.fetched import CAUSES as ALL_CAUSES
from ingest.fetched import Fetched, may_pass
from ingest.ledger import result_fields
from ingest.report import write_report
from ingest.report.causes import GROUPS, explain
from ingest.report.published import PUBLISHED
from ingest.report.tally import Spread, Tally, Timeline
from ingest.settings import IngestSettings, SourceSettings
from shards import Folder, Spec, UserError
from shards.dataset import InputFile, Stage, publish_whole
from shards.publication import Publication

NAME, PLANNED, ADDED = "set", "a" * 16, "b" * 16
START = 1_790_000_000.0
ROWS = 200
"""A shard."""

Row = tuple[str, str, Fetched]
"""URL, caption, what came of it."""


class Page(HTMLParser):
    """What a browser makes of the page: texts by id, tables by id as rows of cells, captions and keys, pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: dict[str, str] = defaultdict(str)
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[bytes] = []
        self.captions: list[str] = []
        self.keys: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        named = dict(attrs)
        if tag not in {"meta", "br", "img"}:
            self._open.append((tag, named))
        if tag == "br":
            self.handle_data(" ")
        if tag == "table":
            self.tables[named["id"] or ""] = []
        if tag in {"tr", "td"}:
            rows = list(self.tables.values())[-1]
            rows.append([]) if tag == "tr" else rows[-1].append("")
        if tag == "img":
            self.pictures.append(base64.b64decode((named["src"] or "").removeprefix("data:image/jpeg;base64,")))
        for kind, texts in (("caption", self.captions), ("key", self.keys)):
            if named.get("class") == kind:
                texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in {open_tag for open_tag, _ in self._open}:
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        for tag, named in self._open:
            if named.get("id") and tag != "table":
                self.ids[named["id"] or ""] += data
            if tag == "td":
                list(self.tables.values())[-1][-1][-1] += data
            if named.get("class") == "caption":
                self.captions[-1] += data
            if named.get("class") == "key":
                self.keys[-1] += data

    def rows(self, table: str) -> list[list[str]]:
        """The cells' texts, without the heading."""
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[table] if row]

    def number(self, name: str) -> int:
        return int(self.ids[name].replace(",", ""))


def page_of(out: str | Path) -> Page:
    place = write_report(str(out))
    assert place == f"{Folder(str(out)).url}/report.html"
    return Page(Folder(str(out)).read("report.html").decode())


def jpeg(colour: tuple[int, ...], kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, kind)
    return sink.getvalue()


def got(image: bytes | None = None, cause: str | None = None, *, when: float = START, **values: Any) -> Fetched:
    """A fetch that gave `image`, or failed for `cause`."""
    sizes = {"width": 40, "height": 30, "original_width": 640, "original_height": 480, "bytes": 5000} if image else {}
    digest = hashlib.sha256(image).hexdigest() if image else None
    message = f"because of {cause}" if cause else None
    chosen = {"host": "a.example", "seconds": 0.5, "attempts": 1, "started": when, **sizes, **values}
    return Fetched(image=image, digest=digest, error_class=cause, error_message=message, **chosen)


def settled(cause: str) -> Fetched:
    """A row that never reached the network."""
    return Fetched(error_class=cause, error_message=f"because of {cause}")


def plan(out: str | Path, shards: int, rows: int, kind: str = "cc3m") -> None:
    settings = IngestSettings(source=SourceSettings(paths=("list.tsv",), format=kind), out=str(out), name=NAME)
    inputs = (InputFile("list.tsv", 10, sha256="0" * 64),)
    stage = Stage(settings.identity(), inputs, NAME, shards=shards, rows=rows, fingerprint=PLANNED)
    publish_whole(Folder(str(out)), stage)


def write_shard(out: str | Path, shard: int, rows: Sequence[tuple[int, Row]], fingerprint: str = PLANNED) -> None:
    """Publish a shard of numbered rows, as the ingest task does."""
    publication = Publication(Spec(shard, Folder(str(out)), fingerprint))
    keys = [f"{NAME}-{number:09d}" for number, _ in rows]
    with publication.samples() as tar:
        for key, (_, (_, caption, fetched)) in zip(keys, rows, strict=True):
            if fetched.image is not None:
                tar.add(key, fetched.image, "jpg", caption, {"key": key})
    columns: dict[str, Any] = {"key": keys, "url": [url for _, (url, _, _) in rows]}
    columns["caption"] = [caption for _, (_, caption, _) in rows]
    for field in result_fields("sha256"):
        values = [fetched.result("sha256")[field.name] for _, (_, _, fetched) in rows]
        columns[field.name] = pa.array(values, field.type)
    with publication.beside(".parquet") as path:
        pq.write_table(pa.table(columns), path)
    publication.finish(len(tar), {})


def write(out: str | Path, shards: Sequence[Sequence[Row]], *, done: int | None = None, kind: str = "cc3m") -> None:
    """A dataset of these rows, from a list of a kind, of which the first `done` shards are published."""
    plan(out, len(shards), sum(map(len, shards)), kind)
    number = 0
    for shard, rows in enumerate(shards[:done]):
        write_shard(out, shard, list(enumerate(rows, number)))
        number += len(rows)


CAUSES = ("http_404", "http_503", "dns", "timeout", "not_an_image", "truncated", "filtered_size", "too_large")


@pytest.fixture(scope="module")
def web() -> list[list[Row]]:
    """Three shards of a small web: many hosts, many causes, sizes and times of all kinds."""
    random = np.random.default_rng(5)
    hosts = [f"host{number}.example" for number in range(60)]
    weights = 1 / np.arange(1, 61)
    shards = []
    for shard in range(3):
        rows: list[Row] = []
        for row in range(ROWS):
            host = str(random.choice(hosts, p=weights / weights.sum()))
            url, caption = f"http://{host}/{shard}/{row}.jpg", f"picture {shard} {row}"
            when = START + shard * 30 + float(random.uniform(0, 25))
            times: dict[str, Any] = {"host": host, "when": when, "seconds": float(random.lognormal(-1, 1))}
            luck = random.random()
            if luck < 0.05:
                rows.append((url, caption, settled("duplicate")))
            elif luck < 0.1:
                rows.append((url, caption, settled("filtered_where")))
            elif luck < 0.12:
                rows.append(("", caption, settled("bad_url")))
            elif luck < 0.4:
                cause = CAUSES[int(random.integers(len(CAUSES)) * random.random())]
                rows.append((url, caption, got(None, cause, bytes=int(random.integers(1, 900)), **times)))
            else:
                width, height = (int(side) for side in random.integers(80, 4000, 2))
                sizes: dict[str, Any] = {"original_width": width, "original_height": height}
                sizes["bytes"] = width * height // 7
                image = jpeg(tuple(random.integers(0, 256, 3).tolist()))
                rows.append((url, caption, got(image, **times, **sizes)))
        shards.append(rows)
    return shards


def fetches(rows: Sequence[Row]) -> list[Fetched]:
    return [fetched for _, _, fetched in rows]


def check_counts(page: Page, rows: Sequence[Row]) -> None:
    """The page's counts of rows and failures are those of `rows`."""
    states = Counter(fetched.status for fetched in fetches(rows))
    causes = Counter(f.error_class for f in fetches(rows) if f.error_class and f.status.startswith("failed_to"))
    assert page.number("rows") == len(rows)
    assert page.number("samples") == states["success"]
    assert page.number("duplicates") == states["duplicate"]
    assert page.number("filtered") == states["filtered"]
    assert page.number("failed") == causes.total()
    assert page.number("retryable") == sum(count for cause, count in causes.items() if cause in RETRYABLE)
    # A repeated URL or a row that was filtered out is no loss: the yield is of what was to be fetched.
    wanted = len(rows) - states["duplicate"] - states["filtered"]
    assert page.number("wanted") == wanted
    assert page.ids["yield"] == (f"{100 * states['success'] / wanted:.1f}\xa0%" if wanted else "–")
    shown = page.rows("causes") if causes else []
    assert {cells[0]: int(cells[1]) for cells in shown} == causes
    assert [int(cells[1]) for cells in shown] == sorted(causes.values(), reverse=True)
    for cause, count, share, retryable, example in shown:
        assert share == f"{100 * int(count) / causes.total():.1f} %"
        assert (retryable == "yes") == (cause in RETRYABLE)
        examples = {f"{url} {f.error_message}".strip() for url, _, f in rows if f.error_class == cause}
        assert any(example.endswith(one) for one in examples)


RETRYABLE = {"http_503", "dns", "timeout"}


def test_counts_are_those_of_the_ledgers(web: list[list[Row]], tmp_path: Path) -> None:
    write(tmp_path, web)
    page = page_of(tmp_path)
    rows = [row for shard in web for row in shard]
    check_counts(page, rows)
    assert {cause for cause in CAUSES if may_pass(cause)} == RETRYABLE
    assert "unfinished" not in page.ids
    assert f"clipstill ingest retry {tmp_path}" in page.ids["hint"]

    hosts: dict[str, list[Fetched]] = defaultdict(list)
    for fetched in fetches(rows):
        if fetched.host:
            hosts[fetched.host].append(fetched)
    failed = {name: Counter(f.error_class for f in found if f.error_class) for name, found in hosts.items()}
    weights = {
        "failing": {name: causes.total() for name, causes in failed.items() if causes},
        "largest": {name: len(found) for name, found in hosts.items()},
    }
    for table, weight in weights.items():
        order = sorted(weight, key=lambda name: (-weight[name], name))
        shown = page.rows(table)
        assert [cells[0] for cells in shown] == order[:20]
        for name, count, bad, share, _, main, _ in shown:
            assert (int(count), int(bad)) == (len(hosts[name]), failed[name].total())
            assert share == f"{100 * int(bad) / int(count):.1f} %"
            assert failed[name][main] == max(failed[name].values(), default=0)


def measured(text: str) -> float:
    """The number of a text such as `12.3 kB`."""
    value, unit = text.split()
    return float(value) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


def test_sizes_and_times_are_those_of_the_ledgers(web: list[list[Row]], tmp_path: Path) -> None:
    write(tmp_path, web)
    page = page_of(tmp_path)
    fetched = [fetched for rows in web for fetched in fetches(rows) if fetched.started is not None]
    samples = [f for f in fetched if f.image is not None]

    def median(values: Sequence[Any]) -> float:
        return float(np.percentile(values, 50, method="inverted_cdf"))

    sides = median([min(f.original_width or 0, f.original_height or 0) for f in samples])
    sizes, stored = median([f.bytes for f in samples]), median([len(f.image or b"") for f in samples])
    note = re.search(r"shorter side\s+(\d+) px, original\s+(\S+\s\S+), stored (\S+\s\w+)\.", page.text)
    assert note is not None
    assert [int(note[1]), measured(note[2]), measured(note[3])] == pytest.approx([sides, sizes, stored], rel=0.012)
    tars = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert measured(page.ids["stored"]) == pytest.approx(tars, rel=0.005)

    ends = [(f.started or 0) + (f.seconds or 0) for f in fetched]
    running = np.floor(max(ends)) + 1 - np.floor(min(ends))
    assert float(page.ids["speed"]) == pytest.approx(len(samples) / running, abs=0.06)
    times: list[list[Any]] = [[f.seconds for f in fetched if (f.image is not None) == image] for image in (True, False)]
    for cells, percent in zip(page.rows("seconds"), (50, 90, 99, 100), strict=True):
        expected = [float(np.percentile(part, percent, method="inverted_cdf")) for part in times]
        assert [float(cell) for cell in cells[1:]] == pytest.approx(expected, rel=0.015)


def test_an_unfinished_ingest_says_so_and_counts_what_is_done(web: list[list[Row]], tmp_path: Path) -> None:
    write(tmp_path, web, done=0)
    page = page_of(tmp_path)
    assert "0 of 3 shards are done" in page.ids["unfinished"]
    assert {page.number(name) for name in ("rows", "samples", "failed", "duplicates")} == {0}
    # Not what another plan left here.
    write_shard(tmp_path, 2, list(enumerate(web[2], 2 * ROWS)), fingerprint="c" * 16)
    write_shard(tmp_path, 1, list(enumerate(web[1], ROWS)))
    page = page_of(tmp_path)
    assert "1 of 3 shards are done" in page.ids["unfinished"]
    assert "hint" not in page.ids
    check_counts(page, web[1])
    for shard in (0, 2):
        write_shard(tmp_path, shard, list(enumerate(web[shard], shard * ROWS)))
    page = page_of(tmp_path)
    assert "unfinished" not in page.ids
    check_counts(page, [row for shard in web for row in shard])


def test_a_retried_row_counts_as_it_ended(tmp_path: Path) -> None:
    image = jpeg((10, 200, 30))
    first = [
        ("http://a.example/0", "zero", got(None, "dns")),
        ("http://a.example/1", "one", got(image)),
        ("http://a.example/2", "two", got(None, "timeout", seconds=30.0)),
        ("http://a.example/3", "three", got(None, "http_503")),
        ("http://a.example/4", "four", got(None, "http_404")),
    ]
    write(tmp_path, [first[:3], first[3:]])
    rounds = [
        {"first": 2, "shards": 1, "rows": 3, "fingerprint": ADDED},
        {"first": 3, "shards": 2, "rows": 2, "fingerprint": ADDED},
    ]
    for number, added in enumerate(rounds, 1):
        Folder(tmp_path).child("_rounds").publish(f"{number:03d}.json", json.dumps(added).encode())
    later = START + 86_400
    second = [
        (first[0][0], "zero", got(image, when=later)),
        (first[2][0], "two", got(None, "timeout", when=later)),
        (first[3][0], "three", got(None, "connect", when=later)),
    ]
    write_shard(tmp_path, 2, list(zip((0, 2, 3), second, strict=True)), ADDED)
    write_shard(tmp_path, 3, [(2, (first[2][0], "two", got(image, when=later + 60)))], ADDED)
    page = page_of(tmp_path)
    assert "4 of 5 shards are done" in page.ids["unfinished"]
    assert f"clipstill ingest retry {tmp_path}" in page.ids["unfinished"]

    write_shard(tmp_path, 4, [(3, (first[3][0], "three", got(None, "http_410", when=later + 60)))], ADDED)
    page = page_of(tmp_path)
    ended = [second[0], first[1], (first[2][0], "two", got(image)), (first[3][0], "three", got(None, "http_410"))]
    check_counts(page, [*ended, first[4]])
    assert "unfinished" not in page.ids
    assert "hint" not in page.ids
    assert " ".join(page.ids["rounds"].split()) == (
        "2 rounds of retries: 3 rows fetched again, 2 of them came through."
    )
    # The network's part counts every fetch: three images, and seven failures.
    assert page.rows("seconds")[-1] == ["longest", "0.5", "30"]
    # The first fetches take until the longest time-out's end; then a day's pause, and one second or 61 of the rounds.
    assert float(page.ids["speed"]) == pytest.approx(3 / (31 + 61), abs=0.05)
    assert "23 h 59 min" in page.text.replace("\xa0", " ")
    assert sorted(page.captions) == ["one", "two", "zero"]


def test_nothing_but_failures_is_a_page_too(tmp_path: Path) -> None:
    rows = [("http://a.example/0", "zero", got(None, "dns")), ("", "one", settled("bad_url"))]
    write(tmp_path, [rows])
    page = page_of(tmp_path)
    check_counts(page, rows)
    assert (page.tags["img"], page.ids["yield"]) == (0, "0.0\xa0%")
    write(tmp_path / "empty", [])
    check_counts(page_of(tmp_path / "empty"), [])
    rows = [("", "one", settled("bad_url")), ("u", "two", settled("duplicate"))]
    write(tmp_path / "unfetched", [rows])
    page = page_of(tmp_path / "unfetched")
    check_counts(page, rows)
    assert page.ids["speed"] == "–"


def test_the_yield_stands_beside_what_is_published_for_the_list(tmp_path: Path) -> None:
    image = jpeg((1, 2, 3))

    def rows(good: int, dead: int) -> list[Row]:
        found = [("http://a.example", "good", got(image))] * good + [
            ("http://a.example", "bad", got(None, "dns"))
        ] * dead
        # Neither is a loss.
        return [*found, ("u", "again", settled("duplicate")), ("u", "out", settled("filtered_where"))]

    write(tmp_path / "cc3m", [rows(7, 3)])
    page = page_of(tmp_path / "cc3m")
    # The card of the dataset that was downloaded in 2021 counts 2,905,954 samples of 3,318,333.
    (first, *_) = page.rows("normal")
    assert first[:3] == ["CC3M, training", "2021", f"2,905,954 of 3,318,333 ({100 * 2905954 / 3318333:.1f} %)"]
    assert "pixparse/cc3m-wds" in first[3]
    assert "70.0\xa0% of the rows that were to be fetched became samples" in page.text
    assert "below" not in page.ids
    write(tmp_path / "worse", [rows(2, 8)])
    assert "far below" in page_of(tmp_path / "worse").ids["below"]
    assert set(PUBLISHED) == {"cc3m", "cc12m", "laion", "datacomp", "yfcc15m"}
    for kind in ("datacomp", "csv"):
        write(tmp_path / f"of-{kind}", [rows(1, 0)], kind=kind)
        assert ("normal" in page_of(tmp_path / f"of-{kind}").tables) == (kind in PUBLISHED), kind
    # Nothing to compare yet.
    write(tmp_path / "begun", [rows(7, 3)], done=0)
    assert "normal" not in page_of(tmp_path / "begun").tables


def test_repeated_and_filtered_rows_are_no_part_of_what_went_lost(tmp_path: Path) -> None:
    image = jpeg((1, 2, 3))
    rows: list[Row] = [("http://a.example", "good", got(image))] * 6
    rows += [("http://a.example", "bad", got(None, "dns")), ("http://a.example", "bad", got(None, "http_404"))]
    rows += [("u", "again", settled("duplicate"))] * 4 + [("u", "out", settled("filtered_where"))] * 2
    write(tmp_path, [rows])
    page = page_of(tmp_path)
    (track,) = re.findall(r'<div class="track">(.*?)</div>', page.text, re.DOTALL)
    widths = dict(re.findall(r'class="(\w+)" style="width: ([\d.]+)%"', track))
    assert {look: float(width) for look, width in widths.items()} == {"good": 75, "warn": 12.5, "bad": 12.5, "pale": 0}
    assert "4 repeat the URL of an earlier row, whose sample has their captions; 2 were filtered out" in page.text


def test_every_cause_is_explained_with_what_can_be_done(tmp_path: Path) -> None:
    unknown = explain("never heard of")
    statuses = [f"http_{status}" for status in (301, 400, 401, 403, 404, 408, 410, 425, 429, 451, 500, 503, 599)]
    causes = [*(set(ALL_CAUSES) - {"duplicate", "filtered_where"}), "bad_row", "killed_worker", *statuses]
    for cause in causes:
        words = explain(cause)
        assert words.group in GROUPS
        assert words.meaning.endswith(".")
        assert words.do.endswith(".")
        assert words.meaning != unknown.meaning, cause
        # Whoever is told to retry is not told so in vain.
        if may_pass(cause):
            assert "etry" in words.do, cause
    counts = {"http_404": 5, "http_410": 1, "timeout": 2, "killed_worker": 1, "new_word": 1}
    write(tmp_path, [[("u", "c", got(None, cause)) for cause, count in counts.items() for _ in range(count)]])
    page = page_of(tmp_path)
    assert " ".join(page.ids["groups"].split()) == (
        "The server said no: 6 (60.0\xa0%); could not be reached: 2 (20.0\xa0%); "
        "not a whole picture as expected: 2 (20.0\xa0%)."
    ).replace("\xa0", " ")
    (not_there,) = [cells for cells in page.rows("causes") if cells[0] == "http_404"]
    assert not_there[4].startswith("The picture is not there any more.")
    # Options are set as code, not as text that looks like it.
    assert "&lt;code" not in page.text


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "javascript:alert(1)",
    "http://x.example/<b>" + "y" * 5000,
    "\u202etxt.exe \x00 \x1b[31m",
    "</style></title><!-- &lt;b&gt;",
]


def test_text_from_the_internet_stays_text(tmp_path: Path) -> None:
    def both(number: int, text: str) -> list[Row]:
        failed = Fetched(error_class=f"http_{number}", error_message=text, host=text[:60], started=START)
        return [(text, text, got(jpeg((number, 0, 0)), host=text[:60])), (text, text, failed)]

    write(tmp_path / "safe", [[row for number in range(len(HOSTILE)) for row in both(number, "plain")]])
    write(tmp_path / "hostile", [[row for number, text in enumerate(HOSTILE) for row in both(number, text)]])
    safe, page = page_of(tmp_path / "safe"), page_of(tmp_path / "hostile")
    names = {name for name, _ in page.attributes}
    # More hosts make more rows of the two tables, and nothing else.
    grown = {"tr", "td", "svg", "rect"}
    assert {tag: n for tag, n in page.tags.items() if tag not in grown} == {
        tag: n for tag, n in safe.tags.items() if tag not in grown
    }
    assert names == {name for name, _ in safe.attributes}
    assert not any(name.startswith("on") or name in {"href", "action", "srcdoc"} for name in names - {"xlink:href"})
    assert not page.tags.keys() & {"script", "a", "iframe", "object", "embed", "form", "link", "base"}
    assert all(
        value and value.startswith("data:image/jpeg;base64,") for name, value in page.attributes if name == "src"
    )
    shown = " ".join(cell for row in page.rows("causes") for cell in row) + " ".join(page.captions)
    for text in HOSTILE[:5]:
        assert shown.count(text) >= 2
    assert "y" * 300 not in page.text


def test_the_contact_sheet_shows_random_samples_as_they_are(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    colours = random.integers(0, 256, (90, 3)).tolist()
    kinds = ["JPEG", "PNG", "WEBP"]
    rows: list[Row] = [
        ("http://a.example", f"sample {number}", got(jpeg(tuple(colour), kinds[number % 3], (900, 700))))
        for number, colour in enumerate(colours)
    ]
    # A shard of failures alone lies between.
    failed: list[Row] = [("http://a.example", "none", got(None, "dns"))]
    write(tmp_path / "a", [rows[:50], failed, rows[50:]])
    page = page_of(tmp_path / "a")
    numbers = [int(key.removeprefix(f"{NAME}-")) for key in page.keys]
    numbers = [number - (number > 50) for number in numbers]
    assert len(set(numbers)) == 24
    assert min(numbers) < 50 < max(numbers)
    assert page.captions == [f"sample {number}" for number in numbers]
    for number, data in zip(numbers, page.pictures, strict=True):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("JPEG", (192, 149))
            assert np.asarray(image).mean((0, 1)) == pytest.approx(np.array(colours[number]), abs=4)
    write(tmp_path / "b", [rows[:50], failed, rows[50:]])
    assert page_of(tmp_path / "b").pictures == page.pictures
    write(tmp_path / "few", [rows[:7]])
    assert page_of(tmp_path / "few").captions == [f"sample {number}" for number in range(7)]


def test_a_report_can_be_made_again_with_the_same_bytes(web: list[list[Row]], tmp_path: Path) -> None:
    write(tmp_path, web)
    assert page_of(tmp_path).text == page_of(tmp_path).text


def test_what_cannot_be_reported_is_refused(web: list[list[Row]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset here"):
        write_report(str(tmp_path))
    Folder(tmp_path).publish("dataset.json", b'{"schema": 1, "name": "set", "shards": 0, "rows": 0}')
    with pytest.raises(UserError, match="not made from a plan"):
        write_report(str(tmp_path))
    write(tmp_path, web)
    for name in ("00001.parquet", "00001.index.arrow", "00001.tar"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing.*shards verify"):
            write_report(str(tmp_path))
        (tmp_path / name).write_bytes(bytes(len(content)))
        with pytest.raises(UserError, match=f"{name} cannot be read.*shards verify"):
            write_report(str(tmp_path))
        (tmp_path / name).write_bytes(content)
    pq.write_table(pq.read_table(tmp_path / "00001.parquet").drop_columns(["host"]), tmp_path / "00001.parquet")
    with pytest.raises(UserError, match=r"00001.parquet has no column host"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_a_spread_knows_its_percentiles_within_a_hundredth() -> None:
    random = np.random.default_rng(2)
    values = np.concatenate([random.lognormal(3, 2, 5000), random.integers(1, 50, 5000)])
    spread = Spread()
    for part in np.split(values, 10):
        spread.add(part)
    for percent in (0, 1, 50, 90, 99, 100):
        expected = float(np.percentile(values, percent, method="inverted_cdf"))
        assert spread.percentile(percent) == pytest.approx(expected, rel=0.01)
    counts, edges = spread.bars()
    expected_counts, _ = np.histogram(np.log10(values), edges)
    assert counts.sum() == expected_counts.sum() == values.size == spread.count
    assert np.abs(counts - expected_counts).max() <= 2  # rounding at the edges


def test_a_timeline_of_any_length_keeps_every_fetch_and_leaves_pauses_out() -> None:
    random = np.random.default_rng(4)
    # Three hours, a day's pause, 40 days.
    when = START + np.concatenate([random.uniform(0, 10_800, 4000), random.uniform(97_200, 3_553_200, 60_000)])
    images, size = random.random(when.size) < 0.7, random.integers(0, 10**6, when.size)
    line = Timeline()
    for at in range(0, when.size, 1000):
        line.add(when[at : at + 1000], images[at : at + 1000], size[at : at + 1000])
    rates = line.rates()
    assert rates is not None
    assert len(rates.edges) <= 121
    totals = np.diff(rates.edges) @ rates.a_second
    assert totals == pytest.approx([when.size, images.sum(), size.sum()])
    assert rates.means * rates.running == pytest.approx(totals)
    ((after, length),) = rates.pauses
    assert (after, length) == pytest.approx((10_800, 86_400), abs=2 * line.width)
    assert rates.running == pytest.approx(10_800 + 40 * 86_400, abs=4 * line.width)
    steady = rates.a_second[2:-1, 0]
    assert steady == pytest.approx(60_000 / 3_456_000, rel=0.25)
    assert Timeline().rates() is None


def test_hosts_beyond_counting_leave_the_large_ones_right_within_what_is_said() -> None:
    counted, exact = Tally(), Counter[str]()
    random = np.random.default_rng(6)
    for part in range(3):
        small = [f"small{number}.example" for number in random.integers(0, 400_000, 150_000)]
        large = [f"large{number}.example" for number in range(30) for _ in range(40 + number)]
        hosts = random.permutation(np.array(small + large)).tolist()
        exact.update(hosts)
        empty = dict.fromkeys(("original_width", "original_height", "bytes"), pa.nulls(len(hosts), pa.int64()))
        texts = {"status": "failed_to_download", "error_class": "dns", "url": "u", "error_message": str(part)}
        columns = {name: pa.repeat(text, len(hosts)) for name, text in texts.items()}
        counted.add_states(pa.table({**columns, **empty, "host": hosts}))
    assert 0 < counted.short < 40
    assert len(counted.hosts) <= 250_000
    assert counted.causes == {"dns": exact.total()}
    for name, host in counted.hosts.items():
        assert exact[name] - counted.short <= host.rows == host.failed.total() <= exact[name]
    top = sorted(counted.hosts, key=lambda name: counted.hosts[name].rows, reverse=True)[:30]
    assert set(top) == {f"large{number}.example" for number in range(30)}


def test_a_dataset_on_an_object_store(web: list[list[Row]], bucket: str, tmp_path: Path) -> None:
    write(f"{bucket}/set", web)
    write(tmp_path, web)
    there, here = page_of(f"{bucket}/set"), page_of(tmp_path)
    assert there.text.replace(f"{bucket}/set", str(tmp_path)) == here.text
    # The sheet takes a few bytes of each tar: none was copied here.
    assert not [path for path in (tmp_path / "copies").glob("*") if path.stat().st_size > 100_000]
