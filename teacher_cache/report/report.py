"""One HTML page about one teacher's cache, and a table with the score and the nearest other image of every sample."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from pages import render
from pages.axis import Axis
from pages.plot import dots, histogram
from shards import Dataset, Folder
from shards.progress import Meter
from teacher_cache.reader import TeacherCache
from teacher_cache.report.clusters import clusters as cluster_rows
from teacher_cache.report.duplicates import EXACT, Neighbours, groups, nearest, work
from teacher_cache.report.pictures import Pictures
from teacher_cache.report.scores import BINS, Scores, norms, score
from teacher_cache.report.shard_drift import drift
from teacher_cache.report.threshold import Threshold, near_threshold
from teacher_cache.settings import Join
from teacher_cache.views import ViewPolicy

PAGE, TABLE = "report.html", "scores.parquet"
_PAIRS, _GROUPS, _ODD = 12, 15, 40
_BARS = (20, 100)
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("clip_score", pa.float32()),
        ("nearest_key", pa.string()),
        ("nearest_cosine", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ReportFacts:
    """What the page at `page` and the table at `scores` say in short.

    Of `samples`, `missing` have no embeddings and `broken` rows are zero or not finite. `score_mean` and `score_median`
    are over all pairs, None without pairs; `set_scores` is the mean of each caption set, over all its captions.
    `duplicates` images have another nearer than the cosine `threshold`, and make `groups`; by comparing all pairs if
    `exact`, else found with probability `recall` (both None without images). `doubt` says why nothing is advised by
    them, empty if it is. `odd_shards` are the numbers of the shards that are not like the others.
    """

    page: str
    scores: str
    samples: int
    missing: int
    broken: int
    score_mean: float | None
    score_median: float | None
    set_scores: dict[str, float]
    duplicates: int
    threshold: float
    doubt: str
    groups: int
    exact: bool | None
    recall: float | None
    odd_shards: tuple[int, ...]


def report_cache(
    shards: str, cache: str, *, teacher_name: str | None = None, out: str | None = None, clusters: int = 0
) -> ReportFacts:
    """Write `report.html` and `scores.parquet` into the teacher's folder, or into `out`; what was there is replaced.

    `clusters`: into how many the images' embeddings are cut, by which a dataset can be balanced; the table then has a
    column `cluster`. The cache may lack samples (imported, or not finished): they are joined by key. Needs temporary
    disk for one view of all images in float16; memory is about 100 B a sample, whatever D is. Equal caches give equal
    bytes.

    Raises:
        UserError: no dataset or cache, several teachers and no `teacher_name`, a damaged file, or a cache that holds
            nothing for this dataset.
    """
    dataset = Dataset.open(shards)
    opened = TeacherCache.open(cache, dataset, teacher_name, Join(policy="none"))
    target = opened.folder if out is None else Folder(out)
    target.sweep()
    with tempfile.TemporaryDirectory(prefix="clipstill-") as scratch:
        with Meter("cache report: scores", len(dataset), unit="samples") as meter:
            scores = score(opened, Path(scratch), lambda count: meter.advance(count, items=count))
        with Meter("cache report: duplicates", work(len(scores.rows)), unit="rows") as meter:
            threshold = near_threshold(scores.rows)
            near = nearest(scores.rows, threshold.cosine, advance=lambda count: meter.advance(count, items=count))
        cluster = cluster_rows(scores.rows, clusters, seed=0) if clusters else None
    _write_table(target, dataset, scores, near, cluster)
    page, facts = _page(opened, scores, near, threshold, target)
    target.publish(PAGE, page)
    return facts


def _write_table(
    target: Folder, dataset: Dataset, scores: Scores, near: Neighbours, cluster: npt.NDArray[np.int32] | None
) -> None:
    """One row a sample, one row group a shard."""
    schema = _SCHEMA if cluster is None else _SCHEMA.append(pa.field("cluster", pa.int32()))
    of = np.full(len(scores.clip), -1, np.int32)
    if cluster is not None:
        of[scores.samples] = cluster
    has = near.index >= 0
    wanted = np.unique(scores.samples[near.index[has]])
    keys = _keys(dataset, scores, wanted)
    other = np.full(len(scores.clip), -1, np.int64)
    other[scores.samples[has]] = np.searchsorted(wanted, scores.samples[near.index[has]])
    cosine = np.full(len(scores.clip), np.nan, np.float32)
    cosine[scores.samples] = near.cosine
    with target.staged(TABLE) as path, pq.ParquetWriter(str(path), schema) as writer:
        for place, shard in enumerate(dataset.shards):
            rows = slice(int(scores.offsets[place]), int(scores.offsets[place + 1]))
            named = pa.array(other[rows], mask=other[rows] < 0)
            columns = [
                pa.array(shard.keys, pa.string()),
                pa.array(np.full(shard.count, shard.id, np.int32)),
                pa.array(scores.clip[rows], from_pandas=True),
                keys.take(named),
                pa.array(cosine[rows], from_pandas=True),
                *([] if cluster is None else [pa.array(of[rows], mask=of[rows] < 0)]),
            ]
            writer.write_table(pa.table(columns, schema=schema))
            shard.release()


def _keys(dataset: Dataset, scores: Scores, samples: npt.NDArray[np.int64]) -> pa.Array:
    """The keys of these samples, which ascend."""
    parts = []
    for place, shard in enumerate(dataset.shards):
        first, stop = np.searchsorted(samples, scores.offsets[place : place + 2])
        if stop > first:
            rows = samples[first:stop] - scores.offsets[place]
            parts.append(pa.array([shard.keys[row] for row in rows.tolist()], pa.string()))
            shard.release()
    return pa.concat_arrays(parts) if parts else pa.array([], pa.string())


def _page(
    opened: TeacherCache, scores: Scores, near: Neighbours, threshold: Threshold, target: Folder
) -> tuple[bytes, ReportFacts]:
    dataset, drifting = opened.dataset, drift(scores)
    pictures = Pictures(opened, scores)
    known = np.flatnonzero(np.isfinite(scores.clip))
    order = known[np.argsort(scores.clip[known], kind="stable")]
    named = groups(near.index)
    group_of = np.full(len(scores.clip), -1, np.int64)
    group_of[scores.samples] = named
    sets = _sets(near, named)
    layers = _layers(opened)
    measured = {layer["name"]: layer["norms"] for layer in layers if layer["norms"] is not None}
    names = [shard.id for shard in dataset.shards]
    clip = scores.clip[known].astype(np.float64)
    place = str(target.url).rstrip("/")
    facts = ReportFacts(
        page=f"{place}/{PAGE}",
        scores=f"{place}/{TABLE}",
        samples=len(dataset),
        missing=opened.missing,
        broken=sum(found.broken for found in measured.values()),
        score_mean=float(clip.mean()) if clip.size else None,
        score_median=float(np.median(clip)) if clip.size else None,
        duplicates=int((near.index >= 0).sum()),
        threshold=threshold.cosine,
        doubt=threshold.doubt,
        set_scores={name: found.mean for name, found in scores.sets.items()},
        groups=len(sets),
        exact=near.exact if opened.views else None,
        recall=near.recall if opened.views else None,
        odd_shards=tuple(names[at] for at in np.flatnonzero(drifting.odd)),
    )
    text = render(
        "teacher_cache.report",
        "report.html.j2",
        dataset=dataset.name,
        teacher=opened.teacher,
        facts=facts,
        details=_details(opened),
        layers=layers,
        bytes=sum(layer["bytes"] for layer in layers),
        views=opened.views,
        source=scores.source,
        near=near,
        threshold=threshold,
        sources=scores.sets,
        exact_up_to=EXACT,
        extra=sum(size - 1 for _, _, size in sets),
        pairs=len(known),
        ahead=scores.ahead,
        percentiles=[(percent, float(np.percentile(clip, percent))) for percent in (1, 5, 50, 95, 99)]
        if clip.size
        else [],
        score_chart=_score_chart(scores, clip) if clip.size else "",
        worst=[pictures.cell(int(at)) for at in _distinct(order, group_of)],
        best=[pictures.cell(int(at)) for at in _distinct(order[::-1], group_of)],
        sets=[
            {
                "cells": [pictures.cell(int(scores.samples[row])) for row in (one, int(near.index[one]))],
                "cosine": float(near.cosine[one]),
                "size": size,
            }
            for one, _, size in sets[:_GROUPS]
        ],
        shards=len(names),
        cosine_chart=_shard_chart(drifting.cosine, drifting.odd_cosine, names, "cosine by shard"),
        shard_score_chart=_shard_chart(scores.shard_scores, drifting.odd_score, names, "mean CLIP score by shard"),
        odd=[
            {
                "name": f"{names[at]:05d}",
                "samples": int(scores.offsets[at + 1] - scores.offsets[at]),
                "score": float(scores.shard_scores[at]),
                "cosine": float(drifting.cosine[at]),
                "odd_score": bool(drifting.odd_score[at]),
                "odd_cosine": bool(drifting.odd_cosine[at]),
            }
            for at in np.flatnonzero(drifting.odd)[:_ODD].tolist()
        ],
    )
    return text, facts


def _sets(near: Neighbours, named: npt.NDArray[np.int64]) -> list[tuple[int, float, int]]:
    """Of each group of near duplicates its closest pair's first row, their cosine, and its size; the largest first."""
    rows = np.flatnonzero(near.index >= 0)
    order = rows[np.lexsort((rows, -near.cosine[rows], named[rows]))]
    _, first, sizes = np.unique(named[order], return_index=True, return_counts=True)
    found = [(int(row), float(near.cosine[row]), int(size)) for row, size in zip(order[first], sizes, strict=True)]
    return sorted(found, key=lambda entry: (-entry[2], -entry[1], entry[0]))


