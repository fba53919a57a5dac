"""The plan: boundaries and keys follow from the input alone; anything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import ImageSettings, IngestSettings, SourceSettings
from ingest.plan import make_plan
from shards import Folder, UserError


def write(path: Path, rows: range | list[int]) -> Path:
    path.write_text("".join(f"caption {row}\thttp://a/{row}\n" for row in rows))
    return path


def settings(tmp_path: Path, *paths: Path, **changes: Any) -> IngestSettings:
    source = SourceSettings(paths=tuple(map(str, paths)), format="cc3m")
    return IngestSettings(
        **{"source": source, "out": str(tmp_path / "out"), "name": "set", "shard_size": 10, **changes}
    )


def planned(folder: str) -> list[list[dict[str, Any]]]:
    """The rows of each planned shard, as they lie on the disk."""
    return [pq.read_table(path).to_pylist() for path in sorted(Path(folder, "_plan").glob("*.parquet"))]


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1]), (9, [9]), (10, [10]), (11, [10, 1]), (20, [10, 10]), (25, [10, 10, 5])]
)
def test_shards_are_full_but_the_last(tmp_path: Path, rows: int, sizes: list[int]) -> None:
    chosen = settings(tmp_path, write(tmp_path / "a.tsv", range(rows)))
    facts = make_plan(chosen)
    shards = planned(chosen.out)
    assert [len(shard) for shard in shards] == sizes
    assert (facts["rows"], facts["shards"], facts["name"]) == (rows, len(sizes), "set")
    assert [row for shard in shards for row in shard] == [
        {"key": f"set-{row:09d}", "url": f"http://a/{row}", "caption": f"caption {row}"} for row in range(rows)
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
    assert make_plan(settings(tmp_path, path, out=outs[0])) == json.loads(before["dataset.json"])
    assert snapshot(outs[0]) == before


def test_what_only_changes_how_long_it_takes_may_change(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", range(25))
    chosen = settings(tmp_path, path)
    facts = make_plan(chosen)
    assert make_plan(replace(chosen, timeout=3, retries=5, threads=2)) == facts
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

    assert "input two.tsv was" in refusal(one)
    assert "input three.tsv was null" in refusal(one, two, write(tmp_path / "three.tsv", range(3)))
    assert "the inputs come in another order" in refusal(two, one)
    size = two.stat().st_size
    write(two, [*range(5, 12), 7])
    assert f"input two.tsv.bytes was {size}, now {two.stat().st_size}" in refusal(one, two)
    write(two, [*range(5, 11), 12])
    text = refusal(one, two)
    assert "input two.tsv" in text
    assert "sha256" in text


def test_an_interrupted_plan_is_made_again(tmp_path: Path, snapshot: Callable[[str], dict[str, bytes]]) -> None:
    path = write(tmp_path / "a.tsv", range(25))
    whole = settings(tmp_path, path, out=str(tmp_path / "whole"))
    make_plan(whole)
    expected = snapshot(whole.out)
    broken = settings(tmp_path, path, out=str(tmp_path / "broken"))
    # As an interruption leaves it: some shards, one of them of other settings, no facts.
    make_plan(replace(broken, shard_size=3))
    for name in ("dataset.json", "_plan/00001.parquet"):
        Path(broken.out, name).unlink()
    facts = make_plan(broken)
    assert facts["shards"] == 3
    again = snapshot(broken.out)
    assert {name: again[name] for name in expected} == expected


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
        ({"shard_size": 0}, "shard size 0"),
        ({"timeout": 0.0}, "timeout 0"),
        ({"timeout": float("nan")}, "timeout nan"),
        ({"timeout": 1e9}, "timeout 1e\\+09"),
        ({"retries": -1}, "retries -1"),
        ({"threads": 0}, "threads 0"),
        ({"image": {"size": 0}}, "image size 0"),
        ({"image": {"quality": 101}}, "quality 101"),
        ({"image": {"resize_mode": "squash"}}, "resize mode 'squash'"),
        ({"image": {"max_bytes": 0}}, "limit of 0 bytes"),
        ({"image": {"max_pixels": 0}}, "0 pixels"),
        ({"image": {"max_pixels": 10**9}}, "1000000000 pixels"),
        ({"keep": ("url",)}, "cannot keep a column named 'url'"),
        ({"keep": ("sha256",)}, "cannot keep a column named 'sha256'"),
        ({"keep": ("x", "x")}, "kept twice"),
        ({"keep": ("x",)}, "no column 'x'"),
    ],
)
def test_unusable_settings_are_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], saying: str
) -> None:
    path = write(tmp_path / "a.tsv", range(5))

    def plan() -> None:
        if "image" in changes:
            chosen = settings(tmp_path, path, image=ImageSettings(**changes["image"]))
        elif "keep" in changes:
            source = SourceSettings(paths=(str(path),), format="cc3m", keep=changes["keep"])
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
