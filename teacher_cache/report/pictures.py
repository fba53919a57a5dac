"""Samples as the page shows them: what the teacher saw in view 0, small, with caption, key and score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from pages.sheet import data_url, part_of
from shards import Shard
from teacher_cache.captions import source_of
from teacher_cache.reader import TeacherCache
from teacher_cache.report.scores import Scores
from teacher_cache.views import EncodedImage

_SIDE = 176


class Pictures:
    """Reads single samples from the tars."""

    def __init__(self, cache: TeacherCache, scores: Scores) -> None:
        self._cache, self._scores = cache, scores
        facts = {layer.name: layer for layer in cache.layers}
        self._captions = facts.get(f"captions-{scores.source}")

    def cell(self, sample: int) -> dict[str, Any]:
        """`image` (a data URL, "" if the picture cannot be read), `caption`, `key`, `shard`, `score` (or None)."""
        place, row = self._scores.place(sample)
        shard = self._cache.dataset.shards[place]
        clip = float(self._scores.clip[sample])
        cell = {
            "image": self._picture(shard, place, row),
            "caption": self._caption(shard, place, row, sample),
            "key": shard.keys[row],
            "shard": f"{shard.id:05d}",
            "score": clip if math.isfinite(clip) else None,
        }
        shard.release()
        return cell

    def _picture(self, shard: Shard, place: int, row: int) -> str:
        where, name = shard.record.file(".tar").place(shard.folder)
        data = part_of(where, name, *shard.places(row)[0])
        try:
            view = self._cache.view(place, row, 0)
            return data_url(Image.fromarray(self._cache.policy.render(EncodedImage(data), view, _SIDE)))
        except OSError:
            return ""

    def _caption(self, shard: Shard, place: int, row: int, sample: int) -> str:
        # Of a sample without a score it is not known whether its caption was embedded.
        if self._captions is None or not np.isfinite(self._scores.clip[sample]):
            return shard.caption(row)
        text = self._cache.caption(place, row, 0, self._captions.name.removeprefix("captions-"))
        if text is None:
            text = source_of(self._captions.settings["source"]).texts(shard, [row])[0][0]
        return text
