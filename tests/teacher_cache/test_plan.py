"""What a build will cost, said beforehand, against what it does cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import Dataset, InProcess, UserError
from teacher_cache import ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.building import plan as planning
from teacher_cache.building.plan import TeacherCost, plan_cache
from teacher_cache.captions import CaptionSource


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("plan") / "shards", (40, 60))


@pytest.fixture
def settings(dataset: Dataset, tmp_path: Path, linear_teacher: Callable[..., str]) -> BuildSettings:
    """Wide embeddings, so that what every file has besides counts for little, as it does in large shards."""
    return BuildSettings(
        shards=str(dataset.folder),
        cache=str(tmp_path / "cache"),
        teachers=(TeacherSpec(linear_teacher(size=8, width=1024), "teach"),),
        views=4,
        batch_size=16,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "int8", "views": 5},
        {"dtype": "float32", "policy": ViewPolicy(jitter=(0.4, 0.4, 0.4, 0.1), rand_augment=(2, 9))},
        {"policy": "evaluation", "views": 1, "dtype": "bfloat16"},
        {"towers": "text", "captions": ("txt", "json:caption*3")},
    ],
)
def test_bytes_are_those_that_a_build_writes(settings: BuildSettings, changes: dict[str, Any]) -> None:
    if "captions" in changes:
        changes = {**changes, "captions": tuple(CaptionSource.parse(text) for text in changes["captions"])}
    build = replace(settings, **changes)
    plan = plan_cache(build, InProcess(), budget=0.01)
    assert not Path(build.cache).exists(), "something was written"
    report = build_cache(build, InProcess())
    on_disk = sum(path.stat().st_size for path in Path(build.cache).rglob("*.arrow"))
    assert report.bytes == on_disk
    assert abs(plan.bytes / on_disk - 1) < 0.02
    assert plan.samples == 100


def test_an_ensemble_is_the_sum_of_its_teachers(settings: BuildSettings, linear_teacher: Callable[..., str]) -> None:
    second = TeacherSpec(linear_teacher(width=512, size=12, seed=1), "second")
    text = TeacherSpec(linear_teacher(width=256, seed=2, without=("embed_images",)), "text")
    plan = plan_cache(replace(settings, teachers=(*settings.teachers, second, text)), InProcess(), budget=0.01)
    alone = [
        plan_cache(replace(settings, teachers=(teacher,)), InProcess(), budget=0.01)
        for teacher in (*settings.teachers, second, text)
    ]
    assert abs(plan.bytes - sum(one.bytes for one in alone)) <= 3
    assert [cost.name for cost in plan.teachers] == ["teach", "second", "text"]
    assert [cost.embed_dim for cost in plan.teachers] == [1024, 512, 256]
    assert [cost.image_rate > 0 for cost in plan.teachers] == [True, True, False]
    assert all(cost.text_rate > 0 and cost.device == "cpu" and cost.batch_size == 16 for cost in plan.teachers)


def test_texts_that_are_stored_count(settings: BuildSettings, dataset: Dataset, tmp_path: Path) -> None:
    keys = [key for shard in dataset.shards for key in shard.keys]
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"key": keys, "said": [f"{key} " * 200 for key in keys]}), table)
    build = replace(settings, towers="text", captions=(CaptionSource.parse(f"table:{table}#said"),))
    plan = plan_cache(build, InProcess(), budget=0.01)
    assert abs(plan.bytes / build_cache(build, InProcess()).bytes - 1) < 0.02


@pytest.mark.parametrize(
    ("views", "passes", "expected"),
    [
        # Images at 100 a second, texts at 400: a sample takes views / 100 + 1 / 400 once, or 1 / 80 in every pass.
        (1, 1, (1.25, 1.25, 1)),
        (4, 32, (4.25, 40.0, 4)),  # 3.4 passes
        (8, 6, (8.25, 7.5, 7)),  # 6.6 passes
        (9, 100, (9.25, 125.0, 8)),  # 7.4 passes
    ],
)
def test_when_it_pays(
    settings: BuildSettings,
    monkeypatch: pytest.MonkeyPatch,
    views: int,
    passes: int,
    expected: tuple[float, float, int],
) -> None:
    cost = TeacherCost("teach", "cpu", 1024, 16, 100.0, 400.0)
    monkeypatch.setattr(planning, "_measure", lambda *_: cost)
    plan = plan_cache(replace(settings, views=views), InProcess(), passes=passes)
    assert plan.seconds == pytest.approx(expected[0])
    assert plan.online_seconds == pytest.approx(expected[1])
    assert plan.break_even == expected[2]
    # As it says: before, the cache is dearer; from there on it is not.
    one_pass = plan.online_seconds / passes
    assert (plan.break_even - 1) * one_pass < plan.seconds * (1 + 1e-9)
    assert plan.break_even * one_pass >= plan.seconds * (1 - 1e-9)


def test_of_images_alone_it_pays_after_as_many_passes_as_views(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = np.random.default_rng(0).uniform(1, 1000, 200)  # for some of them views / rate * rate is not views
    for rate in rates.tolist():
        cost = TeacherCost("teach", "cpu", 1024, 16, rate, 0.0)
        monkeypatch.setattr(planning, "_measure", lambda *_, cost=cost: cost)
        for views in (1, 3, 8):
            plan = plan_cache(replace(settings, views=views, towers="image"), InProcess(), passes=2)
            assert plan.break_even == views
            assert plan.online_seconds == pytest.approx(plan.seconds * 2 / views)


def test_rates_are_measured_on_what_the_teacher_is_given(
    settings: BuildSettings, python_teacher: Callable[[str], str]
) -> None:
    """A teacher that waits a known time for each batch, so that nothing else counts."""
    slow = python_teacher("""
        import time
        import threading

        class Mine:
            image_size = 8
            identity = 1

            def embed_images(self, pixels):
                threading.Event().wait(0.05)
                return np.ones((len(pixels), 4), np.float32)

            def embed_texts(self, texts):
                threading.Event().wait(0.02)
                return np.ones((len(texts), 4), np.float32)
        """)
    build = replace(settings, teachers=(TeacherSpec(slow, "teach"),), views=4)
    (cost,) = plan_cache(build, InProcess(), budget=0.6).teachers
    # 16 at a time: at most 320 images and 800 texts a second, and less for what the machine does besides.
    assert 20 < cost.image_rate <= 320
    assert 80 < cost.text_rate <= 800
    assert np.isfinite(cost.image_rate)


def test_a_size_is_found_where_none_is_given(settings: BuildSettings) -> None:
    plan = plan_cache(replace(settings, batch_size=None, views=1), InProcess(), budget=0.01)
    assert plan.teachers[0].batch_size >= 8
    assert not Path(settings.cache).exists()


def test_impossible_plans_are_refused(settings: BuildSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 passes over the dataset"):
        plan_cache(settings, InProcess(), passes=0)
    with pytest.raises(UserError, match="no dataset here"):
        plan_cache(replace(settings, shards=str(tmp_path)), InProcess())
    with pytest.raises(UserError, match=r"no kind of teacher has such a spec|there is no such folder"):
        plan_cache(replace(settings, teachers=(TeacherSpec(str(tmp_path / "nobody")),)), InProcess())
