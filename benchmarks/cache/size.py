"""What each type of storage costs in bytes, and what it does to a logit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from benchmarks.cache.material import SYNTHETIC, CacheShape, keys_only, random_rows, write_cache
from teacher_cache.dtypes import Dtype, load, row_bytes, store, widened

_SCALE = 100.0


def on_disk(folder: Path, shards: int, rows: int) -> dict[str, dict[str, float]]:
    """Two teachers of 768, ten views and six captions, in every type: bytes of all files, and of the embeddings alone.

    The embeddings are their numbers, and in int8 each row's factor.
    """
    dataset = keys_only(folder / "data", shards, rows)
    samples = len(dataset)
    pool = random_rows(0, 2 * rows, 768)
    found = {}
    for dtype in get_args(Dtype):
        cache = folder / dtype
        shapes = [CacheShape(name=name, dtype=dtype) for name in ("one", "two")]
        for shape in shapes:
            write_cache(cache, dataset, shape, lambda _, shard, column: pool[shard + column :][:rows])
        stored = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        payload = sum(shape.payload(samples) for shape in shapes)
        found[dtype] = {
            "bytes_a_sample": stored / samples,
            "payload_a_sample": payload / samples,
            "ratio": stored / payload,
            "step_bytes_a_sample": 2 * 3 * row_bytes(dtype, 768),
        }
        shutil.rmtree(cache)
    assert SYNTHETIC.count == 5
    return found


def logit_errors(widths: tuple[int, ...], count: int) -> list[dict[str, Any]]:
    """Change of `count` x `count` logits at scale 100 when images and texts are stored: the largest, and the RMS.

    Against float64 products of the float32 vectors. `not_unit` is the same without making rows unit after loading.
    """
    found = []
    for width in widths:
        images, texts = clip_like(0, count, width)
        exact = _SCALE * images.astype(np.float64) @ texts.astype(np.float64).T
        for dtype in get_args(Dtype):
            unit = [load(store(rows, dtype).values, dtype) for rows in (images, texts)]
            raw = [_as_stored(rows, dtype) for rows in (images, texts)]
            found.append(
                {"width": width, "dtype": dtype, **_errors(unit, exact), "not_unit": _errors(raw, exact)["largest"]}
            )
    return found


def _as_stored(rows: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[np.float32]:
    stored = store(rows, dtype)
    wide = widened(stored.values, dtype)
    return wide if stored.scales is None else wide * stored.scales[:, None]


def _errors(pair: list[npt.NDArray[np.float32]], exact: npt.NDArray[np.float64]) -> dict[str, float]:
    images, texts = (rows.astype(np.float64) for rows in pair)
    change = _SCALE * images @ texts.T - exact
    return {"largest": float(np.abs(change).max()), "rms": float(np.sqrt(np.mean(change**2)))}


def clip_like(seed: int, count: int, width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Images and texts, each (count, width) float32 of unit norm, with what trained CLIP embeddings are known for.

    A gap between the modalities (arXiv:2203.02053), here a mean direction each with cosines of about 0.5 within a
    modality; a spectrum that falls like a power; a few numbers far larger than the rest; pairs closer than others.
    """
    random = np.random.default_rng([seed, width])
    spectrum = np.arange(1, width + 1) ** -0.5
    turn, _ = np.linalg.qr(random.standard_normal((width, width)))
    shared = random.standard_normal((count, width))
    both = []
    for _ in range(2):
        own = random.standard_normal((count, width))
        rows = (0.6 * shared + 0.8 * own) * spectrum @ turn
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        mean = random.standard_normal(width)
        mean[random.integers(0, width, 3)] *= 8
        rows += mean / np.linalg.norm(mean)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        both.append(rows.astype(np.float32))
    return both[0], both[1]
