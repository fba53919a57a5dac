"""DataCompDR in, a teacher cache out: the published embeddings, beside images that `clipstill ingest` fetched.

A sample of ours is matched by a column of its JSON (`--format datacomp` keeps `uid`) or by its key. It is left out, and
counted, where what was embedded is not what we hold:

    ambiguous  the tars have several samples of its name, and they differ
    changed    the image's SHA-256 or the caption differs
    turned     its EXIF turns the picture, which Apple's crops do not
    misfit     a crop reaches beyond the image: it was measured on another one

Crops are in pixels of the original; where a sample's JSON in the tars has `width` and `height` (as ours have, and
tars that were made from img2dataset's), of an image of that size.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import Dataset, Folder, Shard, UserError
from shards.executor import Executor
from shards.key_index import Entry
from teacher_cache.dtypes import Dtype, check_dtype
from teacher_cache.exchange.claims import check_claims
from teacher_cache.exchange.datacompdr import SIDE, TEACHERS, Reinforced, parse, views_of
from teacher_cache.exchange.layers import ImportLayer, ImportReport, Rows, publish_facts_of, run_import, size_of
from teacher_cache.exchange.tars import IndexedTars, index_tars, look_at
from teacher_cache.layout import Kind, LayerFacts, TeacherFacts, refuse_no_cache, slug, views_layer_name
from teacher_cache.views import View, ViewPolicy

_TOGETHER = 10
"""Views in one layer: a worker holds one layer of a shard at a time."""

_ASKED = 100
"""Samples that are asked how many views and captions there are."""

_POLICY = ViewPolicy(kind="given")
_UPRIGHT = "Horizontal (normal)"


def import_datacompdr(
    tars: Sequence[str],
    shards: str,
    cache: str,
    executor: Executor,
    *,
    key_column: str | None = "uid",
    tag: str = "",
    teachers: Sequence[tuple[str, int, float]] = TEACHERS,
    dtype: Dtype = "float16",
) -> ImportReport:
    """Import the embeddings in `tars` for the dataset at `shards`; goes on where it stopped.

    `key_column`: the field of our samples' JSON that the tars' members are named by; None: our keys. `tag`: that of the
    embeddings, where the tars have several ensembles'. `teachers`: name, columns and logit scale of each part, in
    order; each becomes a teacher's folder with the views, the real captions (`captions-txt`) and the synthetic ones
    with their texts (`captions-syn`, of a tagged captioner `captions-syn-TAG`). Views and captions are as many as most
    samples have (out of a hundred, from all tars); of those with more the rest is cut, fewer are repeated in turn, and
    both are counted as `uneven`.

    Raises:
        UserError: a tar or a member is damaged or not what it should be, or nothing matches.
        IncompleteError: shards are missing at the end.
    """
    check_dtype(dtype)
    dataset = Dataset.open(shards)
    if len({slug(name) for name, _, _ in teachers}) != len(teachers) or not teachers:
        raise UserError("each teacher needs a name of its own", where=", ".join(name for name, _, _ in teachers))
    refuse_no_cache(Folder(cache), [slug(name) for name, _, _ in teachers])
    look_at(tars)
    for name, columns, _ in teachers:
        check_claims(name, width=columns)  # brings open_clip
    with Folder(cache).alone():
        indexed = index_tars(tars, Folder(cache))
        width = sum(width for _, width, _ in teachers)
        source = DataCompDR(indexed, width, key_column, tag, *_usual(indexed, width, tag))
        layers: list[ImportLayer] = []
        folders: list[tuple[Folder, TeacherFacts]] = []
        start = 0
        for name, columns, scale in teachers:
            folder, part = Folder(cache).child(slug(name)), (start, start + columns)
            facts = TeacherFacts(
                name=slug(name),
                spec=name,
                identity={
                    "imported": "datacompdr",
                    "model": name,
                    "columns": list(part),
                    "from": indexed.content,
                    **({"tag": tag} if tag else {}),
                },
                embed_dim=columns,
                logit_scale=scale,
                logit_bias=None,
                image_size=SIDE,
                has_text=True,
                versions={},
            )
            folders.append((folder, facts))
            layers += [
                ImportLayer(folder.child(layer.name), layer, first, part, source.texts_of(layer.name))
                for first, layer in _layers(facts, source, dataset.name, dtype)
            ]
            start += columns
        publish_facts_of(folders, layers)
        return run_import(source, layers, dataset, executor, indexed.rows)


def _usual(tars: IndexedTars, width: int, tag: str) -> tuple[int, dict[str, int]]:
    """How many views, and of each set how many synthetic captions, most samples have; of equally many, the larger
    number.

    Raises `UserError` if none of those looked at can be read: what is damaged otherwise need not be ours.
    """
    found: list[tuple[int, dict[str, int]]] = []
    damage: UserError | None = None
    for entries in tars.some(_ASKED):
        try:
            sample = _parsed(tars, tars.read(entries) or {}, entries[0], width, tag)
        except UserError as error:
            damage = damage or error
        else:
            found.append((len(sample.images), {name: len(texts) for name, texts in sample.captions.items()}))
    if not found and damage is not None:
        raise damage
    names = sorted({name for _, captions in found for name in captions})
    counts = {name: _most([captions.get(name, 0) for _, captions in found]) for name in names}
    return _most([views for views, _ in found]), {name: count for name, count in counts.items() if count}


def _most(sizes: Sequence[int]) -> int:
    return Counter(sorted(sizes, reverse=True)).most_common(1)[0][0]


def _layers(teacher: TeacherFacts, source: DataCompDR, dataset: str, dtype: Dtype) -> Iterator[tuple[int, LayerFacts]]:
    """Each layer and the source's column that it begins with: views ten at a time, the real captions, the synthetic."""

    def layer(kind: Kind, name: str, columns: Sequence[int], settings: dict[str, Any]) -> LayerFacts:
        return LayerFacts(
            kind=kind,
            name=name,
            columns=tuple(columns),
            teacher=teacher.fingerprint,
            settings={"dtype": dtype, "precision": "", **settings},
            dataset=dataset,
            batch_size=0,
        )

    for first in range(0, source.views, _TOGETHER):
        columns = range(first, min(first + _TOGETHER, source.views))
        yield first, layer("views", views_layer_name(columns), columns, {"policy": _POLICY.identity()})
    yield source.views, layer("captions", "captions-txt", (0,), {"source": {"kind": "txt", "count": 1}})
    for name, numbers in source.numbers().items():
        # The texts lie in the layer, as those of a table do.
        column = f"syn_text{name.removeprefix('syn')}"
        texts = {"kind": "table", "count": len(numbers), "column": column, "sha256": source.tars.content}
        first = source.views + 1 + numbers.start
        yield first, layer("captions", f"captions-{name}", range(len(numbers)), {"source": texts})


