"""Several teachers in one build: each image decoded once, each cache as if its teacher had been alone, however often
the build was killed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Dataset, IncompleteError, InProcess, UserError
from teacher_cache import EncodedImage, TeacherCache, ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache, forward

POLICY = ViewPolicy(scale=(0.4, 1.0), flip=0.5)
COUNTS = (5, 0, 6)
Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ensembles")


@pytest.fixture(scope="module")
def dataset(root: Path, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(root / "shards", COUNTS)


@pytest.fixture(scope="module")
def settings(root: Path, dataset: Dataset, linear_teacher: Callable[..., str]) -> BuildSettings:
    """Two teachers of different resolution and width."""
    specs = (linear_teacher(size=8, width=6), linear_teacher(size=12, width=10, seed=3))
    return BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=tuple(TeacherSpec(spec, name) for spec, name in zip(specs, ("small", "large"), strict=True)),
        views=3,
        policy=POLICY,
        batch_size=7,
    )


@pytest.fixture(scope="module")
def expected(settings: BuildSettings, root: Path, snapshot: Snapshot) -> dict[str, bytes]:
    """The files of two builds, of a teacher each."""
    for teacher in settings.teachers:
        build_cache(replace(settings, cache=str(root / "apart"), teachers=(teacher,)), InProcess())
    return snapshot(root / "apart")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each image was opened by a build."""
    counts: Counter[bytes] = Counter()

    def counted(data: bytes) -> EncodedImage:
        counts[data] += 1
        return EncodedImage(data)

    monkeypatch.setattr(forward, "EncodedImage", counted)
    return counts


def test_both_caches_are_those_of_builds_apart(
    settings: BuildSettings,
    dataset: Dataset,
    expected: dict[str, bytes],
    snapshot: Snapshot,
    decoded: Counter[bytes],
) -> None:
    report = build_cache(settings, InProcess())
    assert snapshot(Path(settings.cache)) == expected
    assert report.folders == (f"{settings.cache}/small", f"{settings.cache}/large")
    assert report.bytes == sum(len(data) for name, data in expected.items() if name.endswith(".arrow"))
    assert len(decoded) == 11
    assert set(decoded.values()) == {1}
    opened = [TeacherCache.open(settings.cache, dataset, name) for name in ("small", "large")]
    assert [cache.teacher.embed_dim for cache in opened] == [6, 10]
    places, views = np.array([(0, 4), (2, 1)]), np.array([2, 0])
    assert [cache.image(places, views).shape for cache in opened] == [(2, 6), (2, 10)]
    assert opened[0].view(2, 1, 2) == opened[1].view(2, 1, 2), "the teachers saw other views"


@pytest.mark.parametrize("removed", [("small",), ("large",), ("small", "large")])
def test_what_was_removed_is_made_again_in_one_decoding(
    *,
    settings: BuildSettings,
    dataset: Dataset,
    tmp_path: Path,
    expected: dict[str, bytes],
    snapshot: Snapshot,
    decoded: Counter[bytes],
    removed: tuple[str, ...],
) -> None:
    cache = tmp_path / "cache"
    for name, data in expected.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(data)
    for name in removed:
        layer = cache / name / "views-000-002"
        next(layer.glob("_records/00002.*")).unlink()
        (layer / "00002.arrow").unlink()
    build_cache(replace(settings, cache=str(cache)), InProcess())
    assert snapshot(cache) == expected
    again = [dataset.shards[2].image_bytes(row) for row in range(6)]
    assert decoded == Counter(again)


def test_a_teacher_that_comes_later_touches_no_file(
    settings: BuildSettings, tmp_path: Path, expected: dict[str, bytes], snapshot: Snapshot
) -> None:
    first = replace(settings, cache=str(tmp_path), teachers=settings.teachers[:1])
    build_cache(first, InProcess())
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    build_cache(replace(settings, cache=str(tmp_path)), InProcess())
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert snapshot(tmp_path) == expected


PROGRAM = """
sys.path[:] = {path!r}
import teacher_cache.building.forward as forward
import teacher_cache.teachers.python_teacher, teacher_cache.views.rendering  # once, not in every child
from shards import InProcess
from teacher_cache import ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache

whole = forward.EncodedImage
forward.EncodedImage = lambda data: (tick(), whole(data))[1]

def work(number):
    settings = BuildSettings(
        shards={shards!r}, cache={base!r} + str(number), views=3, batch_size=7,
        teachers=(TeacherSpec({first!r}, "small"), TeacherSpec({second!r}, "large")),
        policy=ViewPolicy(scale=(0.4, 1.0), flip=0.5),
    )
    tick_at_files(settings.cache)
    build_cache(settings, InProcess())
"""


def test_a_build_killed_anywhere_ends_in_the_same_bytes(
    settings: BuildSettings,
    tmp_path: Path,
    expected: dict[str, bytes],
    kill_often: Callable[[str, int], list[int]],
    snapshot: Snapshot,
) -> None:
    """Killed before any of the files it writes, and in the middle of a shard's images."""
    base = str(tmp_path / "killed")
    first, second = (teacher.spec for teacher in settings.teachers)
    kill_often(PROGRAM.format(path=sys.path, shards=settings.shards, base=base, first=first, second=second), 8)
    found = set()
    for number in range(1, 9):
        cache = Path(f"{base}{number}")
        found.add(tuple(len(list((cache / name).rglob("*.arrow"))) for name in ("small", "large")))
        build_cache(replace(settings, cache=str(cache)), InProcess())
        assert snapshot(cache) == expected, number
    assert len(found) >= 4, f"the kills all came at the same point: {found}"


