"""What fewer bits cost and save, measured: cosine with the original, retrieval, bytes, milliseconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from clip_models import LoadedModel
from distill.export.calibrated import calibrated_int8
from distill.export.compare import CAPTIONS, shown
from distill.export.graphs import Feeds, run_graph, session
from distill.export.pairs import Pairs, recalled
from shards.errors import UserError

_TIMED = 7
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """The user's pairs to calibrate 8 bits on, and how many points of R@1 these may lose."""

    pairs: Pairs
    most_loss: float


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Of one variant. Cosines are the least and the mean with the original's embeddings, of images and texts.

    `recall`: R@1 in percent on the pairs, the mean of both ways; None without pairs. `size`: bytes of both towers.
    `image_ms`, `text_ms`: the median of a picture, and of a text, alone, on this machine's CPU.
    """

    name: str
    images: tuple[float, float]
    texts: tuple[float, float] | None
    recall: float | None
    size: int
    image_ms: float
    text_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The original first. `measured_on`: in words; `calibrated_on` too, of the variants that were."""

    rows: Sequence[Loss]
    measured_on: str
    pairs: int = 0
    calibrated: Sequence[str] = ()
    calibrated_on: str = ""


@dataclass(frozen=True)
class Towers:
    """Files of one variant: of an image tower (one input, pixels) and of a text tower (one input, ids)."""

    image: Path
    text: Path | None = None


def calibrate_tower(source: Path, out: Path, loaded: LoadedModel, calibration: Calibration) -> None:
    """Quantise one graph of any of the two towers, or both, by what its inputs take."""
    names = [taken.name for taken in session(source).get_inputs()]
    calibrated_int8(source, out, _feeds(names, loaded, calibration.pairs))


def _feeds(names: Sequence[str], loaded: LoadedModel, pairs: Pairs) -> Iterator[Feeds]:
    for pixels, ids in pairs.batches(pairs.calibrate, loaded):
        known = {"attention_mask": np.ones_like(ids), "input_ids": ids, "tokens": ids}
        yield {name: known.get(name, pixels) for name in names}


def measure_losses(
    towers: Mapping[str, Towers],
    loaded: LoadedModel,
    calibration: Calibration | None,
    calibrated: Sequence[str],
) -> Losses:
    """Of variants by name, beside the original, the first of them. `calibrated`: names of those that were.

    On the pairs that were not calibrated on, where there are any; else on the pictures and captions that each export
    is compared by, which are few, and made to be hard.
    """
    sessions = {name: (session(one.image), one.text and session(one.text)) for name, one in towers.items()}
    feeds: Iterable[tuple[Any, Any]]
    if calibration is None:
        feeds = [(shown(loaded.model, loaded.preprocess).numpy(), loaded.tokenizer(CAPTIONS).numpy())]
        told = f"a few made-up pictures and {len(CAPTIONS)} captions that are hard to tokenise"
    else:
        pairs = calibration.pairs
        feeds = pairs.batches(pairs.measure, loaded)
        told = f"{len(pairs.measure):,} pairs of {pairs.dataset.name}"
    found = _embedded(sessions, feeds)
    times = _times(sessions, loaded)
    first = next(iter(towers))
    rows = []
    for name, one in towers.items():
        (images, texts), (own_images, own_texts) = found[name], found[first]
        rows.append(
            Loss(
                name=name,
                images=_cosines(images, own_images),
                texts=None if texts is None else _cosines(texts, own_texts),
                recall=None if calibration is None or texts is None else recalled(images, texts),
                size=sum(path.stat().st_size for path in (one.image, one.text) if path is not None),
                image_ms=times[name][0],
                text_ms=times[name][1],
            )
        )
    if calibration is None:
        return Losses(rows=rows, measured_on=told)
    used = calibration.pairs
    on = f"{len(used.calibrate):,} other pairs of it"
    return Losses(rows=rows, measured_on=told, pairs=len(used.measure), calibrated=calibrated, calibrated_on=on)


def refuse_lossy(losses: Losses, name: str, calibration: Calibration, where: str) -> None:
    """Raise `UserError` with the figures if the variant `name` loses more of R@1 than is allowed."""
    before, after = losses.rows[0], next(row for row in losses.rows if row.name == name)
    if before.recall is None or after.recall is None or before.recall - after.recall <= calibration.most_loss:
        return
    texts = f", of texts {after.texts[1]:.4f}" if after.texts else ""
    raise UserError(
        f"in 8 bits R@1 falls from {before.recall:.2f} to {after.recall:.2f} % on {losses.pairs:,} pairs, more than "
        f"{calibration.most_loss:g} points (mean cosine of images {after.images[1]:.4f}{texts}; "
        f"{before.size / 1e6:.1f} → {after.size / 1e6:.1f} MB)",
        where=where,
        do="Allow more by --most-loss, calibrate on pictures that are like what it will see, or leave --calibrate out",
    )


def _embedded(sessions: Mapping[str, Any], feeds: Any) -> dict[str, tuple[Rows, Rows | None]]:
    parts: dict[str, list[tuple[Rows, Rows | None]]] = {name: [] for name in sessions}
    for pixels, ids in feeds:
        for name, (image, text) in sessions.items():
            parts[name].append((_rows(image, pixels), _rows(text, ids) if text else None))
    found: dict[str, tuple[Rows, Rows | None]] = {}
    for name, pieces in parts.items():
        texts = [texts for _, texts in pieces if texts is not None]
        found[name] = np.concatenate([images for images, _ in pieces]), np.concatenate(texts) if texts else None
    return found


def _rows(running: Any, batch: Any) -> Rows:
    (taken,) = running.get_inputs()
    rows: Rows = run_graph(running, {taken.name: batch})[0].numpy()
    return rows


def _cosines(rows: Rows, others: Any) -> tuple[float, float]:
    cosines = (rows * others).sum(axis=1)
    return float(cosines.min()), float(cosines.mean())


def _times(sessions: Mapping[str, Any], loaded: LoadedModel) -> dict[str, tuple[float, float | None]]:
    """Milliseconds of a picture and of a text, each variant in turn, so that a busy moment meets all of them."""
    pixels, seen = shown(loaded.model, loaded.preprocess)[:1], {name: ([], []) for name in sessions}  # type: ignore[var-annotated]
    text = any(text for _, text in sessions.values())
    ids: Tensor | None = loaded.tokenizer(CAPTIONS[:1]) if text else None
    for _ in range(_TIMED):
        for name, (image, words) in sessions.items():
            seen[name][0].append(_seconds(image, pixels))
            if words and ids is not None:
                seen[name][1].append(_seconds(words, ids))
    return {
        name: (1e3 * median(images), 1e3 * median(texts) if texts else None) for name, (images, texts) in seen.items()
    }


def _seconds(running: Any, batch: Tensor) -> float:
    start = time.perf_counter()
    _rows(running, batch.numpy())
    return time.perf_counter() - start
