"""A batch is what a plain loop over tars and Arrow files gathers, whatever threads made it and wherever it began."""

from __future__ import annotations

import gc
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch

from distill.data.loader import Batch, Loader, Views
from distill.data.order import Order
from distill.losses import Embeddings, Targets
from shards import Dataset, UserError
from teacher_cache import EncodedImage, TeacherCache, ViewPolicy

TOKENIZER = open_clip.get_tokenizer("ViT-B-32", context_length=16)
POLICY = ViewPolicy(scale=(0.5, 1.0), flip=0.5)  # the cache's
BATCH = 6


def make_loader(world: Any, *, cached: bool = True, dataset: Dataset | None = None, **options: Any) -> Loader:
    data = dataset or Dataset.open(world.shards)
    order = Order([shard.count for shard in data.shards], BATCH, seed=1)
    caches = (TeacherCache.open(world.cache, data),) if cached else ()
    chosen = {"tokenizer": TOKENIZER, "image_size": 32, "views": Views(POLICY, 3), "caches": caches, **options}
    return Loader(data, order, **chosen)


def plain(value: Any) -> Any:
    """Of plain lists, numbers and bytes alone, so that == compares it."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return plain(vars(value)) if isinstance(value, Batch | Targets | Embeddings) else value


def same(first: Batch, second: Batch) -> bool:
    return bool(plain(first) == plain(second))


def table(world: Any, layer: str, shard: int) -> pa.Table:
    with pa.memory_map(f"{world.cache}/teach/{layer}/{shard:05d}.arrow") as source:
        return pa.ipc.open_file(source).read_all()


def normalised(rows: list[Any]) -> np.ndarray:
    wide = np.array(rows, np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def plain_samples(world: Any) -> dict[str, dict[str, Any]]:
    """Key → image, caption, and for each view its crop and embedding; read with tarfile and pyarrow alone."""
    samples: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(world.shards).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
        views, captions = table(world, "views-000-002", int(path.stem)), table(world, "captions-txt", int(path.stem))
        for row, key in enumerate(views["key"].to_pylist()):
            samples[key]["text"] = captions["caption_000"][row].as_py()
            samples[key]["views"] = [
                (
                    POLICY.unpack(np.frombuffer(views[f"params_{view:03d}"][row].as_py(), POLICY.dtype)[0]),
                    views[f"view_{view:03d}"][row].as_py(),
                )
                for view in range(3)
            ]
    return samples


def test_a_batch_is_what_a_plain_loop_gathers(world: Any) -> None:
    loader = make_loader(world, teacher_size=48)
    samples = plain_samples(world)
    keys_in_order = [key for shard in world.dataset.shards for key in shard.keys]
    starts = np.cumsum([0] + [shard.count for shard in world.dataset.shards])
    turns: dict[str, list[int]] = {key: [] for key in samples}
    order = Order([9, 0, 12, 5], BATCH, seed=1)
    for step in range(12):
        batch = loader.batch(step)
        assert batch.step == step
        assert batch.keys == [keys_in_order[starts[place] + row] for place, row in order.batch(step)]
        chosen = [samples[key] for key in batch.keys]
        assert batch.captions == {"txt": [sample["txt"].decode() for sample in chosen]}
        assert torch.equal(batch.tokens["txt"], TOKENIZER(batch.captions["txt"]))
        assert batch.tokens["txt"].shape == (BATCH, 16)
        (teacher,) = batch.targets.teachers["txt"]
        assert batch.teacher_pixels is not None
        assert np.abs(teacher.text.numpy() - normalised([sample["text"] for sample in chosen])).max() < 1e-7
        for at, (key, sample) in enumerate(zip(batch.keys, chosen, strict=True)):
            # Which of the three views it is, by its embedding; the pixels must be of that same view.
            every = normalised([embedding for _, embedding in sample["views"]])
            apart = np.abs(every - teacher.image[at].numpy()).max(axis=1)
            turn = int(apart.argmin())
            assert apart[turn] < 1e-7
            turns[key].append(turn)
            image = EncodedImage(sample.get("jpg") or sample["png"])
            view = sample["views"][turn][0]
            assert view == POLICY.draw(key, turn, image.width, image.height)
            assert np.array_equal(batch.images[at].numpy(), POLICY.render(image, view, 32))
            assert np.array_equal(batch.teacher_pixels[at], POLICY.render(image, view, 48))
    # 12 steps are three epochs of four; a sample dropped from one of them was seen twice.
    assert all(len(set(seen)) == len(seen) for seen in turns.values()), "a view came twice before all had come"
    assert any(sorted(seen) == [0, 1, 2] for seen in turns.values())


def test_every_view_has_its_turn_and_an_epoch_shows_all_of_them() -> None:
    views = Views(POLICY, 5)
    for key in (f"cc3m-{row:09d}" for row in range(50)):
        turns = [views.index(key, epoch) for epoch in range(20)]
        for start in range(16):
            assert sorted(turns[start : start + 5]) == [0, 1, 2, 3, 4]
    shown = Counter(views.index(f"cc3m-{row:09d}", 0) for row in range(5000))
    assert set(shown) == set(range(5))
    assert max(shown.values()) - min(shown.values()) < 200
    assert {Views(POLICY, 1).index(f"k-{row}", 3) for row in range(20)} == {0}


def test_a_run_may_begin_at_any_step(world: Any) -> None:
    whole = list(make_loader(world).batches(0, 14))
    assert [batch.step for batch in whole] == list(range(14))
    for start in (0, 1, 5, 13, 14):
        rest = list(make_loader(world).batches(start, 14))
        assert len(rest) == 14 - start
        assert all(same(one, other) for one, other in zip(rest, whole[start:], strict=True))


def test_threads_do_not_change_what_comes_nor_its_order(world: Any) -> None:
    """The first batch is held back until another one is under way, and still comes first."""
    alone = make_loader(world)
    expected = [alone.batch(step) for step in range(8)]
    another = threading.Event()

    class SlowFirst(Views):
        def index(self, key: str, epoch: int) -> int:
            if key == expected[0].keys[0] and epoch == 0:
                assert another.wait(timeout=60)
            elif key == expected[1].keys[0]:
                another.set()
            return super().index(key, epoch)

    loader = make_loader(world, views=SlowFirst(POLICY, 3))
    got = list(loader.batches(0, 8)) if (os.cpu_count() or 1) > 1 else list(alone.batches(0, 8))
    assert all(same(one, other) for one, other in zip(got, expected, strict=True))


def test_a_tokenizer_is_never_called_from_two_threads_at_once(world: Any) -> None:
    meeting = threading.Barrier(2)

    def lonely(captions: list[str]) -> torch.Tensor:
        with pytest.raises(threading.BrokenBarrierError):
            meeting.wait(timeout=0.3)
        meeting.reset()
        return TOKENIZER(captions)

    assert len(list(make_loader(world, tokenizer=lonely).batches(0, 4))) == 4


def test_a_run_without_a_cache_sees_the_same_pixels(world: Any) -> None:
    cached, plain = make_loader(world), make_loader(world, cached=False)
    for step in range(8):
        one, other = cached.batch(step), plain.batch(step)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tokens["txt"], other.tokens["txt"])
        assert one.keys == other.keys
        assert other.targets == Targets()
        assert other.teacher_pixels is None


def test_at_one_resolution_student_and_teacher_see_one_tensor(world: Any) -> None:
    batch = make_loader(world, image_size=40, teacher_size=40).batch(3)
    assert batch.teacher_pixels is not None
    assert np.array_equal(batch.images.numpy(), batch.teacher_pixels)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_leaving_early_leaves_no_threads(world: Any) -> None:
    loader = make_loader(world)
    batches = loader.batches(0, 1000)
    assert [batch.step for batch in islice(batches, 3)] == [0, 1, 2]
    assert loader_threads()
    batches.close()
    assert not loader_threads()
    for batch in loader.batches(0, 1000):
        if batch.step == 2:
            break
    gc.collect()
    assert not loader_threads()


def test_a_damaged_image_is_named(
    world: Any, tmp_path: Path, make_dataset: Callable[..., Dataset], damage_image: Callable[..., None]
) -> None:
    dataset = make_dataset(tmp_path / "damaged", (4, 6))
    damage_image(dataset, 1, 2)
    loader = make_loader(world, cached=False, dataset=dataset)
    with pytest.raises(UserError, match=r"damaged/00001\.tar: the image of tiny-000000006 does not decode"):
        list(loader.batches(0, 20))
    assert not loader_threads()


def test_only_so_many_shards_stay_open_however_many_there_are(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batch.images for batch in make_loader(world).batches(0, 8)]
    monkeypatch.setattr("distill.data.collate._OPEN_SHARDS", 1)
    monkeypatch.setattr("teacher_cache.layer_files._OPEN_FILES", 1)
    loader = make_loader(world, dataset=Dataset.open(world.shards))
    before = len(list(Path("/proc/self/fd").iterdir()))
    images = [batch.images for batch in loader.batches(0, 8)]
    assert all(torch.equal(one, other) for one, other in zip(images, expected, strict=True))
    loader.batch(7)
    # The one shard left open holds its tar, its index, and a file of each of the cache's two layers.
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4