def _distinct(order: npt.NDArray[np.int64], group_of: npt.NDArray[np.int64]) -> list[int]:
    """The first samples of `order`, one of each group of near duplicates."""
    seen: set[int] = set()
    chosen: list[int] = []
    for sample in order[: 100 * _PAIRS].tolist():
        if len(chosen) < _PAIRS and int(group_of[sample]) not in seen:
            seen.add(int(group_of[sample]))
            chosen.append(sample)
    return chosen


def _score_chart(scores: Scores, clip: npt.NDArray[np.float64]) -> Markup:
    """Both kinds of pairs, each scaled to its total, where there are any: the more there are, the finer."""
    own, other = np.histogram(clip, BINS)[0], scores.mismatched
    used = np.flatnonzero(own + other)
    bars = int(np.clip(2 * np.sqrt(own.sum()), *_BARS))
    step = max(1, -(-int(used[-1] + 1 - used[0]) // bars))
    starts = np.arange(used[0] // step * step, used[-1] + 1, step)
    edges = BINS[np.append(starts, min(starts[-1] + step, len(BINS) - 1))]
    shares = [
        np.add.reduceat(counts[: starts[-1] + step], starts) / max(int(counts.sum()), 1) for counts in (own, other)
    ]
    series = [("area c0 half", edges, shares[0])] + ([("edge soft", edges, shares[1])] if other.any() else [])
    across, marks = Axis(float(edges[0]), float(edges[-1])), [(float(np.median(clip)), "median")]
    return histogram(across, series, "CLIP scores, share of pairs", marks=marks, say=_per_cent, height=240)


def _per_cent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _shard_chart(values: npt.NDArray[np.float64], odd: npt.NDArray[np.bool_], names: list[int], label: str) -> Markup:
    known = np.isfinite(values)
    numbers = [f"{name:05d}" for name in names]
    return dots(values, odd, numbers, float(np.median(values[known])), label) if known.sum() > 1 else Markup()


def _layers(opened: TeacherCache) -> list[dict[str, Any]]:
    """What each layer holds; its norms, where its first column is one that the scores are made of."""
    source = "txt" if "txt" in opened.captions else next(iter(opened.captions), None)
    found = []
    for layer in opened.layers:
        records = opened.joined(layer.name).records.values()
        size, rows = (sum(values) for values in zip(*((r.file(".arrow").bytes, r.count) for r in records), strict=True))
        read = layer.columns[0] == 0 if layer.kind == "views" else layer.name == f"captions-{source}"
        entry = {"name": layer.name, "columns": len(layer.columns), "dtype": layer.dtype, "batch": layer.batch_size}
        entry |= {"precision": layer.settings["precision"], "files": len(records), "rows": rows, "bytes": size}
        found.append({**entry, "norms": norms(opened, layer) if read else None})
    return found


def _details(opened: TeacherCache) -> dict[str, str]:
    """Who the teacher is and how it was run, in words."""
    teacher = opened.teacher
    found = {
        "spec": teacher.spec,
        "fingerprint": teacher.fingerprint,
        "embeddings": f"{teacher.embed_dim} numbers",
        "logit scale": f"{teacher.logit_scale:g}"
        + (f", bias {teacher.logit_bias:g}" if teacher.logit_bias is not None else ""),
        "image size": f"{teacher.image_size} px" if teacher.image_size is not None else "no image tower",
    }
    if opened.views:
        found["views"] = f"{opened.views}: {_in_words(opened.policy)}"
    if opened.captions:
        found["captions"] = ", ".join(f"{name} ({count} a sample)" for name, count in opened.captions.items())
    found |= {"weights": str(teacher.identity["weights"])} if "weights" in teacher.identity else {}
    found["made with"] = ", ".join(f"{name} {version}" for name, version in teacher.versions.items()) or "imported"
    return found


def _in_words(policy: ViewPolicy) -> str:
    if policy.kind in {"centre", "squash"}:
        return f"open_clip's preprocessing for evaluation ({policy.kind})"
    if policy.kind == "given":
        return "as the import gave them"
    words = [f"crops of {policy.scale[0]:g} to {policy.scale[1]:g} of the area"]
    words.append(f"aspect ratio {policy.ratio[0]:.3g} to {policy.ratio[1]:.3g}")
    words += [f"mirrored with probability {policy.flip:g}"] if policy.flip else []
    words += [f"colours jittered by {', '.join(f'{by:g}' for by in policy.jitter)}"] if any(policy.jitter) else []
    if policy.rand_augment is not None:
        words.append(f"RandAugment, {policy.rand_augment[0]} operations of magnitude {policy.rand_augment[1]}")
    return "; ".join(words)
