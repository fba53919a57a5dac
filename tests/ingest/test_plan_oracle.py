"""The plan against the same rules written down in plain Python, over random lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import IngestSettings, SourceSettings
from ingest.plan import make_plan, read_rows
from shards import Folder
from shards.dataset import DatasetPlan

WHERE = "score >= 0.5"


@dataclass(frozen=True)
class Row:
    url: str | None
    caption: str | None
    digest: str | None
    score: float | None

    @property
    def kept(self) -> bool:
        return self.url is None or (self.score is not None and self.score >= 0.5)

    @property
    def name(self) -> tuple[str, str] | None:
        """What a duplicate shares; None of rows that are not fetched."""
        url = (self.url or "").strip().split("#")[0]
        scheme, mark, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        url = f"{scheme.lower()}{mark}{host.lower()}{slash}{path}"
        return (url, (self.digest or "").strip().lower()) if url and self.kept else None


def draw(seed: int) -> tuple[list[Row], int, int]:
    """A list with the troubles that lists have, a shard size and the size of a part."""
    random = np.random.default_rng([seed, 3])
    count, urls = int(random.integers(1, 120)), int(random.integers(1, 60))
    kept = random.choice([0.05, 0.5, 0.95])
    rows = []
    for _ in range(count):
        start = random.choice(["http://a/", " http://a/", "HTTP://a/", "http://A/", "http://a/P"])
        url: str | None = f"{start}{random.integers(urls)}{random.choice(['', '', '#top', '#'])}"
        caption: str | None = f"text {random.integers(6)}"
        digest: str | None = random.choice(["A" * 64, "a" * 64, "b" * 64])
        score: float | None = 0.9 if random.random() < kept else 0.1
        if random.random() < 0.2:
            url = random.choice([None, "", "  "])
        if random.random() < 0.3:
            caption = random.choice([None, "", " ", "\N{NO-BREAK SPACE}"])
        if random.random() < 0.7:
            digest = random.choice([None, ""])
        if random.random() < 0.05:
            score = None
        rows.append(Row(url, caption, digest, score))
    return rows, int(random.choice([1, 2, 3, 7, 30])), int(random.choice([5, 25, 60, 200]))


def shards_of(rows: list[Row], size: int, part: int) -> list[list[dict[str, Any]]]:
    """What is to be planned, shard by shard."""
    seen: dict[tuple[str, str], int] = {}
    shards: list[list[dict[str, Any]]] = []
    start = 0
    while start < len(rows):
        window = range(start, min(len(rows), start + max(part, size)))
        first_of = dict(seen)
        for row in window:
            if (name := rows[row].name) is not None:
                first_of.setdefault(name, row)
        cuts = cuts_of([rows[row].name is not None and first_of[rows[row].name] == row for row in window], size, part)
        if window.stop == len(rows) and (not cuts or cuts[-1] < len(window)):
            cuts.append(len(window))
        planned = [planned_row(rows, row, first_of) for row in range(start, start + cuts[-1])]
        collect_captions(planned, start)
        for row, known in enumerate(planned, start):
            name = rows[row].name
            if name is not None and first_of[name] == row and (known["caption"] or "").strip():
                seen[name] = row
        shards += [planned[low:high] for low, high in zip([0, *cuts], cuts, strict=False)]
        start += cuts[-1]
    return shards


def cuts_of(fetched: list[bool], size: int, part: int) -> list[int]:
    """The ends of the shards that are complete for sure, one row after the other."""
    cuts: list[int] = []
    begin = taken = 0
    for row, is_fetched in enumerate(fetched):
        if row - begin == max(size, min(64 * size, part)) or (is_fetched and taken == size):
            cuts.append(row)
            begin, taken = row, 0
        taken += is_fetched
    if len(fetched) - begin == max(size, min(64 * size, part)):
        cuts.append(len(fetched))
    return cuts


def planned_row(rows: list[Row], row: int, first_of: dict[tuple[str, str], int]) -> dict[str, Any]:
    given = rows[row]
    first = row if given.name is None else first_of[given.name]
    return {
        "key": f"set-{row:09d}",
        "url": None if given.url is None else given.url.strip(),
        "caption": given.caption,
        "captions": None,
        "duplicate_of": None if first == row else f"set-{first:09d}",
        "filtered_by": None if given.kept else WHERE,
        "digest": (given.digest or "").strip().lower() or None,
        "fault": None,
    }


def collect_captions(planned: list[dict[str, Any]], start: int) -> None:
    """Give the captions of a part's duplicates to the rows of the same part that they are duplicates of."""
    owners = {known["key"]: known for known in planned}
    texts: dict[str, list[str]] = {}
    for known in planned:
        owner = owners.get(known["duplicate_of"])
        if owner is not None:
            held = texts.setdefault(owner["key"], [owner["caption"]])
            held.append(known["caption"])
    for key, found in texts.items():
        distinct = list(dict.fromkeys(text for text in found if text and text.strip()))
        if distinct:
            owners[key]["caption"], owners[key]["captions"] = distinct[0], distinct[1:] or None
    assert all(int(key.rpartition("-")[2]) >= start for key in owners)


def differs(seed: int, folder: Path, patch: pytest.MonkeyPatch) -> bool:
    rows, size, part = draw(seed)
    patch.setattr("ingest.plan.planner.PART_ROWS", part)
    patch.setattr("ingest.sources.parquet._ROWS", 1 + seed % 40)
    path = folder / f"{seed}.parquet"
    columns = {
        "url": pa.array([row.url for row in rows], pa.string()),
        "caption": pa.array([row.caption for row in rows], pa.string()),
        "sha256": pa.array([row.digest for row in rows], pa.string()),
        "score": pa.array([row.score for row in rows], pa.float64()),
    }
    pq.write_table(pa.table(columns), path)
    source = SourceSettings(paths=(str(path),), where=(WHERE,), hash_column="sha256")
    chosen = IngestSettings(source=source, out=str(folder / f"out-{seed}"), name="set", shard_size=size)
    # What is tested is which rows are planned, not whether the list is worth it.
    patch.setattr("ingest.plan.sense.Sense.refuse_nonsense", lambda *_: None)
    make_plan(chosen)
    stage = DatasetPlan.read(Folder(chosen.out)).stages[0]
    got = [read_rows(Folder(chosen.out), stage, shard).to_pylist() for shard in stage.numbers]
    return got != shards_of(rows, size, part)


SOON = 30


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.sync_to_disk", lambda _: None)


def test_random_lists_are_planned_as_the_rules_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [seed for seed in range(SOON) if differs(seed, tmp_path, monkeypatch)] == []


@pytest.mark.long
def test_a_thousand_more_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [seed for seed in range(SOON, SOON + 1000) if differs(seed, tmp_path, monkeypatch)] == []
