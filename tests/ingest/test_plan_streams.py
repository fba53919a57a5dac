"""A plan that is made while it is fetched: begun at once, gone on with after any end, no larger than it must be; and a
list that grows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ingest import ImageSettings, IngestSettings, SourceSettings, ingest
from ingest.plan import Planning, make_plan, read_rows
from ingest.plan.planner import Planner
from ingest.retry import retry
from ingest.settings import NetworkSettings
from shards import Dataset, Folder, InProcess, Spec, UserError, verify_dataset

Snapshot = Callable[[str | Path], dict[str, bytes]]


def lines(rows: range, host: str = "127.0.0.1:9") -> str:
    """Each third row has the URL of the row twenty before it. Nothing is fetched from there: the address is refused."""
    urls = [row - 20 if row % 3 == 0 and row >= 20 else row for row in rows]
    return "".join(f"caption {row}\thttp://{host}/{url}\n" for row, url in zip(rows, urls, strict=True))


def settings(out: Path, *paths: Path, **changes: Any) -> IngestSettings:
    source = SourceSettings(paths=tuple(map(str, paths)), format="cc3m")
    chosen = {"source": source, "out": str(out), "name": "set", "shard_size": 4, "stop_on_collapse": False, **changes}
    return IngestSettings(**chosen)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.plan.planner.PART_ROWS", 10)
    monkeypatch.setattr("ingest.plan.planning.AHEAD", 2)


def parts_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "_plan").iterdir())


def columns(out: Path, *names: str) -> list[tuple[Any, ...]]:
    """Of all ledgers, in the order of their shards."""
    tables = [pq.read_table(path, columns=list(names)) for path in sorted(out.glob("0*.parquet"))]
    return [row for table in tables for row in zip(*(table[name].to_pylist() for name in names), strict=True)]


def ingest_it(chosen: IngestSettings) -> Any:
    return ingest(chosen, InProcess())


@pytest.mark.usefixtures("small_parts")
def test_the_first_shard_does_not_wait_for_the_list(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(lines(range(400)))
    chosen = settings(tmp_path / "out", path)
    with Planning(chosen) as planning:
        assert planning.first_rows()["key"].to_pylist()[0] == "set-000000000"
        specs = planning.specs()
        first = next(specs)
        assert isinstance(first, Spec)
        # The thread that plans waits for whoever fetches.
        assert planning.rows < 100
        assert not Path(chosen.out, "dataset.json").exists()
        shards, words = planning.outlook()
        assert 0 < shards < 40
        assert "% of the list" in words
        assert "rows/s" in words
        rest = [spec for spec in specs if spec is not None]
        assert [spec.shard for spec in (first, *rest)] == list(range(planning.outlook()[0]))
        assert (planning.outlook()[1], planning.rows) == ("", 400)
    facts = json.loads(Path(chosen.out, "dataset.json").read_bytes())
    assert (facts["rows"], facts["shards"]) == (400, len(rest) + 1)
    assert {spec.fingerprint for spec in rest} == {facts["fingerprint"]}
    assert not Path(chosen.out, "planning.json").exists()


def test_a_filter_that_leaves_little_still_fills_the_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"http://a/{row},{'x' if row % 20 == 7 else 'no'}" for row in range(1000)]
    path.write_text("\n".join(["url,caption", *rows, *["http://a/no,no"] * 1000]) + "\n")
    source = SourceSettings(paths=(str(path),), where=("caption == x",))
    facts = make_plan(settings(tmp_path / "out", source=source, shard_size=10))
    planned = [read_rows(Folder(tmp_path / "out"), facts, shard) for shard in facts.numbers]
    assert [table["filtered_by"].null_count for table in planned] == [10, 10, 10, 10, 10, 0]
    # The next shard begins with a row that is to be fetched, or where this one has 64 times its size.
    assert [table.num_rows for table in planned] == [207, 200, 200, 200, 640, 553]


@pytest.mark.usefixtures("small_parts")
def test_of_a_long_plan_only_the_newest_parts_stay_and_lost_shards_are_made_again(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    path, out = tmp_path / "a.tsv", tmp_path / "out"
    path.write_text(lines(range(100)))
    report = ingest_it(settings(out, path))
    assert report.rows == 100
    parts = json.loads((out / "dataset.json").read_bytes())["parts"]
    assert len(parts) > 6
    assert parts_of(out) == [part["name"] for part in parts[-2:]]
    assert verify_dataset(str(out)).problems == ()
    assert columns(out, "key") == [(f"set-{row:09d}",) for row in range(100)]
    before = snapshot(out)
    # From its ledger, then from the list.
    next((out / "_records").glob("00000.*")).unlink()
    assert ingest_it(settings(out, path)).summary.finished == 1
    assert snapshot(out) == before
    next((out / "_records").glob("00001.*")).unlink()
    (out / "00001.parquet").unlink()
    assert ingest_it(settings(out, path)).summary.finished == 1
    assert snapshot(out) == before
    # The index is made again from the list, too.
    for file in (out / "_seen").iterdir():
        file.unlink()
    next((out / "_records").glob("00002.*")).unlink()
    (out / "00002.parquet").unlink()
    ingest_it(settings(out, path))
    assert snapshot(out) == before


def test_planning_that_was_killed_anywhere_goes_on(
    tmp_path: Path, kill_often: Callable[[str, int], list[int]], snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.plan.planner.PART_ROWS", 12)
    path = tmp_path / "a.tsv"
    path.write_text(lines(range(140)))
    make_plan(settings(tmp_path / "whole", path))
    expected = snapshot(tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "_plan").iterdir())) > 16
    kills = 6
    kill_often(
        f"""
