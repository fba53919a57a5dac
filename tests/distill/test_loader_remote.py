"""Batches from an object store: the same as from a disk, within a bound of local copies, and copied ahead of need."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.data.loader import Loader, Views
from distill.data.order import Order
from shards import Dataset, InProcess, copies
from shards.shard import Shard
from teacher_cache import TeacherCache, ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache

COUNTS = (6, 7, 5, 6, 8)


def make_loader(dataset: Dataset, cache: str, window: int = 1) -> Loader:
    caches = (TeacherCache.open(cache, dataset),)
    order = Order([shard.count for shard in dataset.shards], 4, seed=3, window=window)
    return Loader(dataset, order, Views(ViewPolicy(), 2), None, image_size=24, caches=caches)


@pytest.fixture
def both(bucket: str, tmp_path: Path, world: Any, make_dataset: Callable[..., Dataset]) -> list[tuple[Dataset, str]]:
    """Dataset and cache on a disk, and the same on a store."""
    made = []
    for root in (str(tmp_path / "near"), bucket):
        dataset = make_dataset(f"{root}/shards", COUNTS)
        settings = BuildSettings(
            shards=f"{root}/shards", cache=f"{root}/cache", teachers=(TeacherSpec(world.teacher, "teach"),), views=2
        )
        build_cache(replace(settings, batch_size=64), InProcess())
        made.append((dataset, settings.cache))
    return made


def test_batches_from_a_store_within_a_bound_are_those_from_a_disk(
    both: list[tuple[Dataset, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (near, near_cache), (far, far_cache) = both
    # Room for about one shard of five, so copies come and go all the time.
    most = max(sum(shard.record.file(suffix).bytes for suffix in (".tar", ".index.arrow")) for shard in far.shards)
    monkeypatch.setenv("CLIPSTILL_CACHE_BYTES", str(2 * most))
    monkeypatch.setattr("shards.copies._RECENT", 1)
    monkeypatch.setattr("distill.data.collate._OPEN_SHARDS", 1)
    monkeypatch.setattr("teacher_cache.layer_files._OPEN_FILES", 1)
    removed = set()
    remove = copies._remove_unused
    monkeypatch.setattr(copies, "_remove_unused", lambda path: removed.add(path) or remove(path))
    here, there = make_loader(near, near_cache), make_loader(far, far_cache)
    for one, other in zip(here.batches(0, 16), there.batches(0, 16), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        (ours,), (theirs,) = one.targets.teachers["txt"], other.targets.teachers["txt"]
        assert torch.equal(ours.image, theirs.image)
    assert removed


def test_the_next_window_is_copied_before_it_is_asked_for(
    both: list[tuple[Dataset, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (far, far_cache) = both
    loader = make_loader(far, far_cache)
    for path in copies.root().iterdir():
        path.unlink()
    order = Order(COUNTS, 4, seed=3, window=1)
    now, following = order.ahead(0)
    # Far enough that no batch in the making reaches the window after the first.
    assert {int(place) for place in order.batch(0)[:, 0]} == {now}
    copied = {shard.id: threading.Event() for shard in far.shards}
    fetch = Shard.fetch

    def telling(self: Shard) -> None:
        fetch(self)
        copied[self.id].set()

    monkeypatch.setattr(Shard, "fetch", telling)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    batches = loader.batches(0, 1)
    next(batches)
    assert copied[far.shards[following].id].wait(timeout=60)
    batches.close()
    present = {path.name for path in copies.root().iterdir()}
    assert far.shards[following].record.file(".tar").sha256 in present
    later = set(range(5)) - {now, following}
    assert not {far.shards[place].record.file(".tar").sha256 for place in later} & present
