"""The plan: boundaries and keys follow from the input alone; anything else is refused by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings
from ingest.ledger import PLAN_COLUMNS
from ingest.plan import make_plan, read_rows, write_parts
from ingest.plan.marking import MOST_CAPTIONS, Rows
from ingest.plan.planner import Planner
from ingest.plan.seen import Hashes
from shards import Folder, UserError
from shards.dataset import DatasetPlan, Stage


def write(path: Path, rows: range | list[int]) -> Path:
    path.write_text("".join(f"caption {row}\thttp://a/{row}\n" for row in rows))
    return path


def settings(tmp_path: Path, *paths: Path, **changes: Any) -> IngestSettings:
    source = SourceSettings(paths=tuple(map(str, paths)), format="cc3m")
    return IngestSettings(
        **{"source": source, "out": str(tmp_path / "out"), "name": "set", "shard_size": 10, **changes}
    )


def planned(folder: str) -> list[list[dict[str, Any]]]:
    """The rows of each planned shard."""
    stage = DatasetPlan.read(Folder(folder)).stages[0]
    return [read_rows(Folder(folder), stage, shard).to_pylist() for shard in stage.numbers]


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1]), (9, [9]), (10, [10]), (11, [10, 1]), (20, [10, 10]), (25, [10, 10, 5])]
)
def test_shards_are_full_but_the_last(tmp_path: Path, rows: int, sizes: list[int]) -> None:
    chosen = settings(tmp_path, write(tmp_path / "a.tsv", range(rows)))
    stage = make_plan(chosen)
    shards = planned(chosen.out)
    assert [len(shard) for shard in shards] == sizes
    assert (stage.rows, stage.shards, stage.name) == (rows, len(sizes), "set")
    assert list(shards[0][0]) == list(PLAN_COLUMNS)
    assert [row for shard in shards for row in shard] == [
        {
            "key": f"set-{row:09d}",
            "url": f"http://a/{row}",
            "caption": f"caption {row}",
            "captions": None,
            "duplicate_of": None,
            "filtered_by": None,
            "digest": None,
            "fault": None,
        }
        for row in range(rows)
    ]


def test_shards_and_keys_run_on_across_files(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{part}.tsv", part) for part in (range(7), range(7, 8), range(8, 33))]
    whole = settings(tmp_path, write(tmp_path / "whole.tsv", range(33)), out=str(tmp_path / "whole"))
    cut = settings(tmp_path, *parts, out=str(tmp_path / "cut"))
    make_plan(whole)
    make_plan(cut)
    assert planned(whole.out) == planned(cut.out)


def test_boundaries_do_not_depend_on_how_the_reader_batches(tmp_path: Path) -> None:
    chosen = settings(tmp_path, write(tmp_path / "a.tsv", range(20_007)), shard_size=7_000)
    make_plan(chosen)
    shards = planned(chosen.out)
    assert [len(shard) for shard in shards] == [7000, 7000, 6007]
    assert shards[1][3001]["caption"] == "caption 10001"


def test_the_plan_is_the_same_bytes_each_time(tmp_path: Path, snapshot: Callable[[str], dict[str, bytes]]) -> None:
    path = write(tmp_path / "a.tsv", range(25))
    outs = [str(tmp_path / name) for name in ("one", "two")]
    for out in outs:
        make_plan(settings(tmp_path, path, out=out))
    assert snapshot(outs[0]) == snapshot(outs[1])
    before = snapshot(outs[0])
    stage, facts = (
        make_plan(settings(tmp_path, path, out=outs[0])),
        json.loads(Path(outs[0], "dataset.json").read_bytes()),
    )
    assert list(facts) == [
        *("schema", "settings", "inputs", "name", "captioned", "fingerprint", "shards", "rows", "parts", "command")
    ]
    assert facts["schema"] == 1
    (known,) = facts["inputs"]
    assert (list(known), known) == (["name", "bytes", "modified", "sha256"], vars(stage.inputs[0]))
    assert all(facts[name] == getattr(stage, name) for name in ("settings", "name", "captioned", "fingerprint", "rows"))
    assert snapshot(outs[0]) == before


def test_what_only_changes_how_long_it_takes_may_change(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", range(25))
    chosen = settings(tmp_path, path)
    facts = make_plan(chosen)
    assert make_plan(replace(chosen, network=NetworkSettings(retries=5), stop_on_collapse=False)) == facts
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "a.tsv")
    assert make_plan(settings(tmp_path, moved)) == facts


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "other"}, 'name was "set", now "other"'),
        ({"shard_size": 11}, "shard_size was 10, now 11"),
        ({"image": ImageSettings(size=224)}, "image.size was 256, now 224"),
        ({"image": ImageSettings(quality=90)}, "image.quality was 95, now 90"),
        ({"image": ImageSettings(resize_mode="border")}, 'image.resize_mode was "keep_ratio", now "border"'),
        ({"image": ImageSettings(max_bytes=10)}, "image.max_bytes was 50000000, now 10"),
        ({"image": ImageSettings(max_pixels=10)}, "image.max_pixels was 100000000, now 10"),
    ],
)
def test_another_setting_is_refused_with_both_values(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    path = write(tmp_path / "a.tsv", range(5))
    make_plan(settings(tmp_path, path))
    with pytest.raises(UserError) as raised:
        make_plan(settings(tmp_path, path, **changes))
    assert f"this folder holds another dataset: {named}" in str(raised.value)
    assert str(tmp_path / "out") in str(raised.value)


def test_another_input_is_refused_by_name(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.tsv", range(5)), write(tmp_path / "two.tsv", range(5, 12))
    make_plan(settings(tmp_path, one, two))

    def refusal(*paths: Path) -> str:
        with pytest.raises(UserError, match="this folder holds another dataset") as raised:
            make_plan(settings(tmp_path, *paths))
        return str(raised.value)

    assert "input two.tsv is not among the inputs any more" in refusal(one)
    assert "the inputs come in another order" not in refusal(write(tmp_path / "0.tsv", range(3)), one, two)
    assert "input 0.tsv is new" in refusal(one, tmp_path / "0.tsv", two)
    assert "the inputs come in another order" in refusal(two, one)
    size = two.stat().st_size
    write(two, [*range(5, 11)])
    assert f"input two.tsv has changed ({size} bytes, now {two.stat().st_size})" in refusal(one, two)
    # Longer, but not by rows at its end.
    write(two, [*range(4, 12), 7])
    assert "input two.tsv has changed (sha256" in refusal(one, two)
    write(one, range(6))
    assert "input one.tsv has changed" in refusal(one, two)
    write(one, range(5))
    write(two, [*range(5, 11), 12])
    text = refusal(one, two)
    assert "input two.tsv has changed" in text
    assert "sha256" in text


def test_an_interrupted_plan_is_made_again(tmp_path: Path, snapshot: Callable[[str], dict[str, bytes]]) -> None:
    path = write(tmp_path / "a.tsv", range(25))
    whole = settings(tmp_path, path, out=str(tmp_path / "whole"))
    make_plan(whole)
    expected = snapshot(whole.out)
    broken = settings(tmp_path, path, out=str(tmp_path / "broken"))
    # As an interruption leaves it: some shards, one of them of other settings, no facts.
    make_plan(replace(broken, shard_size=3))
    Path(broken.out, "dataset.json").unlink()
    Path(broken.out, "_plan", "00001.arrow").write_bytes(b"of a longer plan")
    facts = make_plan(broken)
    assert facts.shards == 3
    assert snapshot(broken.out) == expected


def test_kept_columns_travel_with_their_types(tmp_path: Path) -> None:
    pieces = [
        pa.table({"url": ["http://a"], "caption": ["A"], "w": pa.array([1], pa.int32()), "tag": ["x"]}),
        pa.table({"url": ["http://b"], "caption": ["B"], "w": pa.array([None], pa.null()), "tag": ["y"]}),
        pa.table({"url": ["http://c"], "caption": ["C"], "w": pa.array([2**40], pa.int64()), "tag": [None]}),
    ]
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path, piece in zip(paths, pieces, strict=True):
        pq.write_table(piece, path)
    source = SourceSettings(paths=tuple(map(str, paths)), keep=("w", "tag"))
    chosen = settings(tmp_path, source=source, shard_size=2)
    make_plan(chosen)
    rows = [row for shard in planned(chosen.out) for row in shard]
    assert [(row["w"], row["tag"]) for row in rows] == [(1, "x"), (None, "y"), (2**40, None)]


def test_files_whose_columns_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name, widths in (("a", pa.array([1])), ("b", pa.array([["x"]]))):
        pq.write_table(pa.table({"url": ["u"], "caption": ["c"], "w": widths}), tmp_path / f"{name}.parquet")
    source = SourceSettings(paths=(str(tmp_path / "*.parquet"),), keep=("w",))
    with pytest.raises(UserError, match=r"b\.parquet: its columns do not fit the files before it"):
        make_plan(settings(tmp_path, source=source))


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"name": "a.b"}, "dataset name 'a.b'"),
        ({"name": ""}, "dataset name ''"),
        ({"shard_size": 0}, "--shard-size is 0, it must be a whole number, at least 1"),
        ({"image": {"size": 0}}, "--image-size is 0"),
        ({"image": {"quality": 101}}, "quality is 101"),
        (
            {"image": {"resize_mode": "squash"}},
            "--resize-mode is 'squash', it must be one of keep_ratio, keep_ratio_largest, center_crop, border, no",
        ),
        ({"image": {"max_bytes": 0}}, "--max-bytes is 0"),
        (
            {"image": {"max_pixels": 0}},
            "--max-pixels is 0, it must be a whole number, at least 1 and at most 178956970",
        ),
        ({"image": {"max_pixels": 10**9}}, "--max-pixels is 1000000000"),
        ({"keep": ("url",)}, "cannot keep a column named 'url'"),
        ({"keep": ("sha256",)}, "cannot keep a column named 'sha256'"),
        ({"keep": ("x", "x")}, "kept twice"),
        ({"keep": ("x",)}, "no column 'x'"),
        ({"where": ("url ~ x",)}, "condition 'url ~ x' is not understood"),
    ],
)
def test_unusable_settings_are_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], saying: str
) -> None:
    path = write(tmp_path / "a.tsv", range(5))

    def plan() -> None:
        if "image" in changes:
            chosen = settings(tmp_path, path, image=ImageSettings(**changes["image"]))
        elif "keep" in changes or "where" in changes:
            source = SourceSettings(paths=(str(path),), format="cc3m", **changes)
            chosen = settings(tmp_path, source=source)
        else:
            chosen = settings(tmp_path, path, **changes)
        make_plan(chosen)

    with pytest.raises(UserError, match=saying):
        plan()
    assert not (tmp_path / "out").exists()


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n")
    source = SourceSettings(paths=(str(tmp_path / "a.csv"),))
    with pytest.raises(UserError, match="the input has no rows"):
        make_plan(settings(tmp_path, source=source))
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(UserError, match="the input has no rows"):
        make_plan(settings(tmp_path, tmp_path / "empty.tsv"))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"images": 3}', b'{"schema": 99}'])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    folder = Folder(tmp_path / "out")
    folder.publish("dataset.json", content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        make_plan(settings(tmp_path, write(tmp_path / "a.tsv", range(5))))
    assert folder.names() == ["dataset.json"]
    assert folder.read("dataset.json") == content


def test_hashes_of_another_kind_than_those_taken_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a"], "text": ["A"], "sha256": ["ab"]}), tmp_path / "a.parquet")
    source = SourceSettings(paths=(str(tmp_path / "a.parquet"),), format="datacomp")
    with pytest.raises(UserError, match=r"promises sha256 hashes, .* hashed with md5. Choose --hash sha256"):
        make_plan(settings(tmp_path, source=source, image=ImageSettings(hash="md5")))
    make_plan(settings(tmp_path, source=source))
    assert planned(str(tmp_path / "out"))[0][0]["digest"] == "ab"


Row = tuple[str | None, str | None]
"""Caption and URL."""


def plan_of(
    tmp_path: Path, rows: list[Row], name: str = "out", shard_size: int = 3, **source: Any
) -> list[dict[str, Any]]:
    captions, urls = zip(*rows, strict=True)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string())}), path)
    chosen = SourceSettings(paths=(str(path),), **source)
    make_plan(settings(tmp_path, source=chosen, out=str(tmp_path / name), shard_size=shard_size))
    return [row for shard in planned(str(tmp_path / name)) for row in shard]


def told(rows: list[dict[str, Any]]) -> list[tuple[str | None, list[str] | None, int | None]]:
    """Caption, further captions, and the number of the row that this one is a duplicate of."""
    return [
        (row["caption"], row["captions"], row["duplicate_of"] and int(row["duplicate_of"].removeprefix("set-")))
        for row in rows
    ]


def test_a_repeated_url_is_a_duplicate_of_its_first_row_which_keeps_the_captions(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("a", "http://1"),
        ("b", "http://2"),
        ("c", "http://1 "),
        ("d", "http://3"),
        ("a", "http://1"),
        ("e", "  http://1"),
        ("c", "http://1"),
        ("", "http://2"),
        (None, "http://2"),
        ("f", "HTTP://1"),
        ("g", "http://1#top"),
    ]
    assert told(plan_of(tmp_path, rows)) == [
        ("a", ["c", "e", "f", "g"], None),
        ("b", None, None),
        ("c", None, 0),
        ("d", None, None),
        ("a", None, 0),
        ("e", None, 0),
        ("c", None, 0),
        ("", None, 1),
        (None, None, 1),
        ("f", None, 0),
        ("g", None, 0),
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://a.b/C?d=E", "HTTP://A.b/C?d=E", True),
        ("//A/b", "//a/b", True),
        ("https://a/b#", "https://a/b#c?d#e", True),
        ("http://A", "http://a#b", True),
        ("http://a/B", "http://a/b", False),
        ("http://a/?b", "http://a/?B", False),
        ("http://a/b", "https://a/b", False),
        ("http://Me@a/b", "http://me@a/b", False),
        ("pictures/A.jpg", "pictures/a.jpg", False),
        ("a.jpg#1", "a.jpg#2", False),
    ],
)
def test_urls_are_one_where_a_server_is_asked_for_the_same(one: str, other: str, same: bool) -> None:
    nothing = pa.nulls(2, pa.string())
    table = pa.table({"url": [one, other], "caption": ["a", "b"], "filtered_by": nothing, "digest": nothing})
    assert (Rows.of(table).hashes.firsts().tolist() == [0, 0]) == same
    # What stands behind # in a path names one of a file's images.
    assert Rows.of(table, files=True).hashes.firsts().tolist() == [0, 1]
    # Beside what promises other bytes no URL is the same.
    promised = table.set_column(3, "digest", pa.array(["0", "1"]))
    assert Rows.of(promised).hashes.firsts().tolist() == [0, 1]


def test_a_row_without_a_caption_takes_the_first_of_its_duplicates(tmp_path: Path) -> None:
    rows: list[Row] = [(None, "u"), (" ", "v"), ("", "u"), ("x", "u"), ("y", "u"), ("x", "u"), ("\n", "v"), ("z", "w")]
    assert told(plan_of(tmp_path, rows))[:2] == [("x", ["y"], None), (" ", None, None)]


def test_rows_without_a_url_are_no_duplicates(tmp_path: Path) -> None:
    rows: list[Row] = [("a", None), ("b", ""), ("c", None), ("d", " "), ("e", "")]
    assert told(plan_of(tmp_path, rows)) == [(caption, None, None) for caption, _ in rows]


def test_a_filtered_row_is_neither_a_first_row_nor_a_duplicate(tmp_path: Path) -> None:
    rows: list[Row] = [("x", "u"), ("b", "u"), ("x", "u"), ("c", "u")]
    got = plan_of(tmp_path, rows, where=("caption != x",))
    assert told(got) == [("x", None, None), ("b", ["c"], None), ("x", None, None), ("c", None, 1)]
    assert [row["filtered_by"] for row in got] == ["caption != x", None, "caption != x", None]


def test_a_placeholders_captions_are_bounded(tmp_path: Path) -> None:
    rows: list[Row] = [(f"caption {row}", "http://u") for row in range(MOST_CAPTIONS + 50)]
    got = plan_of(tmp_path, rows)
    assert got[0]["captions"] == [f"caption {row}" for row in range(1, MOST_CAPTIONS + 1)]
    assert {row["duplicate_of"] for row in got[1:]} == {"set-000000000"}
    first_empty: list[Row] = [("", "http://u"), *rows]
    got = plan_of(tmp_path, first_empty, "other")
    assert got[0]["caption"] == "caption 0"
    assert got[0]["captions"] == [f"caption {row}" for row in range(1, MOST_CAPTIONS + 1)]


def test_parts_are_of_whole_shards_and_stand_in_the_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.plan.planner.PART_ROWS", 25)
    chosen = settings(tmp_path, write(tmp_path / "a.tsv", range(47)))
    stage = make_plan(chosen)
    assert [(part.name, part.shards, part.rows) for part in stage.parts] == [
        ("00000.arrow", 2, 20),
        ("00001.arrow", 2, 20),
        ("00002.arrow", 1, 7),
    ]
    for part in stage.parts:
        content = Path(chosen.out, "_plan", part.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (part.bytes, part.sha256)
    assert [row["url"] for shard in planned(chosen.out) for row in shard] == [f"http://a/{row}" for row in range(47)]
    large = replace(chosen, out=str(tmp_path / "large"), shard_size=40)
    assert [part.rows for part in make_plan(large).parts] == [40, 7]


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_parts_and_shards_of_wide_rows_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """However they are read. Rows have 108 bytes, from 30 on 208; those from 41 on are not fetched and have 218."""
    monkeypatch.setattr("ingest.plan.planner.PART_BYTES", 2500)
    monkeypatch.setattr("ingest.plan.marking.SHARD_BYTES", 4200)
    monkeypatch.setattr("ingest.sources.parquet._ROWS", block)
    urls = [f"http://a/{chr(ord('A') + row)}" for row in range(60)]
    captions = ["c" * (90 if row < 30 else 190) for row in range(60)]
    scores = [float(row <= 40) for row in range(60)]
    pq.write_table(pa.table({"url": urls, "caption": captions, "score": scores}), tmp_path / "a.parquet")
    source = SourceSettings(paths=(str(tmp_path / "a.parquet"),), keep=("score",), where=("score == 1",))
    chosen = settings(tmp_path, source=source)
    # Interrupted, and gone on with.
    pieces = Planner(chosen).pieces()
    next(pieces)
    next(pieces)
    pieces.close()
    facts = make_plan(chosen)
    # A part that no shard would be in is made longer: the last shard but one has 208 + 18 * 218 bytes.
    assert [(part.shards, part.rows) for part in facts.parts] == [(2, 20), (1, 10), (1, 10), (2, 20)]
    assert [len(shard) for shard in planned(chosen.out)] == [10, 10, 10, 10, 19, 1]
    assert [row["url"] for shard in planned(chosen.out) for row in shard] == urls
    (tmp_path / "out" / "_plan" / "00003.arrow").unlink()
    assert make_plan(chosen) == facts
    assert [len(shard) for shard in planned(chosen.out)] == [10, 10, 10, 10, 19, 1]


def test_further_rows_are_planned_and_read_by_the_shards_they_begin_with(tmp_path: Path) -> None:
    tables = [pa.table({"key": [f"{shard}-{row}" for row in range(3)]}) for shard in range(4)]
    folder = Folder(tmp_path / "out")
    parts = write_parts(folder, "round-001", tables)
    assert [(part.name, part.shards, part.rows) for part in parts] == [("round-001-00000.arrow", 4, 12)]
    assert read_rows(folder, Stage(first=7, parts=parts), 9) == tables[2]
    assert write_parts(folder, "round-002", []) == ()


@pytest.mark.parametrize(
    ("damage", "saying"), [("absent", "is missing"), ("short", r"has \d+ bytes"), ("other", "damaged")]
)
def test_a_part_that_is_not_as_it_was_written_is_refused(tmp_path: Path, damage: str, saying: str) -> None:
    chosen = settings(tmp_path, write(tmp_path / "a.tsv", range(25)))
    facts = make_plan(chosen)
    path = Path(chosen.out, "_plan", "00000.arrow")
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "short" else bytes(len(content)))
    with pytest.raises(UserError, match=rf"00000\.arrow: this part of the plan .*{saying}"):
        read_rows(Folder(chosen.out), facts, 1)


def test_a_plan_of_which_nothing_was_fetched_makes_room_for_that_of_the_mended_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable[[str], dict[str, bytes]]
) -> None:
    monkeypatch.setattr("ingest.plan.planner.PART_ROWS", 25)
    path = tmp_path / "a.tsv"
    whole = settings(tmp_path, path, out=str(tmp_path / "whole"))
    path.write_bytes(b"".join(b"caption\thttp://a/%d\n" % row for row in range(300_000)) + b"\xff\thttp://b\n")
    chosen = settings(tmp_path, path)
    planner = Planner(chosen)
    pieces = planner.pieces()
    next(pieces)
    next(pieces)
    pieces.close()
    assert {"planning.json", "_plan/00001.arrow"} <= snapshot(chosen.out).keys()
    with pytest.raises(UserError, match="still being ingested: 40 rows of its list are planned so far"):
        DatasetPlan.read(Folder(chosen.out))
    write(path, range(50))
    make_plan(whole)
    make_plan(chosen)
    assert snapshot(chosen.out) == snapshot(whole.out)


def test_a_plan_on_an_object_store_is_that_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    path = write(tmp_path / "a.tsv", [*range(30), *range(15)])
    there = settings(tmp_path, path, out="memory://bucket/set")
    facts = make_plan(there)
    assert facts == make_plan(settings(tmp_path, path))
    rows = [read_rows(Folder(there.out), facts, shard).to_pylist() for shard in facts.numbers]
    assert rows == planned(str(tmp_path / "out"))
    assert rows[-1][-1]["duplicate_of"] == "set-000000014"
    assert make_plan(there) == facts


def test_urls_of_which_only_half_the_hash_is_the_same_are_two() -> None:
    keys = np.array([7, 7, 7, 8, 7, 7], np.uint64)
    tags = np.array([1, 2, 1, 1, 2, 1], np.uint64) << np.uint64(48)
    assert Hashes(keys, tags).firsts().tolist() == [0, 1, 0, 3, 1, 0]


MEASURE = """
import sys
from ingest import IngestSettings, SourceSettings
from ingest.plan import make_plan
source = SourceSettings(paths=(sys.argv[1],))
make_plan(IngestSettings(source=source, out=sys.argv[2], name="set"))
# Not ru_maxrss, which begins with that of the parent.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
"""


SCHEMA = pa.schema({"url": pa.string(), "caption": pa.string()})


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str) -> None:
    block = 100_000
    captions = [f"a caption of some length for row {row}" + "é" * 30 for row in range(block)]

    def peak(blocks: int) -> int:
        """Peak memory in bytes of planning so many times 100,000 rows, one in ten a duplicate."""
        path = tmp_path / f"{blocks}.{kind}"
        with path.open("w") if kind == "tsv" else pq.ParquetWriter(path, SCHEMA) as file:
            if kind == "tsv":
                file.write("url\tcaption\n")
            for at in range(blocks):
                urls = [f"http://host.test/{row - row % 10 // 9 + at * block}" for row in range(block)]
                if kind == "tsv":
                    file.writelines(f"{url}\t{caption}\n" for url, caption in zip(urls, captions, strict=True))
                else:
                    file.write_table(pa.table([urls, captions], SCHEMA))
        command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / f"out-{blocks}")]
        return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # Both have whole parts to hold; twice the rows are 80 MB of text more.
    assert peak(12) - peak(6) < 40_000_000


def test_a_list_whose_columns_are_swapped_is_refused(tmp_path: Path) -> None:
    """As many rows as make sure of it, and one URL in the captions' place by chance."""
    path = tmp_path / "swapped.tsv"
    path.write_text("".join(f"http://a/{row}\tcaption {row}\n" for row in range(199)) + "x\thttp://b\n")
    with pytest.raises(UserError, match="1 of 200 rows have a URL: the captions are URLs, so the columns are swapped"):
        make_plan(settings(tmp_path, path))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_condition_that_no_row_meets_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a"], "caption": ["a"], "NSFW": ["UNLIKELY"]}), tmp_path / "a.parquet")
    source = SourceSettings(paths=(str(tmp_path / "a.parquet"),), where=("NSFW == unlikely",))
    with pytest.raises(UserError, match="no row of 1 meets NSFW == unlikely"):
        make_plan(settings(tmp_path, source=source))


def test_rows_that_promise_other_bytes_are_no_duplicates(tmp_path: Path) -> None:
    hashes = ["0" * 64, "f" * 64, "F" * 64, None, None]
    table = pa.table({"url": ["http://a"] * 5, "caption": list("abcde"), "sha256": hashes})
    pq.write_table(table, tmp_path / "a.parquet")
    source = SourceSettings(paths=(str(tmp_path / "a.parquet"),), hash_column="sha256")
    chosen = settings(tmp_path, source=source)
    rows = read_rows(Folder(chosen.out), make_plan(chosen), 0).to_pylist()
    assert [row["duplicate_of"] for row in rows] == [None, None, "set-000000001", None, "set-000000003"]
    assert [row["captions"] for row in rows] == [None, ["c"], None, ["e"], None]