@dataclass(frozen=True)
class DataCompDR:
    """The source. `width` is D; its columns are K = `views`, the real caption, then each synthetic set's `captions`."""

    tars: IndexedTars
    width: int
    key_column: str | None
    tag: str
    views: int
    captions: Mapping[str, int]

    def numbers(self) -> dict[str, range]:
        """Which of all the synthetic captions of a sample are those of each set."""
        ends = np.cumsum([0, *self.captions.values()]).tolist()
        return {name: range(ends[at], ends[at + 1]) for at, name in enumerate(self.captions)}

    def texts_of(self, layer: str) -> range | None:
        """Which of a sample's texts lie in a layer; None of a layer that keeps none."""
        return self.numbers().get(layer.removeprefix("captions-"))

    def gather(self, shard: Shard, scratch: Path) -> Rows:
        """Reads in the order of the tars, writes in the shard's."""
        columns = self.views + 1 + sum(self.captions.values())
        embeddings = np.lib.format.open_memmap(
            scratch / "rows.npy", "w+", np.float32, (columns, shard.count, self.width)
        )
        params = np.zeros((shard.count, self.views), _POLICY.dtype)
        texts: list[list[str]] = [[] for _ in range(shard.count)]
        counts: Counter[str] = Counter()
        found = [self.tars.find(name) if name else [] for name in self._names(shard)]
        kept = []
        for row in sorted(range(shard.count), key=lambda row: found[row][:1]):
            if not found[row]:
                counts["absent"] += 1
                continue
            counts["claimed"] += len(found[row])
            members = self.tars.read(found[row])
            if members is None:
                counts["ambiguous"] += 1
                continue
            sample = _parsed(self.tars, members, found[row][0], self.width, self.tag)
            views, cause = _views(sample, shard, row, self.tars.where(found[row][0]))
            if views is None:
                counts[cause] += 1
                continue
            kept.append(row)
            sizes = {name: len(sample.captions.get(name, ())) for name in self.captions}
            counts["uneven"] += (len(views), sizes) != (self.views, dict(self.captions))
            for column in range(self.views):
                embeddings[column, row] = sample.images[column % len(views)]
            params[row] = _POLICY.pack([views[column % len(views)] for column in range(self.views)])
            embeddings[self.views, row] = sample.texts[0]
            firsts = np.cumsum([1, *map(len, sample.captions.values())]).tolist()
            starts = dict(zip(sample.captions, firsts, strict=False))
            for name, numbers in self.numbers().items():
                own = sample.captions.get(name)
                if not own:
                    where = self.tars.where(found[row][0])
                    raise UserError(f"{shard.keys[row]} has no synthetic captions ({name}), others have", where=where)
                for at, number in enumerate(numbers):
                    embeddings[self.views + 1 + number, row] = sample.texts[starts[name] + at % len(own)]
                    texts[row].append(own[at % len(own)])
        kept.sort()
        keys = [shard.keys[row] for row in kept]
        return Rows(keys, embeddings, np.array(kept, np.int64), params, [texts[row] for row in kept], counts)

    def _names(self, shard: Shard) -> list[str]:
        """What the tars call each sample of ours."""
        if self.key_column is None:
            return shard.keys
        names = [shard.meta(row).get(self.key_column) for row in range(shard.count)]
        if names and all(name is None for name in names):
            raise UserError(
                f"no sample has {self.key_column!r} in its JSON",
                where=shard.tar,
                do="Ingest with --format datacomp, or --keep the column; or join by another one",
            )
        # A sample without a name is in no tar.
        return ["" if name is None else str(name) for name in names]


