"""Little work does not wait for Ray, unless Ray was asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ingest import IngestSettings, SourceSettings
from ingest.run import work_of_list
from shards.choice import ENDLESS, LONG_S, RAY_S, Work, choose_executor
from shards.executor import InProcess
from shards.ray_executor import RayExecutor
from teacher_cache.building import BuildSettings, TeacherSpec, work_of_build


@pytest.mark.parametrize(
    ("seconds", "how", "wanted"),
    [
        (0.0, {}, InProcess),
        # Two workers save half of it, sixteen nearly all; one saves nothing.
        (2 * RAY_S - 1, {}, InProcess),
        (2 * RAY_S + 1, {}, RayExecutor),
        (RAY_S - 1, {"workers": 16}, InProcess),
        (1.2 * RAY_S, {"workers": 16}, RayExecutor),
        (LONG_S - 1, {"workers": 1}, InProcess),
        (LONG_S + 1, {"workers": 1}, RayExecutor),
        (ENDLESS.seconds, {}, RayExecutor),
        (ENDLESS.seconds, {"in_process": True}, InProcess),
        (0.0, {"asked": 1}, RayExecutor),
        (0.0, {"address": "10.0.0.1:6379"}, RayExecutor),
    ],
)
def test_the_users_wish_counts_then_the_amount(seconds: float, how: dict[str, Any], wanted: type) -> None:
    assert type(choose_executor(Work("ten rows", seconds), **{"workers": 2, **how})) is wanted


def test_it_is_said_in_one_line_once_there_is_something_to_do(caplog: pytest.LogCaptureFixture) -> None:
    class Task:
        name, overlap = "count", 1

        def open(self) -> None: ...

    executor = choose_executor(Work("ten rows", 1.0), workers=2)
    assert isinstance(executor, InProcess)
    with caplog.at_level(logging.INFO):
        assert caplog.messages == []
        executor.start(Task())  # type: ignore[arg-type]
        executor.close()
        executor.start(Task())  # type: ignore[arg-type]
    (line,) = caplog.messages
    assert line.startswith("count: ten rows: in this process, as Ray takes longer to start")


def work(*paths: Path, **source: Any) -> Work:
    settings = SourceSettings(paths=tuple(map(str, paths)), **source)
    return work_of_list(IngestSettings(source=settings, out="out", name="set"))


def test_a_list_is_judged_by_its_size(tmp_path: Path) -> None:
    row = "http://images.example/0123456789.jpg\ta picture of something that is there\n"
    for rows in (1_000, 100_000):
        (tmp_path / f"{rows}.tsv").write_text(row * rows)
    small, large = tmp_path / "1000.tsv", tmp_path / "100000.tsv"
    assert 0 < work(small).seconds < RAY_S < LONG_S < work(large).seconds
    assert work(small, small).seconds == pytest.approx(2 * work(small).seconds, rel=0.01)
    # Nobody knows at once what is in these.
    for path in (tmp_path, tmp_path / "*.tsv", Path("s3://bucket/list.tsv")):
        assert work(path) == ENDLESS
    (tmp_path / "list.csv.gz").write_bytes(b"")
    assert work(small, tmp_path / "list.csv.gz") == ENDLESS


def test_a_build_is_judged_by_its_forwards(tmp_path: Path, make_dataset: Any) -> None:
    make_dataset(tmp_path / "set", (6, 4))
    common: dict[str, Any] = {"shards": str(tmp_path / "set"), "cache": "out"}
    one = BuildSettings(**common, teachers=(TeacherSpec("a", "a"),), views=3)
    two = BuildSettings(**common, teachers=(TeacherSpec("a", "a"), TeacherSpec("b", "b")), views=3)
    assert work_of_build(one).words == "10 samples, 30 forwards"
    assert work_of_build(two).words == "10 samples, 60 forwards"
    assert 0 < work_of_build(one).seconds < work_of_build(two).seconds < RAY_S
    many = BuildSettings(**common, teachers=(TeacherSpec("a", "a"),), views=1000)
    assert work_of_build(many).seconds > LONG_S
