"""Reading: unit rows of the right view, from any thread, and a refusal of everything that does not belong together."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from shards import Dataset, Folder, InProcess, UserError, read_records
from teacher_cache import TeacherCache, layer_files
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.layer_files import LayerFile
from teacher_cache.layout import read_layer
from teacher_cache.settings import Join

COUNTS = (6, 0, 9)
Forge = Callable[..., None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def dataset(root: Path, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(root / "shards", COUNTS)


@pytest.fixture(scope="module")
def original(root: Path, dataset: Dataset, save_teacher: Callable[..., str]) -> str:
    settings = BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=(TeacherSpec(save_teacher(root / "teacher"), "teach"),),
        views=2,
        batch_size=8,
    )
    build_cache(settings, InProcess())
    build_cache(replace(settings, views=3), InProcess())
    return settings.cache


@pytest.fixture
def cache(original: str, tmp_path: Path) -> str:
    """A copy to do harm to."""
    return str(shutil.copytree(original, tmp_path / "cache"))


def at(*rows: tuple[int, int]) -> npt.NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, 2)


def kept(table: pa.Table, column: str) -> npt.NDArray[np.float64]:
    return np.array(table[column].to_pylist(), np.float64)


LAYER_OF = ("views-000-001", "views-000-001", "views-002-002")


def test_rows_come_in_the_order_asked_and_of_unit_norm(
    original: str, dataset: Dataset, stored: Callable[..., pa.Table]
) -> None:
    """Of views in two layers, in one call."""
    cache = TeacherCache.open(original, dataset)
    assert cache.views == 3
    assert cache.captions == {"txt": 1}
    assert cache.teacher.logit_scale == pytest.approx(20.0, rel=1e-6)
    assert cache.teacher.embed_dim == 40
    places = at((2, 8), (0, 0), (2, 3), (2, 3), (0, 5), (2, 0), (2, 3), (0, 5))
    views = np.array([2, 0, 1, 2, 0, 1, 0, 2])
    expected = [
        kept(stored(original, LAYER_OF[view], place), f"view_{view:03d}")[row]
        for (place, row), view in zip(places.tolist(), views.tolist(), strict=True)
    ]
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(norms - 1).max() > 1e-6, "rounding to float16 changed no norm"
    got = cache.image(places, views)
    assert (got.dtype, got.shape) == (np.float32, (8, 40))
    assert np.abs(got - expected / norms).max() < 1e-7
    as_stored = cache.image_stored(places, views)
    assert as_stored.dtype == np.float16
    assert np.array_equal(as_stored, expected)
    said = np.array(
        [kept(stored(original, "captions-txt", place), "caption_000")[row] for place, row in places.tolist()]
    )
    text = cache.text(places)
    assert np.abs(text - said / np.linalg.norm(said, axis=1, keepdims=True)).max() < 1e-7
    assert np.abs(np.linalg.norm(text.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert np.array_equal(cache.text_stored(places), said)
    nothing = cache.image(at(), np.empty(0, np.int64))
    assert nothing.shape == cache.text(at()).shape == (0, 40)


def test_views_come_from_the_layer_that_has_them(
    original: str, dataset: Dataset, stored: Callable[..., pa.Table]
) -> None:
    cache = TeacherCache.open(original, dataset)
    for view in range(3):
        table = stored(original, LAYER_OF[view], 2)
        for row in range(9):
            packed = table[f"params_{view:03d}"][row].as_py()
            drawn = cache.view(2, row, view)
            assert np.array(drawn[:4], "<f4").tobytes() + bytes([drawn.flip]) == packed


def test_mapped_columns_are_views_of_the_file_and_apart(original: str, dataset: Dataset) -> None:
    """So reading one view's rows cannot touch another view's pages."""
    place = Folder(original).child("teach").child("views-000-001")
    layer = read_layer(place)
    assert layer is not None
    before = pa.total_allocated_bytes()
    file = LayerFile(place, layer, read_records(place)[2], 40)
    assert pa.total_allocated_bytes() - before < 1000
    assert (file.values.shape, file.values.dtype) == ((2, 9, 40), np.float16)
    assert not file.values.flags.writeable
    assert not file.values.flags.owndata
    extents = []
    for column in file.values:
        assert column.flags.c_contiguous
        start = column.__array_interface__["data"][0]
        extents.append((start, start + column.nbytes))
    extents.sort()
    assert all(first[1] <= second[0] for first, second in pairwise(extents))
    # What is mapped outlives the object that mapped it.
    values, expected = file.values, file.values.copy()
    del file, column
    gc.collect()
    assert np.array_equal(values, expected)
    assert dataset.shards[2].count == 9


def test_threads_read_what_one_reader_reads(original: str, dataset: Dataset) -> None:
    calm, shared = (TeacherCache.open(original, dataset) for _ in range(2))
    random = np.random.default_rng(3)
    asked = [
        (at(*((int(random.choice([0, 2])), int(random.integers(6))) for _ in range(3))), random.integers(0, 3, 3))
        for _ in range(300)
    ]

    def read(cache: TeacherCache, ask: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]) -> tuple[object, ...]:
        places, views = ask
        place, row = places[0].tolist()
        image, text = cache.image(places, views), cache.text(places)
        return image.tobytes(), text.tobytes(), cache.view(place, row, int(views[0]))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda ask: read(shared, ask), asked)) == [read(calm, ask) for ask in asked]


def test_only_so_many_files_are_held(
    tmp_path: Path,
    make_dataset: Callable[..., Dataset],
    linear_teacher: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer_files, "_OPEN_FILES", 3)
    many = make_dataset(tmp_path / "shards", [2] * 8)
    teachers = (TeacherSpec(linear_teacher(), "teach"),)
    settings = BuildSettings(shards=str(many.folder), cache=str(tmp_path / "cache"), teachers=teachers, views=1)
    build_cache(replace(settings, batch_size=8), InProcess())
    cache = TeacherCache.open(settings.cache, many)
    every = at(*((place, row) for place in range(8) for row in range(2)))
    first = cache.image(every, np.zeros(16, np.int64))
    for _ in range(2):
        assert np.array_equal(cache.image(every[::-1], np.zeros(16, np.int64)), first[::-1])
        cache.text(every)
        gc.collect()
        mapped = Path("/proc/self/maps").read_text().count(f"{settings.cache}/teach/")
        assert mapped <= 2 * 3


def test_a_cache_of_other_shards_is_refused(
    original: str, dataset: Dataset, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    other = make_dataset(tmp_path / "other", COUNTS, seed=5, name="other")
    cached, held = dataset.shards[0].content, other.shards[0].content
    message = rf"shard 00000 was cached from content {cached} \(dataset 'tiny'\), .*holds {held} \(dataset 'other'\)"
    with pytest.raises(UserError, match=message):
        TeacherCache.open(original, other)
    longer = make_dataset(tmp_path / "longer", (*COUNTS, 2))
    with pytest.raises(UserError, match=r"1 of 4 shards are not in the cache \(first: 00003\)"):
        TeacherCache.open(original, longer)


@pytest.mark.parametrize("there", [("views-000-001/_records/00000",), ()], ids=["some views", "nothing"])
def test_an_unfinished_cache_is_called_so(cache: str, dataset: Dataset, there: tuple[str, ...]) -> None:
    """And not one of other samples, however it is joined: its keys do match."""
    for record in Path(cache, "teach").rglob("_records/*"):
        if not any(part in str(record) for part in there):
            record.unlink()
    with pytest.raises(UserError, match=r"not finished.*views-000-001 of [01] of 3 shards.*cache build` again"):
        TeacherCache.open(cache, dataset, None, Join(policy="none"))


def test_a_missing_shard_is_refused(cache: str, dataset: Dataset) -> None:
    (record,) = Path(cache, "teach", "captions-txt", "_records").glob("00002.*")
    record.unlink()
    with pytest.raises(UserError, match=r"captions-txt: 1 of 3 shards .*first: 00002"):
        TeacherCache.open(cache, dataset)


def test_a_file_of_other_keys_is_refused(cache: str, dataset: Dataset, forge: Forge) -> None:
    def swap(table: pa.Table) -> pa.Table:
        turned = table.take(list(range(table.num_rows))[::-1])
        return turned.replace_schema_metadata({**table.schema.metadata, b"keys": b"0123456789abcdef"})

    forge(f"{cache}/teach/views-000-001", 0, swap)
    opened = TeacherCache.open(cache, dataset)
    assert opened.image(at((2, 0), (0, 0)), np.array([0, 2])).shape == (2, 40)
    digest = dataset.shards[0].keys_digest
    with pytest.raises(UserError, match=rf"6 rows of keys 0123456789abcdef, shard 00000 has 6 of {digest}"):
        opened.image(at((0, 0)), np.array([0]))


def test_a_cut_or_absent_file_is_refused(cache: str, dataset: Dataset) -> None:
    path = Path(cache, "teach", "captions-txt", "00002.arrow")
    size = path.stat().st_size
    for keep, seen in ((size - 1, f"has {size - 1} bytes"), (0, "has 0 bytes"), (None, "is missing")):
        if keep is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:keep])
        opened = TeacherCache.open(cache, dataset)
        with pytest.raises(UserError, match=rf"00002\.arrow {seen}, its record says {size}"):
            opened.text(at((2, 0)))


def test_which_teacher_must_be_clear(cache: str, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no teacher cache here"):
        TeacherCache.open(str(tmp_path / "nothing"), dataset)
    with pytest.raises(UserError, match="no teacher 'other'; there are teach"):
        TeacherCache.open(cache, dataset, "other")
    shutil.copytree(f"{cache}/teach", f"{cache}/second")
    Path(cache, "notes.txt").write_text("not a teacher")
    with pytest.raises(UserError, match="several teachers: second, teach"):
        TeacherCache.open(cache, dataset)
    assert TeacherCache.open(cache, dataset, "second").views == 3


def test_layers_must_be_complete_and_of_the_teacher(cache: str, dataset: Dataset) -> None:
    facts = Path(cache, "teach", "teacher.json")
    held = json.loads(facts.read_text())
    changed = {**held, "identity": {**held["identity"], "weights": "0" * 16}}
    facts.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"views-000-001 was made by teacher [0-9a-f]{16}, .* is [0-9a-f]{16}"):
        TeacherCache.open(cache, dataset)
    facts.write_text(json.dumps({**held, "schema": 99}))
    with pytest.raises(UserError, match="schema 99, this version reads 2"):
        TeacherCache.open(cache, dataset)
    facts.write_text("{half of")
    with pytest.raises(UserError, match=r"teacher\.json is damaged"):
        TeacherCache.open(cache, dataset)
    facts.write_text(json.dumps(held))
    captions = shutil.move(f"{cache}/teach/captions-txt", f"{cache}/elsewhere")
    assert TeacherCache.open(cache, dataset).captions == {}
    shutil.rmtree(f"{cache}/teach/views-000-001")
    with pytest.raises(UserError, match=r"holds views \[2\] and 1 layers in all"):
        TeacherCache.open(cache, dataset)
    shutil.rmtree(f"{cache}/teach/views-002-002")
    with pytest.raises(UserError, match=r"holds views \[\] and 0 layers in all"):
        TeacherCache.open(cache, dataset)
    shutil.move(captions, f"{cache}/teach/captions-txt")
    assert TeacherCache.open(cache, dataset).views == 0


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads(path.read_text())
    change(facts["settings"])
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda settings: settings["policy"].update(version=1),
            r"views-002-002 were made by version 1, this is version",
        ),
        (
            lambda settings: settings["policy"].update(flip=0.25),
            r"views-002-002 has policy .*0\.25.*, views-000-001 has ",
        ),
        (lambda settings: settings.update(dtype="int8"), r"views-002-002 has dtype int8, views-000-001 has float16"),
    ],
)
def test_layers_must_agree(cache: str, dataset: Dataset, change: Callable[..., Any], message: str) -> None:
    rewrite(Path(cache, "teach", "views-002-002", "layer.json"), change)
    with pytest.raises(UserError, match=message):
        TeacherCache.open(cache, dataset)


def test_a_file_of_another_layer_is_refused(cache: str, dataset: Dataset, forge: Forge) -> None:
    def other(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({**table.schema.metadata, b"layer": b"0123456789abcdef"})

    forge(f"{cache}/teach/captions-txt", 2, other)
    opened = TeacherCache.open(cache, dataset)
    opened.text(at((0, 0)))
    with pytest.raises(
        UserError, match=r"00002\.arrow was made for layer 0123456789abcdef, captions-txt is [0-9a-f]{16}"
    ):
        opened.text(at((2, 0)))


def test_records_made_for_another_layer_are_refused(cache: str, dataset: Dataset) -> None:
    rewrite(Path(cache, "teach", "captions-txt", "layer.json"), lambda settings: settings.update(precision="bf16"))
    with pytest.raises(UserError, match=r"00000\.arrow was made as [0-9a-f]{16}, captions-txt is to hold [0-9a-f]{16}"):
        TeacherCache.open(cache, dataset)


def turned(table: pa.Table) -> pa.Table:
    return table.select(["view_001", "view_000", *table.column_names[2:]])


def nulled(table: pa.Table) -> pa.Table:
    column = pa.array([None, *table["view_000"].to_pylist()[1:]], table["view_000"].type)
    return table.set_column(0, "view_000", column)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (turned, {}, "not evenly spaced"),
        (nulled, {}, "nulls in view_000"),
        (lambda table: table.drop_columns(["params_001"]), {}, "params_001 that is missing"),
        (lambda table: table, {"compression": "zstd"}, "columns that are compressed"),
    ],
    ids=["turned", "nulls", "lacking", "compressed"],
)
def test_columns_that_are_not_as_they_were_written_are_refused(
    *, change: Callable[..., Any], options: dict[str, Any], message: str, cache: str, dataset: Dataset, forge: Forge
) -> None:
    """Rows are read by their addresses, which hold for columns one after the other in the mapped file alone."""
    forge(f"{cache}/teach/views-000-001", 0, change, **options)
    with pytest.raises(UserError, match=rf"00000\.arrow has .*{message}"):
        TeacherCache.open(cache, dataset).image_stored(at((0, 0)), np.zeros(1, np.int64))
