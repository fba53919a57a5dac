"""One pass over a cache: the score of every pair, the mean of every shard, and the images' embeddings in one piece.

What is held a sample is 13 bytes; the embeddings go to a file, for `duplicates.py` reads them in every order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teacher_cache.layer_files import LayerFile
from teacher_cache.layout import LayerFacts
from teacher_cache.reader import TeacherCache

BINS = np.linspace(-1, 1, 801)
"""Edges of the bins in which scores are counted."""
_ROWS = 8192

Floats = npt.NDArray[np.float32]


@dataclass
class SetScores:
    """Of one caption set, over all its `columns`: how many `pairs` there are, their `mean` score (NaN without any), and
    the share of the images whose own caption scores higher than the next sample's.
    """

    columns: int
    pairs: int = 0
    total: float = 0.0
    higher: int = 0
    compared: int = 0

    def add(self, own: Floats, other: Floats) -> None:
        """The scores of some images with their own captions, and with those of the next samples."""
        self.pairs, self.total = self.pairs + len(own), self.total + float(own.sum(dtype=np.float64))
        if len(own) > 1:
            self.higher, self.compared = self.higher + int((own > other).sum()), self.compared + len(own)

    @property
    def mean(self) -> float:
        return self.total / self.pairs if self.pairs else float("nan")

    @property
    def ahead(self) -> float:
        return self.higher / self.compared if self.compared else float("nan")


@dataclass(frozen=True)
class Scores:
    """Samples stand in the dataset's order, n of them in S shards.

    `sets` has what each caption set scores. `clip` (n,): cosine of view 0 and caption 0 of the set `source`, NaN where
    one is missing. `mismatched` (800,) counts by `BINS` the cosine of every image with the caption of the next sample;
    `ahead` is the share of the images whose own caption scores higher (NaN without pairs). `samples` (m,): which have a
    usable image; `rows` (m, D) of them, float16.
    `means` (S, D): each shard's mean embedding, of images or, without any, of captions; `counts` (S,) over how many.
    `shard_scores` (S,): mean score, NaN where a shard has no pairs; `pairs` (S,) how many it has. `offsets` (S + 1,):
    the sample that each shard begins with.
    """

    source: str | None
    sets: dict[str, SetScores]
    clip: Floats
    mismatched: npt.NDArray[np.int64]
    ahead: float
    samples: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float16]
    means: Floats
    counts: npt.NDArray[np.int64]
    shard_scores: npt.NDArray[np.float64]
    pairs: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def place(self, sample: int) -> tuple[int, int]:
        """The place of a sample's shard, and its row there."""
        place = int(np.searchsorted(self.offsets, sample, side="right")) - 1
        return place, sample - int(self.offsets[place])


