"""Which captions a teacher embeds: from the shards, from a table, several of each; one clear line where one lacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import Dataset, InProcess, UserError
from shards.samples import write_shards
from teacher_cache import TeacherCache, captions
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource

METAS: list[dict[str, Any]] = [
    {"alt": "one", "many": ["a", "b", "c", "d"]},
    {"alt": "two words", "many": ["e"]},
    {"alt": ["three"], "many": ["f", "", "g", 7, None]},
    {"alt": "four", "many": ["h", "i", "j"]},
    {"alt": "five", "many": ["k", "l"]},
]
MANY = [["a", "e", "f", "h", "k"], ["b", "e", "g", "i", "l"], ["c", "e", "f", "j", "k"]]
"""What `json:many*3` reads: a list is cut, or repeated in turn; only texts count."""
KEYS = [f"tiny-{row:09d}" for row in range(5)]
SHARDS = ((0, 3), (3, 5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five samples in two shards, with several captions in their metadata."""
    folder = tmp_path_factory.mktemp("captions") / "shards"
    from PIL import Image  # noqa: PLC0415

    Image.new("RGB", (20, 20), (9, 80, 200)).save(folder.parent / "image.png")
    image = (folder.parent / "image.png").read_bytes()
    samples = [(KEYS[row], image, f"caption {row}", METAS[row]) for row in range(5)]
    return write_shards(folder, [samples[start:stop] for start, stop in SHARDS], name="tiny")


@pytest.fixture(scope="module")
def settings(dataset: Dataset, linear_teacher: Callable[..., str]) -> BuildSettings:
    return BuildSettings(
        shards=str(dataset.folder),
        cache="set by each test",
        teachers=(TeacherSpec(linear_teacher(seed=3), "teach"),),
        views=1,
        batch_size=2,
        dtype="float32",
    )


def sources(*texts: str) -> tuple[CaptionSource, ...]:
    return tuple(CaptionSource.parse(text) for text in texts)