SICK = """
class Mine:
    image_size = 8
    identity = 1

    def embed_images(self, pixels):
        rows = pixels.float().mean(dim=(1, 2)) + 1
        rows[pixels[:, 0, 0, 0] > 0] = float("nan")  # not of the black image it is tried with
        return rows
"""


def test_a_sick_teacher_holds_up_only_itself(
    *,
    settings: BuildSettings,
    dataset: Dataset,
    tmp_path: Path,
    expected: dict[str, bytes],
    python_teacher: Callable[[str], str],
    snapshot: Snapshot,
) -> None:
    sick = python_teacher(SICK)
    for at in (0, 2):
        cache = tmp_path / str(at)
        teachers = list(settings.teachers)
        teachers.insert(at, TeacherSpec(sick, "sick"))
        with pytest.raises(IncompleteError, match=rf"embedding of tiny-00000000\d is zero or not finite \({sick}\)"):
            build_cache(replace(settings, cache=str(cache), teachers=tuple(teachers)), InProcess())
        assert {name: data for name, data in snapshot(cache).items() if not name.startswith("sick")} == expected
        assert TeacherCache.open(str(cache), dataset, "large").views == 3


@pytest.mark.parametrize("how", ["class", "towers"])
def test_a_text_teacher_has_captions_only(
    settings: BuildSettings, dataset: Dataset, tmp_path: Path, linear_teacher: Callable[..., str], how: str
) -> None:
    spec = linear_teacher(without=("embed_images",)) if how == "class" else settings.teachers[0].spec
    changes: dict[str, Any] = {"towers": "text"} if how == "towers" else {}
    report = build_cache(
        replace(settings, cache=str(tmp_path), teachers=(TeacherSpec(spec, "teach"),), **changes), InProcess()
    )
    assert (report.views, report.captions) == (0, 1)
    assert not list((tmp_path / "teach").glob("views*"))
    cache = TeacherCache.open(str(tmp_path), dataset)
    assert (cache.views, cache.captions) == (0, {"txt": 1})
    places = np.array([(2, 3), (0, 0)])
    assert np.abs(np.linalg.norm(cache.text(places), axis=1) - 1).max() < 1e-6
    for ask in (lambda: cache.image(places, np.zeros(2, np.int64)), lambda: cache.policy):
        with pytest.raises(UserError, match=rf"{tmp_path}/teach: this teacher embedded captions only"):
            ask()
    if how == "towers":
        # What was left out can be had later, beside what there is.
        with_views = replace(settings, cache=str(tmp_path), teachers=(TeacherSpec(spec, "teach"),))
        assert build_cache(with_views, InProcess()).summary.skipped == 3
        assert TeacherCache.open(str(tmp_path), dataset).views == 3


@pytest.mark.parametrize("how", ["class", "towers"])
def test_an_image_teacher_has_views_only(
    settings: BuildSettings, dataset: Dataset, tmp_path: Path, linear_teacher: Callable[..., str], how: str
) -> None:
    spec = linear_teacher(without=("embed_texts",)) if how == "class" else settings.teachers[0].spec
    changes: dict[str, Any] = {"towers": "image"} if how == "towers" else {}
    build = replace(settings, cache=str(tmp_path), teachers=(TeacherSpec(spec, "teach"),), **changes)
    assert build_cache(build, InProcess()).captions == 0
    cache = TeacherCache.open(str(tmp_path), dataset)
    assert (cache.views, cache.captions) == (3, {})
    with pytest.raises(UserError, match="no captions 'txt'; there are none"):
        cache.text(np.array([(0, 0)]))


def test_a_text_teacher_beside_one_of_images(
    settings: BuildSettings, dataset: Dataset, tmp_path: Path, linear_teacher: Callable[..., str]
) -> None:
    text = TeacherSpec(linear_teacher(without=("embed_images",)), "text")
    build_cache(replace(settings, cache=str(tmp_path), teachers=(text, settings.teachers[0])), InProcess())
    opened = [TeacherCache.open(str(tmp_path), dataset, name) for name in ("text", "small")]
    assert [cache.views for cache in opened] == [0, 3]
    assert [cache.captions for cache in opened] == [{"txt": 1}, {"txt": 1}]


def test_nothing_to_embed_is_said_so(
    settings: BuildSettings, tmp_path: Path, linear_teacher: Callable[..., str]
) -> None:
    spec = linear_teacher(without=("embed_images",))
    none = replace(settings, cache=str(tmp_path), teachers=(TeacherSpec(spec, "teach"),), captions=())
    with pytest.raises(UserError, match=r"only texts to embed, and no captions were asked for. Give --captions"):
        build_cache(none, InProcess())
    with pytest.raises(UserError, match="this teacher has no image tower"):
        build_cache(replace(none, towers="image"), InProcess())


def test_two_teachers_of_one_name_are_refused(settings: BuildSettings) -> None:
    with pytest.raises(UserError, match="two of the teachers are called 'small'"):
        replace(settings, teachers=(settings.teachers[0], replace(settings.teachers[1], name="small")))
    with pytest.raises(UserError, match="no teacher was named"):
        replace(settings, teachers=())
