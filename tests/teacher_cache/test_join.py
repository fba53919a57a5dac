"""A cache meets another dataset than its own: refused by default, else joined by key, and what lacks is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from shards import Dataset, Folder, InProcess, ShardRecord, UserError
from shards.samples import write_shards
from teacher_cache import Join, TeacherCache
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource
from teacher_cache.join import join_layer
from teacher_cache.layout import read_layer

Rows = tuple[list[str], npt.NDArray[np.float32], npt.NDArray[np.float32], list[Any]]


def recut(source: Dataset, folder: Path, cuts: list[list[int]], name: str = "tiny") -> Dataset:
    """The same samples by number, keys and all, in other shards."""
    samples = [(shard, row) for shard in source.shards for row in range(shard.count)]
    rows = [(shard.keys[row], shard.image_bytes(row), shard.caption(row), {}) for shard, row in samples]
    return write_shards(folder, [[rows[member] for member in members] for members in cuts], name=name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("join")


@pytest.fixture(scope="module")
def dataset(root: Path, make_dataset: Callable[..., Dataset]) -> Dataset:
    """20 samples: 8, none, and 12."""
    return make_dataset(root / "shards", (8, 0, 12))


@pytest.fixture(scope="module")
def settings(root: Path, dataset: Dataset, linear_teacher: Callable[..., str]) -> BuildSettings:
    settings = BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=(TeacherSpec(linear_teacher(), "teach"),),
        views=2,
        batch_size=8,
    )
    build_cache(settings, InProcess())
    build_cache(replace(settings, views=3), InProcess())  # another layer
    return settings


def every(cache: TeacherCache, dataset: Dataset, which: Any = None) -> Rows:
    """Keys, embeddings of view (row mod 3) and of the caption, and the parameters, of every sample or of `which`."""
    places = [(place, row) for place, shard in enumerate(dataset.shards) for row in range(shard.count)]
    chosen = np.array([at for at in places if which is None or which(dataset.shards[at[0]].keys[at[1]])])
    keys = [dataset.shards[place].keys[row] for place, row in chosen]
    views = np.array([int(key[-9:]) % 3 for key in keys])
    drawn = [cache.view(place, row, int(view)) for (place, row), view in zip(chosen, views, strict=True)]
    return keys, cache.image(chosen, views), cache.text(chosen), drawn


@pytest.fixture(scope="module")
def expected(settings: BuildSettings, dataset: Dataset) -> dict[str, tuple[Any, ...]]:
    """Key → what the cache holds of it, in the order of its own shards."""
    keys, *columns = every(TeacherCache.open(settings.cache, dataset), dataset)
    assert len(set(keys)) == 20
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def agree(rows: Rows, expected: dict[str, tuple[Any, ...]]) -> None:
    keys, images, texts, views = rows
    for at, key in enumerate(keys):
        image, text, view = expected[key]
        assert np.array_equal(images[at], image)
        assert np.array_equal(texts[at], text)
        assert views[at] == view


@pytest.mark.parametrize("policy", ["skip", "none"])
@pytest.mark.parametrize(
    "cuts",
    [
        [list(range(7)), list(range(7, 14)), list(range(14, 20))],  # smaller shards
        [[*range(19, -1, -1)]],  # one, backwards
        [list(range(8)), [], list(range(12, 20)), [11, 8, 10, 9]],  # some shards as they were
        [[3, 15, 0, 9], [19]],  # some samples only
    ],
)
def test_samples_find_their_rows_in_shards_cut_otherwise(
    *,
    settings: BuildSettings,
    dataset: Dataset,
    tmp_path: Path,
    expected: dict[str, tuple[Any, ...]],
    policy: Any,
    cuts: list[list[int]],
) -> None:
    other = recut(dataset, tmp_path / "other", cuts)
    with pytest.raises(UserError, match=r"join by key|were? not in the cache|are not in the cache"):
        TeacherCache.open(settings.cache, other)
    cache = TeacherCache.open(settings.cache, other, join=Join(policy=policy, limit=0))
    assert cache.missing == 0
    assert cache.kept == [len(cut) for cut in cuts]
    got = every(cache, other)
    assert got[0] == [f"tiny-{number:09d}" for cut in cuts for number in cut]
    agree(got, expected)
    assert cache.present(np.array([(0, 0)] * 3)).tolist() == [True] * 3


@pytest.fixture(scope="module")
def part(root: Path, dataset: Dataset, settings: BuildSettings) -> tuple[str, set[str]]:
    """A cache of 17 of the samples, in shards of its own, and their keys."""
    known = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
    source = recut(dataset, root / "part", [known[:5], known[5:]])
    build_cache(replace(settings, shards=str(source.folder), cache=str(root / "part cache"), views=3), InProcess())
    return str(root / "part cache"), {f"tiny-{number:09d}" for number in known}


def test_samples_without_embeddings_are_left_out(
    part: tuple[str, set[str]], dataset: Dataset, expected: dict[str, tuple[Any, ...]]
) -> None:
    cache = TeacherCache.open(part[0], dataset, join=Join(policy="skip", limit=0.15))
    assert cache.missing == 3
    kept = [rows if isinstance(rows, int) else np.flatnonzero(rows).tolist() for rows in cache.kept]
    assert kept == [[0, 1, 2, 4, 5, 6, 7], 0, list(range(10))]
    agree(every(cache, dataset, lambda key: key in part[1]), expected)


def test_more_without_embeddings_than_the_limit_is_refused(part: tuple[str, set[str]], dataset: Dataset) -> None:
    message = r"3 of 20 samples have no embeddings \(15\.00%\), the limit is {}%.*or raise the limit"
    for limit, named in ((0.1499, r"14\.99"), (0.01, r"1\.00"), (0, r"0\.00")):
        with pytest.raises(UserError, match=message.format(named)):
            TeacherCache.open(part[0], dataset, join=Join(policy="skip", limit=limit))
    with pytest.raises(UserError, match=message.format(r"1\.00")):
        TeacherCache.open(part[0], dataset, join=Join(policy="skip"))


def test_samples_without_embeddings_can_take_part(
    part: tuple[str, set[str]], dataset: Dataset, expected: dict[str, tuple[Any, ...]]
) -> None:
    cache = TeacherCache.open(part[0], dataset, join=Join(policy="none"))
    assert cache.missing == 3
    assert [rows if isinstance(rows, int) else rows.sum() for rows in cache.kept] == [8, 0, 12]
    places = np.array([(2, 10), (0, 3), (0, 4), (2, 0), (2, 11)])
    assert cache.present(places).tolist() == [False, False, True, True, False]
    for rows, column in ((cache.image(places, np.array([0, 0, 4 % 3, 8 % 3, 0])), 0), (cache.text(places), 1)):
        assert not rows[[0, 1, 4]].any()
        assert np.array_equal(rows[2], expected["tiny-000000004"][column])
        assert np.array_equal(rows[3], expected["tiny-000000008"][column])
    agree(every(cache, dataset, lambda key: key in part[1]), expected)


def test_a_layer_of_fewer_samples_decides(
    settings: BuildSettings, dataset: Dataset, part: tuple[str, set[str]]
) -> None:
    """A sample takes part if every layer has it."""
    records = Path(part[0], "teach", "captions-txt", "_records")
    (record,) = records.glob("00000.*")
    held = record.read_bytes()
    record.unlink()
    try:
        cache = TeacherCache.open(part[0], dataset, join=Join(policy="none"))
        assert cache.missing == 3 + 5
        assert cache.present(np.array([(0, 0), (0, 6), (2, 0)])).tolist() == [False, True, True]
    finally:
        record.write_bytes(held)
    del settings


def test_a_missing_shard_is_refused_or_joined(
    settings: BuildSettings, dataset: Dataset, tmp_path: Path, expected: dict[str, tuple[Any, ...]]
) -> None:
    """A cache that has not been finished."""
    build = replace(settings, cache=str(tmp_path))
    build_cache(build, InProcess())
    build_cache(replace(build, views=3), InProcess())
    for record in tmp_path.rglob("_records/00000.*"):
        record.unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards are not in the cache \(first: 00000\)"):
        TeacherCache.open(str(tmp_path), dataset)
    with pytest.raises(UserError, match=r"8 of 20 samples have no embeddings \(40\.00%\), the limit is 1\.00%"):
        TeacherCache.open(str(tmp_path), dataset, join=Join(policy="skip"))
    cache = TeacherCache.open(str(tmp_path), dataset, join=Join(policy="skip", limit=0.4))
    assert (cache.missing, [rows if isinstance(rows, int) else rows.sum() for rows in cache.kept]) == (8, [0, 0, 12])
    agree(every(cache, dataset, lambda key: int(key[-9:]) >= 8), expected)


def test_what_is_being_added_costs_a_join_no_sample(settings: BuildSettings, dataset: Dataset, tmp_path: Path) -> None:
    build = replace(settings, cache=str(tmp_path))
    build_cache(build, InProcess())
    build_cache(replace(build, captions=(CaptionSource.parse("json:caption"),)), InProcess())
    for record in tmp_path.rglob("captions-json-caption/_records/00000.*"):
        record.unlink()
    for policy in ("skip", "none"):
        cache = TeacherCache.open(str(tmp_path), dataset, join=Join(policy=policy))
        assert (cache.missing, set(cache.captions)) == (0, {"txt"})
        assert set(cache.incomplete) == {"captions-json-caption"}


@pytest.mark.parametrize("policy", ["skip", "none"])
def test_nothing_in_common_is_refused(
    settings: BuildSettings, make_dataset: Callable[..., Dataset], tmp_path: Path, policy: Any
) -> None:
    foreign = make_dataset(tmp_path / "foreign", (3, 4), name="foreign")
    message = r"none of the 7 samples has embeddings.* in the cache is tiny-000000000, in .*/foreign foreign-000000000"
    with pytest.raises(UserError, match=message):
        TeacherCache.open(settings.cache, foreign, join=Join(policy=policy, limit=1))


def test_the_same_shards_need_no_key(settings: BuildSettings, dataset: Dataset) -> None:
    """Whatever the join, a cache of the very shards maps nothing when it is opened."""
    for policy in ("error", "skip", "none"):
        cache = TeacherCache.open(settings.cache, dataset, join=Join(policy=policy, limit=0))  # type: ignore[arg-type]
        assert cache.missing == 0
        places = np.array([(2, 11), (0, 0)])
        assert cache.present(places).tolist() == [True, True]


def test_only_the_files_that_are_needed_are_read_and_once(
    settings: BuildSettings,
    dataset: Dataset,
    part: tuple[str, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys are what costs: of 100,000 files most are either the very shards' or lack a few of their samples."""
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "kept"))
    asked: list[int] = []

    def join(cache: str, other: Dataset, name: str = "captions-txt") -> list[Any]:
        folder = Folder(cache).child("teach", name)

        def keys(record: ShardRecord) -> pa.StringArray:
            asked.append(record.shard)
            with pa.OSFile(str(folder.path / record.files[0].name)) as file:
                return pa.ipc.open_file(file).read_all()["key"].combine_chunks()

        asked.clear()
        joined = join_layer(folder, read_layer(folder), other, Join(policy="none"), keys)
        found = [joined.rows(place) for place in range(len(other.shards))]
        return [None if rows is None else rows.tolist() for rows in found]

    other = recut(dataset, tmp_path, [[*range(8)], [], [*range(19, 11, -1)], [11, 8]])
    found = join(settings.cache, dataset)
    assert (found, asked) == ([None, None, None], [])
    found = join(settings.cache, other)
    assert sorted(asked) == [0, 2], "1 is empty, here and there"
    assert found[2:] == [[[2, row] for row in range(11, 3, -1)], [[2, 3], [2, 0]]]
    assert found[0] == [[0, row] for row in range(8)]
    found = join(part[0], dataset)  # files 0 and 1 hold samples 0 1 2 4 5 and 6 to 17 of 20
    assert sorted(asked) == [0, 1]
    nowhere = [-1, -1]
    assert found[0] == [[0, 0], [0, 1], [0, 2], nowhere, [0, 3], [0, 4], [1, 0], [1, 1]]
    assert found[2] == [*([1, row] for row in range(2, 12)), nowhere, nowhere]
    assert (join(part[0], dataset), asked) == (found, []), "what was matched once is kept"
    views = join(part[0], dataset, "views-000-002")
    assert (views, asked) == (found, []), "all layers of a cache have the same rows"
    for kept in (tmp_path / "kept").iterdir():
        kept.unlink()
    assert join(part[0], dataset) == found
    assert sorted(asked) == [0, 1]


def test_both_contents_are_named(settings: BuildSettings, dataset: Dataset, tmp_path: Path) -> None:
    other = recut(dataset, tmp_path, [[1, 0, *range(2, 8)], [], [*range(8, 20)]])
    cached, held = dataset.shards[0].content, other.shards[0].content
    with pytest.raises(UserError) as caught:
        TeacherCache.open(settings.cache, other)
    assert f"cached from content {cached} (dataset 'tiny'), {tmp_path} holds {held} (dataset 'tiny')" in str(
        caught.value
    )
    assert "join by key with `skip` or `none`" in str(caught.value)


def test_impossible_joins_are_refused() -> None:
    with pytest.raises(UserError, match="policy is 'some', it must be one of error, skip, none"):
        Join(policy="some")  # type: ignore[arg-type]
    for limit in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=rf"limit is {limit:g}, it must be a number, at least 0 and at most 1"):
            Join(policy="skip", limit=limit)