def _parsed(tars: IndexedTars, members: dict[str, bytes], entry: Entry, width: int, tag: str) -> Reinforced:
    try:
        return parse(members, width, tag)
    except ValueError as error:
        raise UserError(
            f"the sample at byte {entry.start} cannot be used: {error}", where=tars.where(entry), do="Download it again"
        ) from None


def _views(sample: Reinforced, shard: Shard, row: int, where: str) -> tuple[list[View] | None, str]:
    """The sample's views of our image; else None, and why not."""
    ours = shard.meta(row)
    theirs = sample.meta
    hashes = {str(meta["sha256"]).lower() for meta in (ours, theirs) if meta.get("sha256")}
    if len(hashes) == 2:
        return None, "changed"
    if sample.caption is not None and sample.caption.strip() != shard.caption(row).strip():
        return None, "changed"
    size = _size(theirs, "width", "height")
    if size is None:
        if _is_turned(ours.get("exif")):
            return None, "turned"
        size = _size(ours, "original_width", "original_height")
    if size is None:
        size = size_of(shard, row)
    try:
        return views_of(sample.augmentations, *size), "misfit"
    except ValueError as error:
        raise UserError(f"{shard.keys[row]}: {error}", where=where, do="Download it again") from None


def _size(meta: dict[str, Any], *names: str) -> tuple[int, int] | None:
    match [meta.get(name) for name in names]:
        case [int(width), int(height)] if width > 0 and height > 0:
            return width, height
    return None


def _is_turned(exif: Any) -> bool:
    """Whether img2dataset's string of a picture's EXIF has an orientation other than upright."""
    with contextlib.suppress(ValueError, TypeError):
        tags = json.loads(exif)
        if isinstance(tags, dict):
            return bool(tags.get("Image Orientation", _UPRIGHT) != _UPRIGHT)
    return False
