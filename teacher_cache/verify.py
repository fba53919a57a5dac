"""Prove a cache: hash every file, match every key, look for numbers that cannot be, and recompute some from pixels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch

from clip_models import Precision
from clip_models.precision import PRECISIONS
from shards import Dataset, Shard, ShardRecord, UserError, seed64
from shards.fingerprint import sha256_file
from shards.progress import Meter
from teacher_cache.building.facts import teacher_facts
from teacher_cache.captions import source_of
from teacher_cache.layer_files import LayerFile
from teacher_cache.layout import LayerFacts
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import Join
from teacher_cache.teachers import Forward, Teacher, load_teacher
from teacher_cache.views import EncodedImage

_STORED = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.5, "int8": 1.0}
"""Largest change of a logit at scale 100 that storing explains; running in other batches does as `PRECISIONS` say."""

_NORM = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 2e-2, "int8": 2e-2}


@dataclass(frozen=True)
class CacheReport:
    """What `verify_cache` saw of one teacher.

    `recomputed` samples were embedded again from their pixels and captions: `min_cosine` is the lowest agreement with
    what is stored, `logit_drift` the largest change of a logit among them at the teacher's own scale (both NaN if
    nothing was). `problems` is empty for a sound cache.
    """

    teacher: str
    files: int
    rows: int
    recomputed: int
    min_cosine: float
    logit_drift: float
    tolerance: float
    problems: tuple[str, ...]


def verify_cache(
    shards: str,
    cache: str,
    *,
    teacher_name: str | None = None,
    teacher: str | None = None,
    rows: int = 64,
    seed: int = 0,
    tolerance: float | None = None,
) -> CacheReport:
    """Check every file of a teacher's cache against its record and dataset, and recompute up to `rows` random samples.

    `teacher` overrides the spec by which the teacher is loaded (its folder may have moved); its weights must be the
    cached ones. A logit drift over `tolerance` is a problem (default: what the cache's coarsest type and the forward's
    precision explain, at the teacher's scale). Imported embeddings have no teacher to recompute them with.
    Raises `UserError` if cache, dataset and teacher do not belong together.
    """
    dataset = Dataset.open(shards)
    opened = _open(cache, dataset, teacher_name)
    imported = not opened.layers[0].settings["precision"]
    limit = _tolerance(opened) if tolerance is None else tolerance
    model = None if imported or rows < 1 else _load(opened, teacher)
    problems = [f"{name}: {lacks} it" for name, lacks in opened.incomplete.items()]
    files = 0
    with Meter("cache verify", len(opened.layers) * len(dataset.shards), unit="files") as meter:
        for layer in opened.layers:
            joined = opened.joined(layer.name)
            for place, shard in enumerate(dataset.shards):
                selected = joined.rows(place) if shard.record.parent else None
                # A selection's rows are in the file of what they were selected from.
                number = shard.id if selected is None or not len(selected) else int(selected[0, 0])
                record = joined.records.get(number)
                found = ["missing"] if record is None else _check_file(opened, layer, shard, record, selected)
                problems += [f"{layer.name}/{number:05d}.arrow: {problem}" for problem in found]
                files += 1
                shard.release()
                meter.advance(1, items=shard.count)
    cosine, drift, done = float("nan"), float("nan"), 0
    if not problems and model is not None:
        cosine, drift, done = _recompute(opened, dataset, model, (rows, seed), problems)
        if not drift <= limit:
            problems.append(f"recomputed logits differ by up to {drift:.4f}, the tolerance is {limit:g}")
    return CacheReport(opened.teacher.name, files, len(dataset), done, cosine, drift, limit, tuple(problems))


def _tolerance(opened: TeacherCache) -> float:
    stored = max(_STORED[layer.dtype] for layer in opened.layers)
    precisions = [layer.settings["precision"] for layer in opened.layers]
    # That of imported layers is not known, "".
    forward = max(PRECISIONS[name].drift if name else 0.0 for name in precisions)
    return (stored + forward) * opened.teacher.logit_scale / 100


def _open(cache: str, dataset: Dataset, name: str | None) -> TeacherCache:
    try:
        return TeacherCache.open(cache, dataset, name)
    except UserError as refusal:
        # What was built here is for all samples; what somebody else published may be for a part of them.
        try:
            opened = TeacherCache.open(cache, dataset, name, Join(policy="none"))
        except UserError:
            raise refusal from None
        if opened.layers[0].settings["precision"]:
            raise refusal from None
        return opened


def _load(opened: TeacherCache, spec: str | None) -> Teacher:
    spec = spec or opened.teacher.spec
    kinds = {layer.kind for layer in opened.layers}
    precision: Precision = opened.layers[0].settings["precision"]
    towers = "both" if len(kinds) == 2 else "image" if kinds == {"views"} else "text"
    try:
        model = load_teacher(spec, Forward(precision=precision), towers)  # type: ignore[arg-type]
    except UserError as error:
        # A folder may have moved since; whatever else it is, this option is the way to another place.
        raise UserError(
            f"the teacher cannot be loaded from where the cache has it from: {error.problem}",
            where=error.where or spec,
            do="Say where it is now with --teacher",
        ) from error
    facts = teacher_facts(model, opened.teacher.name)
    if facts.fingerprint != opened.teacher.fingerprint:
        raise UserError(
            f"the teacher loaded from {spec!r} is {facts.fingerprint} (weights {facts.identity.get('weights')}), the "
            f"cache was built by {opened.teacher.fingerprint} (weights {opened.teacher.identity.get('weights')})",
            where=str(opened.folder),
            do="Give the right weights with --teacher",
        )
    return model


def _check_file(
    opened: TeacherCache, layer: LayerFacts, shard: Shard, record: ShardRecord, rows: npt.NDArray[np.int32] | None
) -> list[str]:
    place = opened.folder.child(layer.name)
    entry = record.file(".arrow")
    size = place.size(entry.name)
    if size is None:
        return ["missing"]
    # On an object store the bytes there, not the local copy of them.
    got = sha256_file(place.path / entry.name) if place.is_local else sha256(place.read(entry.name)).hexdigest()
    if got != entry.sha256:
        return [f"hashes to {got[:16]}..., its record says {entry.sha256[:16]}..."]
    try:
        file = LayerFile(place, layer, record, opened.teacher.embed_dim)
    except UserError as error:
        return [error.problem.removeprefix(f"{entry.name} ")]
    keys = file.keys
    if wrong := _check_keys(keys, shard, rows, imported=not layer.settings["precision"]):
        return [wrong]
    problems: list[str] = []
    for place_of, index in enumerate(layer.columns):
        norms = file.norms(place_of)
        bad = np.flatnonzero(~(np.abs(norms - 1) < _NORM[layer.dtype]))
        if bad.size:
            worst = f"{layer.column(index)} of {keys[bad[0]]} has norm {norms[bad[0]]:.4f}"
            problems.append(f"{worst} ({bad.size} such rows)")
    return problems


def _check_keys(keys: list[str], shard: Shard, rows: npt.NDArray[np.int32] | None, *, imported: bool) -> str:
    if rows is not None:
        held = [keys[row] for row in rows[:, 1].tolist()]
        return "" if held == shard.keys else "its keys are not those that the selection names"
    if not imported:
        return "" if keys == shard.keys else "its keys are not the shard's"
    return "" if set(keys) <= set(shard.keys) else "it has keys that the shard has not"


Rows = npt.NDArray[np.float32]

_TOGETHER = 32
"""Samples recomputed in one forward."""


def _recompute(
    cache: TeacherCache, dataset: Dataset, teacher: Teacher, draw: tuple[int, int], problems: list[str]
) -> tuple[float, float, int]:
    """Lowest cosine, largest logit change, how many samples were recomputed; adds crops that differ to `problems`."""
    rows, seed = draw
    chosen = sorted({seed64("verify", seed, number) % len(dataset) for number in range(rows)})
    starts = np.cumsum([0] + [shard.count for shard in dataset.shards])
    by_shard: dict[int, list[int]] = defaultdict(list)
    for position in chosen:
        place = int(np.searchsorted(starts, position, side="right")) - 1
        by_shard[place].append(position - int(starts[place]))
    images: list[tuple[Rows, Rows]] = []
    texts: list[tuple[Rows, Rows]] = []
    for place, members in by_shard.items():
        shard = dataset.shards[place]
        for at in range(0, len(members), _TOGETHER):
            places = np.array([(place, row) for row in members[at : at + _TOGETHER]], np.int64)
            if cache.views:
                images.append(_images((cache, shard, teacher), places, seed, problems))
            if cache.captions:
                texts.append(_texts((cache, shard, teacher), places, seed))
        shard.release()
    first, second = (images or texts), (texts or images)
    (old_first, new_first), (old_second, new_second) = (
        [np.concatenate(parts) for parts in zip(*pairs, strict=True)] for pairs in (first, second)
    )
    cosine = min((old_first * new_first).sum(1).min(), (old_second * new_second).sum(1).min())
    drift = np.abs(old_first @ old_second.T - new_first @ new_second.T).max() * cache.teacher.logit_scale
    return float(cosine), float(drift), len(chosen)


def _images(
    of: tuple[TeacherCache, Shard, Teacher], places: npt.NDArray[np.int64], seed: int, problems: list[str]
) -> tuple[Rows, Rows]:
    """Stored and recomputed embeddings of one random view each."""
    cache, shard, teacher = of
    indices, pixels = [], []
    for place, row in places.tolist():
        key = shard.keys[row]
        index = seed64("verify view", seed, key) % cache.views
        image = EncodedImage(shard.image_bytes(row))
        kept = cache.view(place, row, index)
        drawn = cache.policy.draw(key, index, image.width, image.height)
        if kept != drawn:
            problems.append(f"view {index} of {key} is kept as {kept}, the policy draws {drawn}")
        pixels.append(cache.policy.render(image, drawn, teacher.image_size or 0))
        indices.append(index)
    fresh: Rows = teacher.embed_images(torch.from_numpy(np.stack(pixels))).cpu().numpy()
    return cache.image(places, np.array(indices, np.int64)), fresh


def _texts(of: tuple[TeacherCache, Shard, Teacher], places: npt.NDArray[np.int64], seed: int) -> tuple[Rows, Rows]:
    """Stored and recomputed embeddings of one random caption each."""
    cache, shard, teacher = of
    names = sorted(cache.captions)
    sources = {
        layer.name.removeprefix("captions-"): source_of(layer.settings["source"])
        for layer in cache.layers
        if layer.kind == "captions"
    }
    stored, captions = [], []
    for at, (place, row) in enumerate(places.tolist()):
        draw = seed64("verify caption", seed, shard.keys[row])
        name = names[draw % len(names)]
        number = draw // len(names) % cache.captions[name]
        text = cache.caption(place, row, number, name)
        captions.append(sources[name].texts(shard, [row])[number][0] if text is None else text)
        stored.append(cache.text(places[at : at + 1], number, name))
    fresh: Rows = teacher.embed_texts(captions).cpu().numpy()
    return np.concatenate(stored), fresh
