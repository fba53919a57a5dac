"""Reading: unit rows of the right view, from any thread, and a refusal of everything that does not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards import Dataset, InProcess, UserError, read_records
from teacher_cache import TeacherCache
from teacher_cache.build import BuildSettings, build_cache
from teacher_cache.reader import map_layer_file

COUNTS = (6, 0, 9)
Forge = Callable[[str | Path, int, Callable[[pa.Table], pa.Table]], None]


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
        teacher=save_teacher(root / "teacher"),
        name="teach",
        views=3,
    )
    build_cache(settings, InProcess())
    return settings.cache


@pytest.fixture
def cache(original: str, tmp_path: Path) -> str:
    """A copy to do harm to."""
    return str(shutil.copytree(original, tmp_path / "cache"))


def raw(cache: str, layer: str, shard: int, column: str) -> np.ndarray:
    with pa.memory_map(f"{cache}/teach/{layer}/{shard:05d}.arrow") as source:
        table = pa.ipc.open_file(source).read_all()
    return np.array(table[column].to_pylist(), np.float64)


def test_rows_come_in_the_order_asked_and_of_unit_norm(original: str, dataset: Dataset) -> None:
    cache = TeacherCache.open(original, dataset)
    assert cache.views == 3
    assert cache.teacher.logit_scale == pytest.approx(20.0, rel=1e-6)
    assert cache.teacher.embed_dim == 40
    shard = dataset.shards[2]
    rows = [8, 0, 3, 3, 5]
    for view in range(3):
        kept = raw(original, "views-000-002", 2, f"view_{view:03d}")[rows]
        assert np.abs(np.linalg.norm(kept, axis=1) - 1).max() > 1e-6, "rounding to float16 changed no norm"
        got = cache.image(shard, rows, view)
        assert got.dtype == np.float32
        assert np.abs(got - kept / np.linalg.norm(kept, axis=1, keepdims=True)).max() < 1e-7
    kept = raw(original, "captions-txt", 2, "caption_000")[rows]
    text = cache.text(shard, rows)
    assert np.abs(text - kept / np.linalg.norm(kept, axis=1, keepdims=True)).max() < 1e-7
    assert np.abs(np.linalg.norm(text.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_mapped_columns_are_views_of_the_file_and_apart(original: str, dataset: Dataset) -> None:
    """So reading one view's rows cannot touch another view's pages."""
    cache = TeacherCache.open(original, dataset)
    (layer,) = (layer for layer in cache.layers if layer.kind == "views")
    place = cache.folder.child(layer.name)
    before = pa.total_allocated_bytes()
    columns = map_layer_file(place, read_records(place)[2], dataset.shards[2])
    assert pa.total_allocated_bytes() - before < 1000
    extents = []
    for view in range(3):
        column = columns[f"view_{view:03d}"]
        assert (column.shape, column.dtype) == ((9, 40), np.float16)
        assert not column.flags.writeable
        assert not column.flags.owndata
        start = column.__array_interface__["data"][0]
        extents.append((start, start + column.nbytes))
    extents.sort()
    assert all(first[1] <= second[0] for first, second in pairwise(extents))


def test_threads_read_what_one_reader_reads(original: str, dataset: Dataset) -> None:
    calm, shared = (TeacherCache.open(original, dataset) for _ in range(2))
    random = np.random.default_rng(3)
    asked = [(int(random.choice([0, 2])), int(random.integers(6)), int(random.integers(3))) for _ in range(400)]

    def read(cache: TeacherCache, ask: tuple[int, int, int]) -> tuple[bytes, bytes, object]:
        shard, row, view = dataset.shards[ask[0]], ask[1], ask[2]
        image, text = cache.image(shard, [row], view), cache.text(shard, [row])
        return image.tobytes(), text.tobytes(), cache.view(shard, row, view)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda ask: read(shared, ask), asked)) == [read(calm, ask) for ask in asked]


# ----------------------------------------------------------------------------------------------------------- refusals


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


def test_a_missing_shard_is_refused(cache: str, dataset: Dataset) -> None:
    (record,) = Path(cache, "teach", "captions-txt", "_records").glob("00002.*")
    record.unlink()
    with pytest.raises(UserError, match=r"captions-txt: 1 of 3 shards .*first: 00002"):
        TeacherCache.open(cache, dataset)


def test_a_file_of_other_keys_is_refused(cache: str, dataset: Dataset, forge: Forge) -> None:
    def swap(table: pa.Table) -> pa.Table:
        turned = table.take(list(range(table.num_rows))[::-1])
        return turned.replace_schema_metadata({**table.schema.metadata, b"keys": b"0123456789abcdef"})

    forge(f"{cache}/teach/views-000-002", 0, swap)
    opened = TeacherCache.open(cache, dataset)
    assert opened.image(dataset.shards[2], [0], 0).shape == (1, 40)
    digest = dataset.shards[0].keys_digest
    with pytest.raises(UserError, match=rf"6 rows of keys 0123456789abcdef, shard 00000 has 6 of {digest}"):
        opened.image(dataset.shards[0], [0], 0)


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
            opened.text(dataset.shards[2], [0])


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
    with pytest.raises(UserError, match=r"views-000-002 was made by teacher [0-9a-f]{16}, .* holds [0-9a-f]{16}"):
        TeacherCache.open(cache, dataset)
    facts.write_text(json.dumps({**held, "schema": 99}))
    with pytest.raises(UserError, match="schema 99, this version reads 1"):
        TeacherCache.open(cache, dataset)
    facts.write_text(json.dumps(held))
    shutil.rmtree(f"{cache}/teach/captions-txt")
    with pytest.raises(UserError, match=r"views \[0, 1, 2\] and 0 caption sets"):
        TeacherCache.open(cache, dataset)
    shutil.rmtree(f"{cache}/teach/views-000-002")
    with pytest.raises(UserError, match=r"views \[\] and 0 caption sets"):
        TeacherCache.open(cache, dataset)