import ingest.plan.planner
from ingest import IngestSettings, SourceSettings
from ingest.plan import make_plan
ingest.plan.planner.PART_ROWS = 12

def work(number):
    out = {str(tmp_path)!r} + f"/killed-{{number}}"
    tick_at_files(out)
    source = SourceSettings(paths=({str(path)!r},), format="cc3m")
    make_plan(IngestSettings(source=source, out=out, name="set", shard_size=4, stop_on_collapse=False))
""",
        kills,
    )
    planned_now = []
    for number in range(1, kills + 1):
        out = tmp_path / f"killed-{number}"
        planner = Planner(settings(out, path))
        for _ in planner.pieces():
            pass
        planned_now.append(planner.planned_now)
        assert {name: data for name, data in snapshot(out).items() if not name.endswith(".tmp")} == expected
    # Not from the start again.
    assert max(planned_now) > 100
    assert min(planned_now) < 40


@pytest.mark.usefixtures("small_parts")
def test_an_unfinished_plan_refuses_another_list_once_rows_were_fetched(tmp_path: Path) -> None:
    path, out = tmp_path / "a.tsv", tmp_path / "out"
    path.write_text(lines(range(100)))
    ingest_it(settings(out, path))
    whole = json.loads((out / "dataset.json").read_bytes())
    # As a kill leaves it after three parts.
    done = {**whole, "parts": whole["parts"][:3], "round": None, "first": 0, "row": 0}
    done |= {what: sum(part[what] for part in done["parts"]) for what in ("rows", "shards")}
    (out / "planning.json").write_text(json.dumps(done))
    (out / "dataset.json").unlink()
    for url in (Dataset.open, verify_dataset):
        with pytest.raises(
            UserError, match=r"still being ingested: .*\. Run the same `clipstill ingest` command again"
        ):
            url(str(out))
    with pytest.raises(UserError, match="shard_size was 4, now 5"):
        ingest_it(settings(out, path, shard_size=5))
    text = path.read_text()
    path.write_text(text[:-1] + "x\n")
    with pytest.raises(UserError, match=r"input a\.tsv has changed"):
        ingest_it(settings(out, path))


def grown(tmp_path: Path, *pieces: Sequence[range] | range) -> list[Path]:
    paths = []
    for number, rows in enumerate(pieces):
        paths.append(tmp_path / f"list-{number}.tsv")
        paths[-1].write_text(lines(rows))
    return paths


@pytest.mark.usefixtures("small_parts")
def test_a_list_that_grows_by_files_and_by_lines_adds_its_rows(tmp_path: Path, snapshot: Snapshot) -> None:
    one, two, three = grown(tmp_path, range(50), range(50, 70), range(70, 120))
    whole, out = tmp_path / "whole", tmp_path / "out"
    ingest_it(settings(whole, one, two, three))
    ingest_it(settings(out, one))
    before = snapshot(out)
    assert ingest_it(settings(out, one, two)).rows == 70
    with two.open("a") as file:
        file.write(lines(range(70, 90)))
    three.write_text(lines(range(90, 120)))
    report = ingest_it(settings(out, one, two, three))
    assert (report.rows, report.summary.skipped > 0) == (120, True)
    after = snapshot(out)
    assert all(after[name] == data for name, data in before.items() if not name.startswith(("_plan", "_seen", "_rec")))
    # The same rows are duplicates of the same, whenever they came.
    assert columns(out, "key", "url", "caption", "duplicate_of", "error_class") == columns(
        whole, "key", "url", "caption", "duplicate_of", "error_class"
    )
    assert verify_dataset(str(out)).problems == ()
    # All is there; and the shorter list is another one now.
    assert ingest_it(settings(out, one, two, three)).summary.finished == 0
    assert snapshot(out) == after
    with pytest.raises(UserError, match=r"input list-2\.tsv is not among the inputs any more"):
        ingest_it(settings(out, one, two))


def test_a_list_whose_last_line_goes_on_is_another(tmp_path: Path) -> None:
    path, out = tmp_path / "a.tsv", tmp_path / "out"
    path.write_text(lines(range(5))[:-1])
    ingest_it(settings(out, path))
    with path.open("a") as file:
        file.write("0\n" + lines(range(5, 9)))
    with pytest.raises(UserError, match="its last row of then was not ended by a line feed"):
        ingest_it(settings(out, path))


@pytest.mark.parametrize("end", ['http://127.0.0.1:9/2,"begun\n', 'http://127.0.0.1:9/2,"begun\nand so on\n'])
def test_a_list_that_ended_within_quotes_does_not_grow(tmp_path: Path, end: str) -> None:
    """What follows may close them: rows of then would go on."""
    path, out = tmp_path / "a.csv", tmp_path / "out"
    path.write_text("url,caption\nhttp://127.0.0.1:9/1,one\n" + end)
    chosen = settings(out, source=SourceSettings(paths=(str(path),)))
    ingest_it(chosen)
    with path.open("a") as file:
        file.write('to an end"\nhttp://127.0.0.1:9/3,three\n')
    with pytest.raises(UserError, match=r"input a\.csv has grown, and a quote was open at its end"):
        ingest_it(chosen)


def test_a_list_that_ended_with_a_faulty_row_grows(tmp_path: Path) -> None:
    path, out = tmp_path / "a.csv", tmp_path / "out"
    path.write_text("url,caption\nhttp://127.0.0.1:9/1,one\n\n")
    chosen = settings(out, source=SourceSettings(paths=(str(path),)))
    ingest_it(chosen)
    with path.open("a") as file:
        file.write("http://127.0.0.1:9/3,three\n")
    assert ingest_it(chosen).rows == 3
    assert columns(out, "error_class") == [("blocked_address",), ("bad_row",), ("blocked_address",)]


def test_what_failed_before_a_list_grew_is_fetched_again_too(
    site: Any, picture: Callable[..., bytes], tmp_path: Path
) -> None:
    urls = [site.add_flaky(f"{tmp_path.name}/{row}", picture()) for row in range(6)]
    one, two = tmp_path / "one.tsv", tmp_path / "two.tsv"
    one.write_text("".join(f"c\t{url}\n" for url in urls[:4]))
    two.write_text("".join(f"c\t{url}\n" for url in [*urls[4:], urls[0]]))
    network = NetworkSettings(retries=0, allow_addresses=("127.0.0.1",))
    more = {"network": network, "image": ImageSettings(size=16)}
    out = tmp_path / "out"
    assert ingest_it(settings(out, one, **more)).samples == 0
    assert ingest_it(settings(out, one, two, **more)).rows == 7
    (report,) = retry(str(out), network, InProcess())
    assert (report.rows, report.samples) == (6, 6)
    assert len(Dataset.open(str(out))) == 6
    assert verify_dataset(str(out)).problems == ()
    # And a list may grow after a retry.
    with two.open("a") as file:
        file.write(f"c\t{site.add(f'{tmp_path.name}/late', picture())}\nc\t{urls[5]}\n")
    report = ingest_it(settings(out, one, two, **more))
    assert (report.rows, report.samples) == (9, 1)
    assert columns(out, "key", "duplicate_of")[-1] == ("set-000000008", "set-000000005")
    assert len(Dataset.open(str(out))) == 7
    assert retry(str(out), network, InProcess()) == []
    assert verify_dataset(str(out)).problems == ()


def test_many_shards_are_warned_of_before_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.plan.planner._FIVE_DIGITS", 30)
    path = tmp_path / "a.tsv"
    path.write_text(lines(range(100)))
    for size, warned in ((1, True), (4, False)):
        with caplog.at_level(logging.WARNING):
            next(Planner(settings(tmp_path / f"out-{size}", path, shard_size=size)).pieces())
        assert [("--shard-size 1000 makes fewer" in said) for said in caplog.messages] == [True] * warned
        caplog.clear()
