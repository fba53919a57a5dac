"""The batch size: found, kept, halved when memory runs out; it decides speed, and nothing that is stored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shards import Dataset, IncompleteError, InProcess, UserError
from teacher_cache import TeacherCache
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache

LIMITED = """
SEEN = []

class Mine:
    image_size = 8
    identity = {{"most": {most}}}

    def embed_images(self, pixels):
        return self.embed(pixels.reshape(len(pixels), -1)[:, :5].double() + 1)

    def embed_texts(self, texts):
        return self.embed(torch.tensor([[len(text), 1, 2, 3, len(text) ** 2] for text in texts], dtype=torch.float64))

    def embed(self, rows):
        SEEN.append(len(rows))
        if len(rows) > {most}:
            raise {error}
        return rows
"""
FULL = 'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")'


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("batches") / "shards", (13, 0, 9))


@pytest.fixture
def make(dataset: Dataset, tmp_path: Path, python_teacher: Callable[[str], str]) -> Callable[..., BuildSettings]:
    """`make(name, most, error=FULL, **settings)`: a build by a teacher with room for `most` rows."""

    def settings(name: str, most: int, error: str = FULL, **options: Any) -> BuildSettings:
        spec = python_teacher(LIMITED.format(most=most, error=error))
        chosen = {"views": 2, "batch_size": 8, **options}
        teachers = (TeacherSpec(spec, "teach"),)
        return BuildSettings(shards=str(dataset.folder), cache=str(tmp_path / name), teachers=teachers, **chosen)

    return settings


def seen(settings: BuildSettings) -> list[int]:
    """Sizes of the batches that the teacher was given since it was last asked."""
    sizes: list[int] = sys.modules[settings.teachers[0].spec.split(":")[1]].SEEN  # type: ignore[attr-defined]
    copied = list(sizes)
    sizes.clear()
    return copied


def rows(settings: BuildSettings, stored: Callable[..., pa.Table]) -> list[Any]:
    tables = [
        stored(settings.cache, layer, shard) for layer in ("views-000-001", "captions-txt") for shard in (0, 1, 2)
    ]
    return [table.to_pydict() for table in tables]


def layer_sizes(settings: BuildSettings) -> dict[str, int]:
    found = Path(settings.cache, "teach").glob("*/layer.json")
    return {path.parent.name: json.loads(path.read_text())["batch_size"] for path in found}


def test_batches_are_of_whole_rows_and_as_large_as_asked(make: Callable[..., BuildSettings]) -> None:
    build = make("cache", 100, batch_size=7, views=3)
    build_cache(build, InProcess())
    sizes = [size for size in seen(build) if size > 1]  # not those that it is tried with
    # Two rows of three views a batch, the last of each shard shorter; then the texts.
    assert sizes == [6] * 6 + [3] + [6] * 4 + [3] + [7, 6, 7, 2]


@pytest.mark.parametrize("most", [1, 3, 4, 7])
def test_running_out_of_memory_halves_and_gives_the_same(
    make: Callable[..., BuildSettings], stored: Callable[..., pa.Table], most: int
) -> None:
    whole, cut = make("whole", 100), make("cut", most)
    build_cache(whole, InProcess())
    build_cache(cut, InProcess())
    strip = [{**table, "layer": 0} for table in rows(whole, stored)]
    assert [{**table, "layer": 0} for table in rows(cut, stored)] == strip
    sizes = seen(cut)
    # Halved for good: it never tries a size again that was too much.
    halvings = {1: [8, 4, 2], 3: [8, 4], 4: [8], 7: [8]}[most]
    assert [size for size in sizes if size > most] == halvings
    assert layer_sizes(cut) == {"views-000-001": 8, "captions-txt": 8}


def test_other_errors_are_not_taken_for_a_lack_of_memory(make: Callable[..., BuildSettings]) -> None:
    build = make("cache", 3, 'RuntimeError("shapes do not match")')
    with pytest.raises(IncompleteError, match="RuntimeError: shapes do not match"):
        build_cache(build, InProcess())
    assert max(seen(build)) == 8


def test_not_even_one_fits(make: Callable[..., BuildSettings], python_teacher: Callable[[str], str]) -> None:
    source = LIMITED.format(most=1, error=FULL).replace("len(rows) > 1", "len(SEEN) > 4")
    build = replace(make("cache", 1), teachers=(TeacherSpec(python_teacher(source), "teach"),))
    with pytest.raises(IncompleteError, match="OutOfMemoryError: CUDA out of memory"):
        build_cache(build, InProcess())


def test_a_size_is_found_within_memory_kept_and_used_when_resumed(make: Callable[..., BuildSettings]) -> None:
    build = make("cache", 32, batch_size=None, views=1)
    report = build_cache(build, InProcess())
    (found,) = report.batch_sizes
    assert found in {8, 16, 32}
    assert layer_sizes(build) == {"views-000-000": found, "captions-txt": found}
    seen(build)
    # As if it had stopped there: the layer says another size than would be found.
    for path in Path(build.cache, "teach").glob("*/layer.json"):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({**facts, "batch_size": 5}))
        for done in [*path.parent.glob("_records/00000.*"), *path.parent.glob("00000.arrow")]:
            done.unlink()
    report = build_cache(build, InProcess())
    assert report.batch_sizes == (5,)
    assert max(seen(build)) == 5, "a size was looked for again"


def test_a_cache_may_be_finished_in_another_size(
    make: Callable[..., BuildSettings], stored: Callable[..., pa.Table]
) -> None:
    build = make("cache", 100, views=2)
    build_cache(build, InProcess())
    expected = rows(build, stored)
    for record in Path(build.cache).rglob("_records/00000.*"):
        record.unlink()
    seen(build)
    build_cache(replace(build, batch_size=4), InProcess())
    assert max(seen(build)) == 4
    assert rows(build, stored) == expected


def test_the_same_size_gives_the_same_bytes_whatever_else(
    make: Callable[..., BuildSettings], snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    first = make("first", 100, batch_size=6)
    build_cache(first, InProcess())
    later = replace(first, cache=first.cache + " later")
    build_cache(replace(later, towers="text"), InProcess())
    build_cache(later, InProcess())
    assert snapshot(Path(later.cache)) == snapshot(Path(first.cache))


def test_of_a_teacher_with_one_tower_the_size_is_found_too(
    dataset: Dataset, tmp_path: Path, save_teacher: Callable[..., str]
) -> None:
    spec = save_teacher(tmp_path / "teacher")
    for towers in ("text", "image"):
        settings = BuildSettings(
            shards=str(dataset.folder),
            cache=str(tmp_path / towers),
            teachers=(TeacherSpec(spec, "teach"),),
            towers=towers,  # type: ignore[arg-type]
            views=1,
        )
        assert build_cache(settings, InProcess()).batch_sizes[0] >= 8
        cache = TeacherCache.open(settings.cache, dataset)
        assert (cache.views, len(cache.captions)) == ((0, 1) if towers == "text" else (1, 0))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_sample_without_a_finite_embedding_is_named(
    dataset: Dataset, tmp_path: Path, python_teacher: Callable[[str], str], dtype: Any
) -> None:
    """Of images and of captions, at a place in the middle of a batch."""
    caption = dataset.shards[2].caption(4)
    sick = python_teacher(f"""
        class Mine:
            identity = 1

            def embed_texts(self, texts):
                return np.array([[1, 2, np.nan if text == {caption!r} else 3] for text in texts], np.float32)
        """)
    settings = BuildSettings(
        shards=str(dataset.folder), cache=str(tmp_path / "texts"), teachers=(TeacherSpec(sick, "teach"),), dtype=dtype
    )
    with pytest.raises(
        IncompleteError, match=rf"the teacher's embedding of {dataset.shards[2].keys[4]} is zero or not finite"
    ):
        build_cache(replace(settings, batch_size=3), InProcess())
    calls = python_teacher("""
        class Mine:
            image_size = 8
            identity = 2
            done = 0

            def embed_images(self, pixels):
                rows = np.ones((len(pixels), 4), np.float32)
                if len(pixels) > 1:  # not the one it is tried with
                    place = 2 * 7 + 1 - self.done  # the second view of the eighth row
                    rows[place : place + 1 if place >= 0 else 0] = np.inf
                    self.done += len(pixels)
                return rows
        """)
    settings = replace(settings, cache=str(tmp_path / "images"), teachers=(TeacherSpec(calls, "teach"),), views=2)
    with pytest.raises(
        IncompleteError, match=rf"the teacher's embedding of {dataset.shards[0].keys[7]} is zero or not finite"
    ):
        build_cache(replace(settings, batch_size=6), InProcess())


def test_a_batch_of_nothing_is_refused(make: Callable[..., BuildSettings]) -> None:
    with pytest.raises(UserError, match="--batch-size is 0"):
        make("cache", 1, batch_size=0)
