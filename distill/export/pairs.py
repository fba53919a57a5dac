"""Pairs of a user's own dataset, by which 8 bits are calibrated and what they lose is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clip_models import LoadedModel
from distill.export.compare import has_text
from distill.use.pixels import preprocessed, upright
from shards import Dataset
from shards.errors import UserError

_CALIBRATE = 128
_MEASURE = 1000
_FEWEST = 20
_BATCH = 32

Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Pixels (n, 3, h, w) and token ids (n, context_length)."""


@dataclass(frozen=True)
class Pairs:
    """Samples of a dataset, evenly spread over it, each with a caption that no other has.

    Those at `calibrate` are shown to the calibration, those at `measure` are not.
    """

    dataset: Dataset
    calibrate: Sequence[int]
    measure: Sequence[int]

    @staticmethod
    def of(dataset: Dataset) -> Pairs:
        """Raises `UserError` if the dataset has too few captions that differ."""
        chosen: dict[str, int] = {}
        # Twice as many places as are wanted, for captions that are there twice.
        wanted = min(len(dataset), 2 * (_CALIBRATE + _MEASURE))
        for place in np.linspace(0, len(dataset) - 1, wanted, dtype=np.int64) if wanted else ():
            if caption := dataset.at(int(place)).caption:
                chosen.setdefault(caption, int(place))
        places = list(chosen.values())
        if len(places) < _FEWEST:
            raise UserError(
                f"{len(places)} captions that differ are too few to calibrate and to measure on",
                where=str(dataset.folder),
                do=f"Give a dataset with {_FEWEST} of them; a thousand make one point of R@1 ten pairs",
            )
        held = max(1, len(places) // min(_CALIBRATE, len(places) // 2))
        calibrate = places[::held][:_CALIBRATE]
        measure = [place for place in places if place not in set(calibrate)][:_MEASURE]
        return Pairs(dataset, calibrate, measure)

    def batches(self, places: Sequence[int], loaded: LoadedModel) -> Iterator[Batch]:
        """As the model is shown them, a few at a time; no ids of a model without a text tower.

        Raises `UserError` for an image that cannot be decoded.
        """
        settings = loaded.config["preprocess_cfg"]
        for start in range(0, len(places), _BATCH):
            samples = [self.dataset.at(place) for place in places[start : start + _BATCH]]
            pixels = np.stack([preprocessed(upright(sample.image_bytes), settings) for sample in samples])
            captions = [sample.caption for sample in samples]
            yield pixels, loaded.tokenizer(captions).numpy() if has_text(loaded.model) else np.zeros((0, 0), np.int64)


def recalled(images: npt.NDArray[Any], texts: npt.NDArray[Any]) -> float:
    """R@1 of pairs in percent, the mean of both ways; of equal scores the pair's own comes last."""
    scores = images @ texts.T
    own = np.diag(scores)
    others = scores - np.diag(np.full(len(own), np.inf))
    both = own > others.max(axis=1), own > others.max(axis=0)
    return float(100 * np.mean(both))
