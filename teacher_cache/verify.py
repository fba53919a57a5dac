"""Prove a cache: hash every file, match every key, look for numbers that cannot be, and recompute some from pixels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards import Dataset, Folder, Shard, ShardRecord, UserError, published_records, read_records, seed64
from shards.fingerprint import sha256_file
from shards.progress import Meter
from teacher_cache.build import embed_captions
from teacher_cache.layout import LayerFacts, embedding_column
from teacher_cache.reader import TeacherCache, map_layer_file
from teacher_cache.teacher import Teacher
from teacher_cache.views import decode, draw_view, render


@dataclass(frozen=True)
class CacheReport:
    """What `verify_cache` saw.

    `recomputed` rows were embedded again from their pixels and captions: `min_cosine` is the lowest agreement with
    what is stored, `logit_drift` the largest change of an image-text logit among them at the teacher's own scale.
    `problems` is empty for a sound cache.
    """

    files: int
    rows: int
    recomputed: int
    min_cosine: float
    logit_drift: float
    problems: tuple[str, ...]


def verify_cache(
    shards: str,
    cache: str,
    *,
    teacher_name: str | None = None,
    teacher: str | None = None,
    rows: int = 64,
    seed: int = 0,
    tolerance: float = 0.05,
) -> CacheReport:
    """Check every file of a cache against its record and its dataset, and recompute up to `rows` random rows.

    `teacher` overrides the spec by which the teacher is loaded (its folder may have moved); its weights must be the
    cached ones. A logit drift over `tolerance` is a problem: float16 storage alone moves a logit at scale 100 by up to
    0.005 at width 512 and 0.02 at width 40.
    Raises `UserError` if cache, dataset and teacher do not belong together.
    """
    dataset = Dataset.open(shards)
    opened = TeacherCache.open(cache, dataset, teacher_name)
    spec = teacher or opened.teacher.spec
    precision = opened.layers[0].settings["precision"]
    model = Teacher.load(spec, precision=precision)
    facts = model.facts(spec, opened.teacher.name)
    if facts.fingerprint != opened.teacher.fingerprint:
        raise UserError(
            f"the teacher loaded from {spec!r} is {facts.fingerprint} (weights {facts.identity['weights']}), the cache "
            f"was built by {opened.teacher.fingerprint} (weights {opened.teacher.identity['weights']})",
            where=str(opened.folder),
            do="Give the right weights with --teacher",
        )
    problems: list[str] = []
    files = 0
    with Meter("cache verify", len(opened.layers) * len(dataset.shards), unit="files") as meter:
        for layer in opened.layers:
            place = opened.folder.child(layer.name)
            records = read_records(place, published_records(place).values())
            for shard in dataset.shards:
                found = _check_file(place, layer, shard, records[shard.id], opened.teacher.embed_dim)
                problems += [f"{layer.name}/{shard.id:05d}.arrow: {problem}" for problem in found]
                files += 1
                shard.release()
                meter.advance(1, items=shard.count)
    if problems or rows < 1:
        return CacheReport(files, len(dataset), 0, float("nan"), float("nan"), tuple(problems))
    cosine, drift, done = _recompute(opened, dataset, model, (rows, seed), problems)
    if not drift <= tolerance:
        problems.append(f"recomputed logits differ by up to {drift:.4f}, the tolerance is {tolerance:g}")
    return CacheReport(files, len(dataset), done, cosine, drift, tuple(problems))


def _check_file(place: Folder, layer: LayerFacts, shard: Shard, record: ShardRecord, width: int) -> list[str]:
    entry = record.file(".arrow")
    size = place.size(entry.name)
    if size is None:
        return ["missing"]
    # On an object store the bytes there, not the local copy of them.
    got = sha256_file(place.path / entry.name) if place.is_local else sha256(place.read(entry.name)).hexdigest()
    if got != entry.sha256:
        return [f"hashes to {got[:16]}..., its record says {entry.sha256[:16]}..."]
    with pa.memory_map(str(place.fetch(entry.name, entry.sha256))) as source:
        keys = pa.ipc.open_file(source).read_all()["key"].to_pylist()
    if keys != shard.keys:
        return ["its keys are not the shard's"]
    columns = map_layer_file(place, record, shard)
    problems: list[str] = []
    for index in layer.columns:
        column = embedding_column(layer.kind, index)
        rows = columns[column].astype(np.float32)
        if rows.shape[1] != width:
            problems.append(f"{column} has width {rows.shape[1]}, the teacher {width}")
            continue
        norms = np.linalg.norm(rows, axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1) < 0.01))
        if bad.size:
            problems.append(f"{column} of {keys[bad[0]]} has norm {norms[bad[0]]:.4f} ({bad.size} such rows)")
    return problems


def _recompute(
    cache: TeacherCache, dataset: Dataset, teacher: Teacher, draw: tuple[int, int], problems: list[str]
) -> tuple[float, float, int]:
    """Lowest cosine, largest logit change, and how many rows were recomputed; adds crops that differ to `problems`."""
    rows, seed = draw
    chosen = sorted({seed64("verify", seed, number) % len(dataset) for number in range(rows)})
    starts = np.cumsum([0] + [shard.count for shard in dataset.shards])
    by_shard: dict[int, list[int]] = defaultdict(list)
    for position in chosen:
        place = int(np.searchsorted(starts, position, side="right")) - 1
        by_shard[place].append(position - int(starts[place]))
    old: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
    new: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
    for place, members in by_shard.items():
        shard = dataset.shards[place]
        stored, pixels = [], []
        for row in members:
            index = seed64("verify view", seed, shard.keys[row]) % cache.views
            image = decode(shard.image_bytes(row))
            view, kept = draw_view(cache.policy, shard.keys[row], index, *image.size), cache.view(shard, row, index)
            if kept != view:
                problems.append(f"view {index} of {shard.keys[row]} is kept as {kept}, the policy draws {view}")
            pixels.append(render(image, view, teacher.image_size))
            stored.append(cache.image(shard, [row], index)[0])
        old.append((np.stack(stored), cache.text(shard, members)))
        new.append((teacher.embed_images(np.stack(pixels)), embed_captions(teacher, shard, members, len(members))))
    old_image, old_text = (np.concatenate(parts) for parts in zip(*old, strict=True))
    new_image, new_text = (np.concatenate(parts) for parts in zip(*new, strict=True))
    cosine = min((old_image * new_image).sum(1).min(), (old_text * new_text).sum(1).min())
    drift = np.abs(old_image @ old_text.T - new_image @ new_text.T).max() * cache.teacher.logit_scale
    return float(cosine), float(drift), len(chosen)