def embedded(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """What the teacher says of texts."""
    counts = np.array([np.bincount(list(text.encode()), minlength=256) for text in texts])
    rows = counts @ np.random.default_rng(4).normal(size=(256, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def every(cache: TeacherCache, name: str) -> list[npt.NDArray[np.float32]]:
    """The embeddings of all five samples, for each caption number of a set."""
    places = np.array([(place, row) for place, (start, stop) in enumerate(SHARDS) for row in range(stop - start)])
    return [cache.text(places, number, name) for number in range(cache.captions[name])]


def write_table(path: Path, captions: dict[str, Any], row_group_size: int = 2, **more: Any) -> Path:
    columns = {"other": list(range(len(captions))), "key": list(captions), "said": list(captions.values()), **more}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("txt", "txt", [[f"caption {row}" for row in range(5)]]),
        ("json:alt", "json-alt", [["one", "two words", "three", "four", "five"]]),
        ("json:many*3", "json-many", MANY),
        ("json:many", "json-many", MANY[:1]),
        ("json:alt*2", "json-alt", [["one", "two words", "three", "four", "five"]] * 2),
    ],
)
def test_captions_from_the_shards(
    *,
    settings: BuildSettings,
    dataset: Dataset,
    tmp_path: Path,
    text: str,
    name: str,
    expected: list[list[str]],
    stored: Callable[..., pa.Table],
) -> None:
    build = replace(settings, cache=str(tmp_path), captions=sources(text))
    assert build_cache(build, InProcess()).captions == len(expected)
    cache = TeacherCache.open(str(tmp_path), dataset)
    assert cache.captions == {name: len(expected)}
    for got, texts in zip(every(cache, name), expected, strict=True):
        assert np.abs(got - embedded(texts)).max() < 1e-6
    table = stored(tmp_path, f"captions-{name}", 0)
    assert not [column for column in table.column_names if column.startswith("text")], "the shards have the texts"
    assert cache.caption(0, 0, 0, name) is None


def test_captions_from_a_table(
    settings: BuildSettings, dataset: Dataset, tmp_path: Path, stored: Callable[..., pa.Table]
) -> None:
    """By key, whatever the order and the row groups; others may stand between."""
    said = {"foreign": ["never"], KEYS[4]: ["k", "l"], KEYS[0]: ["a", "b", "c"], KEYS[3]: ["h"]}
    said |= {"another": ["no"], KEYS[2]: ["f", "g"], KEYS[1]: ["ü🙂"]}
    expected = [["a", "ü🙂", "f", "h", "k"], ["b", "ü🙂", "g", "h", "l"]]
    for groups in (1, 2, 100):
        path = write_table(tmp_path / f"{groups}.parquet", said, groups)
        cache_at = tmp_path / f"cache {groups}"
        build = replace(settings, cache=str(cache_at), captions=sources(f"table:{path}#said*2"))
        build_cache(build, InProcess())
        cache = TeacherCache.open(str(cache_at), dataset)
        assert cache.captions == {"table-said": 2}
        for number, (got, texts) in enumerate(zip(every(cache, "table-said"), expected, strict=True)):
            assert np.abs(got - embedded(texts)).max() < 1e-6
            kept = [
                stored(cache_at, "captions-table-said", shard)[f"text_{number:03d}"].to_pylist() for shard in (0, 1)
            ]
            assert kept == [texts[:3], texts[3:]]
        assert cache.caption(1, 1, 1, "table-said") == "l"
        assert cache.caption(0, 1, 1, "table-said") == "ü🙂"


def test_a_table_of_plain_strings(settings: BuildSettings, dataset: Dataset, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a#b.parquet", {key: f"text of {key}" for key in reversed(KEYS)})
    build = replace(settings, cache=str(tmp_path / "cache"), captions=sources(f"table:{path}#said"))
    build_cache(build, InProcess())
    (got,) = every(TeacherCache.open(build.cache, dataset), "table-said")
    assert np.abs(got - embedded([f"text of {key}" for key in KEYS])).max() < 1e-6


def test_a_table_of_many_row_groups_in_another_order(dataset: Dataset, tmp_path: Path) -> None:
    """70,000 rows in 70 groups, the samples far apart in it; nothing of what was unpacked stays behind."""
    rows = np.random.default_rng(6).permutation(70_000).tolist()
    table = pa.table(
        {
            "said": [[f"text {row}", "second"] for row in rows],
            "key": [f"tiny-{row:09d}" if row % 1000 != 999 else None for row in rows],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1000)
    source = CaptionSource.parse(f"table:{tmp_path}/t.parquet#said*2")
    assert source.texts(dataset.shards[1], [1, 0]) == [["text 4", "text 3"], ["second", "second"]]
    assert source.texts(dataset.shards[0], [0, 2, 1])[0] == ["text 0", "text 2", "text 1"]
    keys = [f"tiny-{row:09d}" for row in range(70_001)]
    expected = [[f"text {row}", "second"] if row % 1000 != 999 and row < 70_000 else None for row in range(70_001)]
    assert source.table.values(keys) == expected


def test_an_empty_table_has_no_captions(dataset: Dataset, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", {})
    pq.write_table(pa.table({"key": pa.array([], pa.string()), "said": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match=rf"{KEYS[3]} has no caption in 'said'"):
        CaptionSource.parse(f"table:{path}#said").texts(dataset.shards[1], [0])


def test_a_key_with_two_rows_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    keys = [None, "foreign", *KEYS, KEYS[2], "another"]
    pq.write_table(pa.table({"key": keys, "said": ["text"] * len(keys)}), path, row_group_size=2)
    with pytest.raises(UserError, match=rf"{path}: the key '{KEYS[2]}' stands there twice\. Give each key one row"):
        CaptionSource.parse(f"table:{path}#said").texts(dataset.shards[0], [0])


def test_no_room_to_unpack_is_the_users_to_mend(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "t.parquet", dict.fromkeys(KEYS, "text"))
    room = tmp_path / "room"
    monkeypatch.setattr("tempfile.tempdir", str(room))
    with pytest.raises(UserError, match=rf"{path}: it cannot be unpacked .* room in {room} \(\$TMPDIR\)"):
        CaptionSource.parse(f"table:{path}#said").texts(dataset.shards[0], [0])
    room.mkdir()
    source = CaptionSource.parse(f"table:{path}#said")
    assert source.texts(dataset.shards[0], [0]) == [["text"]]
    assert list(room.iterdir()) == [], "a worker that is killed leaves nothing behind"


def test_sources_under_names_of_their_own(settings: BuildSettings, dataset: Dataset, tmp_path: Path) -> None:
    """Two tables with the same column, and a field, in one cache."""
    long = write_table(tmp_path / "a=b.parquet", {key: [f"long {key}", "l"] for key in KEYS})
    short = write_table(tmp_path / "short.parquet", {key: f"short {key}" for key in KEYS})
    named = sources(f"long=table:{long}#said*2", f"table:{short}#said", "alt_2-x=json:alt", "plain=txt")
    assert [source.name for source in named] == ["long", "table-said", "alt_2-x", "plain"]
    assert [source.count for source in named] == [2, 1, 1, 1]
    assert named[0].identity() == CaptionSource.parse(f"table:{long}#said*2").identity()
    build_cache(replace(settings, cache=str(tmp_path / "cache"), captions=named), InProcess())
    cache = TeacherCache.open(str(tmp_path / "cache"), dataset)
    assert cache.captions == {"long": 2, "table-said": 1, "alt_2-x": 1, "plain": 1}
    for name, texts in (
        ("long", [f"long {key}" for key in KEYS]),
        ("table-said", [f"short {key}" for key in KEYS]),
        ("alt_2-x", ["one", "two words", "three", "four", "five"]),
        ("plain", [f"caption {row}" for row in range(5)]),
    ):
        assert np.abs(every(cache, name)[0] - embedded(texts)).max() < 1e-6


@pytest.mark.parametrize("lacking", ["no row", None, "", [], ["", " "]])
def test_a_sample_without_a_caption_is_named(settings: BuildSettings, tmp_path: Path, lacking: Any) -> None:
    listed = isinstance(lacking, list)
    said = {key: ["text"] if listed else "text" for key in KEYS if lacking != "no row" or key != KEYS[3]}
    if lacking != "no row":
        said[KEYS[3]] = lacking
    path = write_table(tmp_path / "table.parquet", said)
    build = replace(settings, cache=str(tmp_path / "cache"), captions=sources(f"table:{path}#said"))
    with pytest.raises(UserError) as caught:
        build_cache(build, InProcess())
    assert f"{path} (column said): {KEYS[3]} has no caption in 'said'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sample_whose_metadata_lacks_the_field_is_named(settings: BuildSettings, tmp_path: Path) -> None:
    build = replace(settings, cache=str(tmp_path), captions=sources("json:absent"))
    with pytest.raises(UserError, match=rf"{KEYS[0]} has no caption in 'absent'.*choose another source"):
        build_cache(build, InProcess())


def test_more_captions_touch_no_file(
    settings: BuildSettings, dataset: Dataset, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    table = write_table(tmp_path / "table.parquet", {key: f"text of {key}" for key in KEYS})
    cache = tmp_path / "cache"
    build_cache(replace(settings, cache=str(cache)), InProcess())
    before = snapshot(cache)
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}
    named = ("json:many*3", f"table:{table}#said")
    report = build_cache(replace(settings, cache=str(cache), captions=sources(*named)), InProcess())
    after = snapshot(cache)
    assert {name: after[name] for name in before} == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert (report.summary.skipped, report.summary.finished, report.captions) == (2, 4, 4)
    opened = TeacherCache.open(str(cache), dataset)
    assert opened.captions == {"txt": 1, "table-said": 1, "json-many": 3}
    with pytest.raises(UserError, match=r"no captions 'json-alt'; there are .*txt"):
        opened.text(np.array([(0, 0)]), 0, "json-alt")


def test_the_same_name_for_other_captions_is_refused(settings: BuildSettings, tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.parquet", dict.fromkeys(KEYS, "text"))
    build = replace(settings, cache=str(tmp_path / "cache"), captions=sources(f"table:{table}#said"))
    build_cache(build, InProcess())
    moved = table.rename(tmp_path / "moved.parquet")
    again = build_cache(replace(build, captions=sources(f"table:{moved}#said")), InProcess())
    assert again.summary.finished == 0, "a table counts by its content"
    write_table(table, {key: "text" if key != KEYS[4] else "another" for key in KEYS})
    with pytest.raises(UserError, match=r'captions-table-said.* source\.sha256 was "[0-9a-f]{64}", now "[0-9a-f]{64}"'):
        build_cache(replace(build, captions=sources(f"table:{table}#said")), InProcess())
    with pytest.raises(UserError, match=r"source\.count was 1, now 2"):
        build_cache(replace(build, captions=sources(f"table:{moved}#said*2")), InProcess())


def test_two_sets_of_one_name_are_refused(settings: BuildSettings) -> None:
    for pair in (("json:alt", "json:alt*2"), ("json:Alt text", "json:alt-text"), ("txt", "txt")):
        with pytest.raises(UserError, match=r"two of the caption sets are called '"):
            replace(settings, captions=sources(*pair))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for text in (
        "",
        "text",
        "json:",
        "json",
        "json:a*",
        "json:a*-1",
        "json:a*b",
        "table:x",
        "table:#a",
        "json:a#b",
        "Long=txt",
        "=txt",
        "a b=txt",
        "a=",
    ):
        with pytest.raises(UserError, match=r"no captions can be read from this.*Write txt, json:FIELD"):
            CaptionSource.parse(text)
    for text in ("json:a*0", "json:a*1001"):
        with pytest.raises(UserError, match=r"(0|1001) captions a sample.*1 to 1000"):
            CaptionSource.parse(text)
    absent, damaged = tmp_path / "absent.parquet", tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 no more of it PAR1")
    for path in (absent, damaged, tmp_path):
        with pytest.raises(UserError, match=rf"{path}: not readable as Parquet"):
            CaptionSource.parse(f"table:{path}#said")
    table = write_table(tmp_path / "table.parquet", {"a": "b"})
    with pytest.raises(UserError, match=r"no column 'absent'; it has other, key, said"):
        CaptionSource.parse(f"table:{table}#absent")
    pq.write_table(pa.table({"said": ["a"]}), table)
    with pytest.raises(UserError, match=r"no column 'key'; it has said"):
        CaptionSource.parse(f"table:{table}#said")


def test_a_source_travels_to_a_worker(dataset: Dataset, tmp_path: Path) -> None:
    """Ray's way of sending things; what is open here is opened again there."""
    source = CaptionSource.parse(f"table:{write_table(tmp_path / 't.parquet', dict.fromkeys(KEYS, 'text'))}#said")
    assert source.texts(dataset.shards[1], [1, 0]) == [["text", "text"]]
    there = copy.copy(source)  # by the same state as pickling does
    assert there == source
    assert there.identity() == source.identity()
    assert there.texts(dataset.shards[1], [1]) == [["text"]]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["a", "b"], ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("[]", []),
        ("[sic] a caption", ["[sic] a caption"]),
        ("[1995]", ["[1995]"]),
        (None, []),
    ],
)
def test_a_list_is_several_captions_also_as_the_text_of_its_json(value: Any, texts: list[str]) -> None:
    assert captions._listed(value) == texts
