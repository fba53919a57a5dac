"""Ours: `distill.data.loader`, one process, a thread a core; with `cache`, joined with two teachers' embeddings.

python run_ours.py JSON
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

from benchmarks.loader.clock import answer, speed, wanted
from clip_models import tokenizer_for
from distill.data.loader import Loader, Views
from distill.data.order import Order
from distill.data.tokens import with_memory
from shards import Dataset
from teacher_cache.reader import TeacherCache
from teacher_cache.views import EncodedImage, ViewPolicy

_PARTS = 512
"""Samples over which a part's cost is measured."""


def main() -> None:
    wish = wanted()
    torch.set_num_threads(1)
    dataset = Dataset.open(wish["shards"])
    teachers = ("first", "second") if wish["cache"] else ()
    caches = [TeacherCache.open(wish["cache"], dataset, teacher) for teacher in teachers]
    policy = caches[0].policy if caches else ViewPolicy(scale=tuple(wish["scale"]))
    views = Views(policy, caches[0].views if caches else 1 << 20)
    tokenizer = tokenizer_for({"model_cfg": {"text_cfg": {"context_length": 77}}})
    order = Order([shard.count for shard in dataset.shards], wish["batch"], seed=1)
    loader = Loader(dataset, order, views, tokenizer, image_size=wish["size"], caches=caches)
    generator = loader.batches(0, 1 << 40)
    found: dict[str, Any] = speed(_sizes(generator), wish["seconds"])
    generator.close()
    if wish.get("parts"):
        found |= {"parts": _parts(dataset, order, caches, tokenizer, wish["size"])}
    answer(found)


def _sizes(batches: Iterator[Any]) -> Iterator[int]:
    for batch in batches:
        yield len(batch.keys)


def _parts(dataset: Dataset, order: Order, caches: list[TeacherCache], tokenizer: Any, size: int) -> dict[str, float]:
    """Microseconds a sample of what the loader does, each done alone on samples in the order of training."""
    places = np.concatenate([order.batch(step) for step in range(-(-_PARTS // order.batch_size))])[:_PARTS]
    samples = places.tolist()
    policy, shards = caches[0].policy, dataset.shards
    keys = [shards[place].keys[row] for place, row in samples]
    turns = Views(policy, caches[0].views)
    views = np.array([turns.index(key, 0) for key in keys])
    drawn = caches[0].stored_views(places, views)
    encoded = [shards[place].image_bytes(row) for place, row in samples]
    images = [EncodedImage(data) for data in encoded[:64]]
    captions = [shards[place].caption(row) for place, row in samples]
    remembering = with_memory(tokenizer)
    out = np.empty((size, size, 3), np.uint8)
    for image in images:
        image.pixels()

    def join() -> None:
        caches[0].stored_views(places, views)
        for cache in caches:
            cache.present(places)
            cache.image(places, views)
            cache.text(places)

    def decode() -> None:
        for data in encoded:
            simplejpeg.decode_jpeg(data, "RGB")

    def resize() -> None:
        for at in range(_PARTS):
            view = drawn[at]
            assert view is not None
            policy.render(images[at % len(images)], view, size, out)

    parts: dict[str, Callable[[], object]] = {
        "read the image's bytes": lambda: [len(shards[place].image_bytes(row)) for place, row in samples],
        "look at its header": lambda: [EncodedImage(data).width for data in encoded],
        "decode it": decode,
        "crop and resize it into the batch": resize,
        "read the caption": lambda: [shards[place].caption(row) for place, row in samples],
        "tokenise it, from memory": lambda: remembering(captions),
        "tokenise it, by open_clip's own": lambda: tokenizer(captions),
        "join two teachers: view, image and text rows": join,
        "draw the view, without a cache": lambda: [policy.draw(key, 0, 341, 256) for key in keys],
    }
    return {name: min(_cost(part) for _ in range(3)) for name, part in parts.items()}


def _cost(part: Callable[[], object]) -> float:
    started = time.perf_counter()
    part()
    return (time.perf_counter() - started) / _PARTS * 1e6


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
