"""Several teachers, several captions, several ranks: whose rows a batch holds, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distill.data.loader import Loader, Views
from distill.data.order import Order
from shards import Dataset, InProcess, UserError
from teacher_cache import TeacherCache, ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource

TOKENIZER = open_clip.get_tokenizer("ViT-B-32", context_length=16)
POLICY = ViewPolicy(scale=(0.5, 1.0), flip=0.5)
BATCH = 8


@dataclass(frozen=True)
class Several:
    """The world's dataset with caches beside its own: `other` of another teacher, `words` of one of texts alone.

    All three hold two sets of captions: `txt`, and `table-said` with three for each sample, "<key> says <number>".
    """

    dataset: Dataset
    folders: dict[str, str]

    def open(self, *names: str) -> tuple[TeacherCache, ...]:
        return tuple(TeacherCache.open(self.folders[name], self.dataset) for name in names)

    def loader(self, *names: str, views: int = 3, **options: Any) -> Loader:
        order = Order([shard.count for shard in self.dataset.shards], BATCH, seed=2)
        chosen: dict[str, Any] = {"image_size": 24, "caches": self.open(*names), "tokenizer": TOKENIZER, **options}
        return Loader(self.dataset, order, Views(POLICY, views), **chosen)


@pytest.fixture(scope="module")
def several(world: Any, tmp_path_factory: pytest.TempPathFactory, save_teacher: Callable[..., str]) -> Several:
    root = tmp_path_factory.mktemp("several")
    keys = [key for shard in world.dataset.shards for key in shard.keys]
    said = [[f"{key} says {number}" for number in range(3)] for key in keys]
    pq.write_table(pa.table({"key": keys, "said": said}), root / "said.parquet")
    captions = (CaptionSource("txt"), CaptionSource.parse(f"table:{root}/said.parquet#said*3"))
    base = BuildSettings(
        shards=world.shards,
        cache="",
        teachers=(TeacherSpec(world.teacher, "one"),),
        batch_size=64,
        views=3,
        policy=POLICY,
        captions=captions,
    )
    other = (TeacherSpec(save_teacher(root / "model", seed=5, image=32, dim=24), "other"),)
    made = {
        "one": base,
        "other": replace(base, teachers=other),
        "words": replace(base, teachers=other, towers="text"),
        "pictures": replace(base, teachers=other, towers="image"),
        "fewer": replace(base, teachers=other, views=2, captions=captions[:1]),
        "wider": replace(base, teachers=other, policy=replace(POLICY, scale=(0.4, 1.0)), captions=captions[:1]),
        "shorter": replace(base, captions=(captions[0], replace(captions[1], count=2)), towers="text"),
    }
    for name, settings in made.items():
        build_cache(replace(settings, cache=str(root / name)), InProcess())
    return Several(world.dataset, {name: str(root / name) for name in made})


def places_of(several: Several, keys: list[str]) -> np.ndarray:
    where = {key: (place, row) for place, s in enumerate(several.dataset.shards) for row, key in enumerate(s.keys)}
    return np.array([where[key] for key in keys])


def test_each_teacher_speaks_of_the_same_views_and_captions(several: Several) -> None:
    names = ("one", "words", "other", "pictures")
    loader = several.loader(*names, captions=("txt", "table-said"))
    caches = several.open(*names)
    for step in range(7):
        batch = loader.batch(step)
        places = places_of(several, batch.keys)
        said = [batch.captions["table-said"][at].removeprefix(f"{key} says ") for at, key in enumerate(batch.keys)]
        numbers = np.array([int(number) for number in said])
        assert batch.captions["txt"] == [several.dataset.shards[place].caption(row) for place, row in places]
        for name in ("txt", "table-said"):
            assert torch.equal(batch.tokens[name], TOKENIZER(batch.captions[name]))
        one, words, other, pictures = batch.targets.teachers["txt"]
        every = np.stack([caches[0].image(places, np.full(BATCH, view)) for view in range(3)], axis=1)
        views = np.abs(every - one.image.numpy()[:, None]).max(axis=2).argmin(axis=1)
        for captions, shown in (("txt", np.zeros(BATCH, np.int64)), ("table-said", numbers)):
            for said, cache in zip(batch.targets.teachers[captions], caches, strict=True):
                if cache.views:
                    assert np.array_equal(said.image.numpy(), cache.image(places, views))
                if cache.captions:
                    assert np.array_equal(said.text.numpy(), cache.text(places, shown, captions))
        assert (words.image.shape, pictures.text.shape) == ((BATCH, 0), (BATCH, 0))
        assert (one.image.shape, other.text.shape) == ((BATCH, 40), (BATCH, 24))
        assert batch.targets.present is None


def test_captions_come_in_turn_and_none_twice_before_all_have_come(several: Several) -> None:
    loader = several.loader("one", captions=("table-said",), tokenizer=None)
    shown: dict[str, list[str]] = {}
    for step in range(27):  # nine epochs of three batches
        batch = loader.batch(step)
        assert batch.tokens == {}
        for key, caption in zip(batch.keys, batch.captions["table-said"], strict=True):
            shown.setdefault(key, []).append(caption)
    always = [seen for seen in shown.values() if len(seen) == 9]
    assert always
    for seen in always:
        assert all(len(set(seen[start : start + 3])) == 3 for start in range(7))
    assert len({seen[0][-1] for seen in always}) > 1, "all samples begin with the same caption"


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_global_batch(several: Several, ranks: int) -> None:
    whole = several.loader("one", "words")
    parts = [several.loader("one", "words", rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in (0, 4):
        batch, pieces = whole.batch(step), [part.batch(step) for part in parts]
        assert [key for piece in pieces for key in piece.keys] == batch.keys
        assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
        assert torch.equal(torch.cat([piece.tokens["txt"] for piece in pieces]), batch.tokens["txt"])
        for teacher in range(2):
            texts = [piece.targets.teachers["txt"][teacher].text for piece in pieces]
            assert torch.equal(torch.cat(texts), batch.targets.teachers["txt"][teacher].text)


def test_a_text_teacher_alone_leaves_the_views_to_the_policy(several: Several) -> None:
    batch = several.loader("words", views=5).batch(2)
    drawn = several.loader(views=5).batch(2)
    assert torch.equal(batch.images, drawn.images)
    assert batch.targets.teachers["txt"][0].image.shape == (BATCH, 0)


@pytest.mark.parametrize(
    ("names", "captions", "message"),
    [
        (("one", "fewer"), "txt", r"/one/one has views 3, \S*/fewer/other 2"),
        (("one", "wider"), "txt", r"/one/one has a policy ViewPolicy.*scale=\(0\.5, 1\.0\).*/wider/other .*\(0\.4, 1"),
        (("one", "shorter"), "table-said", r"'table-said' are .*'count': 3.* in \S*/one/one, .*'count': 2.*/shorter"),
        (("fewer",), "table-said", r"/fewer/other: no captions 'table-said'; there are txt"),
        ((), "json-said", "json-said: no captions can be read from this.*Write txt, json:FIELD"),
        (("pictures",), "json-said", "json-said: no captions can be read from this.*Write txt, json:FIELD"),
    ],
)
def test_caches_that_do_not_agree_are_refused(
    several: Several, names: tuple[str, ...], captions: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        several.loader(*names, captions=(captions,))


def test_crops_that_two_caches_were_given_must_be_the_same(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ViewPolicy(kind="given")
    stored = TeacherCache.stored_views
    monkeypatch.setattr(TeacherCache, "policy", given)
    monkeypatch.setattr(given.__class__, "dtype", POLICY.dtype)
    monkeypatch.setattr(given.__class__, "photometric", False)
    loader = several.loader("one", "other", "words")
    assert len(loader.batch(0).targets.teachers["txt"]) == 3

    def moved(cache: TeacherCache, *where: Any) -> list[Any]:
        found = stored(cache, *where)
        return [*found[:-1], found[-1]._replace(flip=not found[-1].flip)] if cache.teacher.name == "other" else found

    monkeypatch.setattr(TeacherCache, "stored_views", moved)
    with pytest.raises(UserError, match=r"tiny-\d+ has another crop in \S*/one/one than in \S*/other/other: View\("):
        loader.batch(0)


def test_the_wait_for_batches_is_known(several: Several) -> None:
    loader = several.loader("one")
    assert loader.waited == 0
    list(loader.batches(0, 3))
    once = loader.waited
    assert once > 0
    list(loader.batches(0, 3))
    assert loader.waited > once


def test_a_part_is_the_same_whoever_fills_it_in_however_many_chunks(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [several.loader("one").batch(step) for step in range(6)]
    monkeypatch.setattr("distill.data.loader._CHUNK", 3)
    monkeypatch.setattr("distill.data.loader._AHEAD", 1)
    for batch, alone in zip(several.loader("one").batches(0, 6), whole, strict=True):
        assert batch.keys == alone.keys
        assert batch.captions == alone.captions
        assert torch.equal(batch.images, alone.images)
        assert torch.equal(batch.tokens["txt"], alone.tokens["txt"])
        (said,), (expected,) = batch.targets.teachers["txt"], alone.targets.teachers["txt"]
        assert torch.equal(said.text, expected.text)