def score(cache: TeacherCache, scratch: Path, advance: Callable[[int], None] = lambda _: None) -> Scores:
    """Read view 0 and caption 0 of every sample, shard by shard; `advance` hears how many more samples were read.

    The captions are those of the set `txt`, or of the first one. `scratch` is a folder with room for one view.
    """
    shards = cache.dataset.shards
    source = "txt" if "txt" in cache.captions else next(iter(cache.captions), None)
    offsets = np.concatenate([[0], np.cumsum([shard.count for shard in shards])]).astype(np.int64)
    total, width = int(offsets[-1]), cache.teacher.embed_dim
    clip = np.full(total, np.nan, np.float32)
    usable = np.zeros(total, np.bool_)
    room = total if cache.views else 1
    rows = np.memmap(scratch / "rows", np.float16, "w+", shape=(room, width))
    means, counts = np.zeros((len(shards), width), np.float32), np.zeros(len(shards), np.int64)
    mismatched = np.zeros(len(BINS) - 1, np.int64)
    ahead = compared = written = 0
    sets = {name: SetScores(columns) for name, columns in cache.captions.items()} if cache.views else {}
    for place, shard in enumerate(shards):
        total_embedding = np.zeros(width)
        for start in range(0, shard.count, _ROWS):
            at = np.arange(start, min(start + _ROWS, shard.count))
            places = np.stack([np.full(len(at), place), at], axis=1)
            # What is not finite makes numbers that are not; they are left out below.
            with np.errstate(invalid="ignore", over="ignore"):
                image = cache.image(places, np.zeros(len(at), np.int64)) if cache.views else None
                text = cache.text(places, 0, source) if source is not None else None
            seen, read = _usable(image, len(at)), _usable(text, len(at))
            tower, good = (image, seen) if image is not None else (text, read)
            assert tower is not None, "a cache has images or captions"
            total_embedding += tower[good].sum(axis=0, dtype=np.float64)
            counts[place] += int(good.sum())
            if image is not None:
                kept = int(seen.sum())
                rows[written : written + kept] = image[seen]
                written += kept
                usable[offsets[place] + at] = seen
            if image is not None and text is not None:
                both, own, other = _compared(image, seen, text, read)
                clip[offsets[place] + at[both]] = own
                if len(both) > 1:
                    mismatched += np.histogram(other, BINS)[0]
                    ahead, compared = ahead + int((own > other).sum()), compared + len(both)
                for name, found in sets.items():
                    for column in range(found.columns):
                        with np.errstate(invalid="ignore", over="ignore"):
                            text = cache.text(places, column, name)
                        found.add(*_compared(image, seen, text, _usable(text, len(at)))[1:])
            advance(len(at))
        means[place] = total_embedding / max(counts[place], 1)
        shard.release()
    pairs = np.array([np.isfinite(part).sum() for part in np.split(clip, offsets[1:-1])], np.int64)
    sums = np.array([np.nansum(part, dtype=np.float64) for part in np.split(clip, offsets[1:-1])])
    return Scores(
        source=source,
        sets=sets,
        clip=clip,
        mismatched=mismatched,
        ahead=ahead / compared if compared else float("nan"),
        samples=np.flatnonzero(usable),
        rows=rows[:written],
        means=means,
        counts=counts,
        shard_scores=np.where(pairs > 0, sums / np.maximum(pairs, 1), np.nan),
        pairs=pairs,
        offsets=offsets,
    )


def _compared(
    image: Floats, seen: npt.NDArray[np.bool_], text: Floats, read: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Which rows have both, and their images' scores with their own captions and with those of the next of them."""
    both = np.flatnonzero(seen & read)
    own = np.einsum("nd,nd->n", image[both], text[both])
    return both, own, np.einsum("nd,nd->n", image[both], np.roll(text[both], -1, axis=0))


def _usable(rows: Floats | None, count: int) -> npt.NDArray[np.bool_]:
    """(count,): which rows are there and numbers; a sample without an embedding has zeros."""
    if rows is None:
        return np.zeros(count, np.bool_)
    return np.asarray(np.isfinite(rows).all(axis=1) & rows.any(axis=1))


@dataclass(frozen=True)
class LayerNorms:
    """Of the first column of one layer, as stored: how far norms are from 1, the `mean` and the `most` of it, in which
    `file` that is; `broken` rows are zero or not finite and count for neither.
    """

    mean: float
    most: float
    file: str
    broken: int


def norms(cache: TeacherCache, layer: LayerFacts) -> LayerNorms:
    """Read one column of every file of a layer.

    Raises `UserError` if a file is not what its record says.
    """
    total, count, broken = 0.0, 0, 0
    most, worst = 0.0, ""
    for number, record in cache.joined(layer.name).records.items():
        file = LayerFile(cache.folder.child(layer.name), layer, record, cache.teacher.embed_dim)
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = file.norms(0)
        good = np.isfinite(lengths) & (lengths > 0)
        broken += int((~good).sum())
        off = np.abs(lengths[good] - 1)
        total, count = total + float(off.sum(dtype=np.float64)), count + len(off)
        if off.size and float(off.max()) > most:
            most, worst = float(off.max()), f"{number:05d}.arrow"
    return LayerNorms(total / max(count, 1), most, worst, broken)
