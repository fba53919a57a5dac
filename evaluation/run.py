"""Evaluate a model on a dataset of shards."""

from __future__ import annotations

import difflib
import io
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from clip_models import LoadedModel
from evaluation.retrieval import SHARED, recall_of_groups
from evaluation.zero_shot import Template, at_least_single, class_weights, top_k
from shards.errors import UserError
from shards.reader import Dataset
from shards.shard import Shard

_BATCHES_AHEAD = 2


class Dealt(Protocol):
    """Processes that share an evaluation. `total` is the sum over them, `heard` what each says."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def total(self, values: Tensor) -> Tensor: ...
    def heard(self, word: Any) -> list[Any]: ...


@torch.no_grad()
def evaluate(
    loaded: LoadedModel,
    dataset: Dataset,
    *,
    classes: Sequence[str] | None,
    templates: Sequence[Template],
    label_field: str | None,
    batch_size: int,
    device: str | torch.device,
    dealt: Dealt | None = None,
) -> dict[str, Any]:
    """Embed every sample with the model's own preprocessing and score it; all results are plain JSON values.

    Returns `{"samples": n, "zero_shot": {"top1", "top5", "classes": C} or None, "retrieval": see `recall`, and
    "shared_captions"}`, accuracy and recall in percent; "retrieval" is None if the dataset has no captions. The model
    is moved to `device` and computes in its own dtype; it must be in evaluation mode.

    Zero-shot runs if `classes` is given: `label_field` then names the field of a sample's metadata that holds its class
    name. A name that occurs twice in `classes` is one class, as nothing could tell the two apart.

    Retrieval is the standard protocol (one caption a sample, every caption and every image a query), except that
    samples whose captions are the same string are all right answers to each other: a retrieved image *with the same
    caption* is a hit. Without that a dataset that repeats captions would punish a perfect model. With it retrieval is
    the easier the more repeat: `shared_captions` counts the samples whose caption others have too.

    `dealt`: processes that all call this and embed a share of the batches each; the first one returns the results, the
    others nothing, {}.

    Raises `UserError` if the dataset is empty, there is nothing to measure (no captions, no classes), an image cannot
    be decoded, or a label is missing or no class; in every process if in one.
    """
    if loaded.model.training:
        raise ValueError("evaluate needs the model in evaluation mode")
    if len(dataset) == 0:
        raise UserError("the dataset has no samples", where="evaluate", do="Give one with samples")
    if classes is not None and label_field is None:
        raise UserError("classes were given, but no label field", where="zero-shot", do="Name the metadata field")
    check_captioned(dataset, is_classified=classes is not None)
    model = loaded.model.to(device)
    dtype = next(model.parameters()).dtype
    names = list(dict.fromkeys(classes or ()))
    weights = class_weights(model, loaded.tokenizer, names, templates) if classes is not None else None
    numbers = {name: number for number, name in enumerate(names)}

    captions: list[str] = []
    labels: list[int] = []
    width = loaded.config["model_cfg"]["embed_dim"]
    images, texts = (torch.zeros(len(dataset), width, dtype=torch.promote_types(dtype, torch.float32)) for _ in "it")

    def embed() -> None:
        for batch in _batches(dataset, loaded.preprocess, batch_size, dealt):
            rows = slice(len(captions), len(captions) + len(batch.samples))
            if batch.images:
                pixels = torch.stack([image.result() for image in batch.images]).to(device, dtype)
                images[rows] = at_least_single(model.encode_image(pixels, normalize=True)).cpu()
                if dataset.captioned:
                    tokens = loaded.tokenizer(batch.captions).to(device)
                    texts[rows] = at_least_single(model.encode_text(tokens, normalize=True)).cpu()
            captions.extend(batch.captions)
            if weights is not None and label_field is not None:
                labels.extend(_label(sample, label_field, numbers) for sample in batch.samples)
            for shard in {sample.shard for sample in batch.samples}:
                shard.release()

    if dealt is None:
        embed()
    else:
        _together(embed, dealt)
        images, texts = dealt.total(images), dealt.total(texts)
        if dealt.rank > 0:
            return {}

    zero_shot = None
    if weights is not None:
        zero_shot = {**top_k(images, weights, torch.tensor(labels)), "classes": len(names)}
    retrieval: dict[str, Any] | None = None
    if dataset.captioned:
        caption_numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        groups = torch.tensor([caption_numbers[caption] for caption in captions])
        retrieval = {**recall_of_groups(images, texts, groups, groups), SHARED: shared(captions)}
    return {"samples": len(captions), "zero_shot": zero_shot, "retrieval": retrieval}


def _together(work: Callable[[], None], dealt: Dealt) -> None:
    """Do it in every process; what is refused in one is refused in all, for they would wait for it."""
    refused = None
    try:
        work()
    except UserError as error:
        refused = [error.problem, error.where, error.do]
    for told in dealt.heard(refused):
        if told is not None:
            problem, where, do = told
            raise UserError(problem, where=where, do=do)


def check_captioned(dataset: Dataset, *, is_classified: bool) -> None:
    """Raise `UserError` if a dataset has neither captions to retrieve nor classes to tell apart."""
    if not dataset.captioned and not is_classified:
        raise UserError(
            "this dataset has no captions: its list had none, so nothing can be retrieved",
            where=str(dataset.folder),
            do="Give --classes and --label for zero-shot classification, which needs none",
        )


def shared(captions: Iterable[str]) -> int:
    """How many of the samples have a caption that another has too."""
    return sum(count for count in Counter(captions).values() if count > 1)


def shared_note(count: int, samples: int) -> str | None:
    """What equal captions mean for the figures of retrieval; None if there are none."""
    told = f"retrieval: {count} of {samples} samples share their caption with others, any of which counts as a hit"
    return told if count else None


class _Sample(NamedTuple):
    shard: Shard
    row: int

    def __str__(self) -> str:
        return f"shard {self.shard.id:05d}, sample {self.row}"


class _Batch(NamedTuple):
    samples: list[_Sample]
    captions: list[str]
    images: list[Future[Tensor]]


def _batches(
    dataset: Dataset, preprocess: Callable[[Image.Image], Tensor], batch_size: int, dealt: Dealt | None
) -> Iterator[_Batch]:
    """The dataset in order. While one batch is used, the next ones are decoded by a few threads.

    Of batches that are dealt out those of other processes have no images.
    """
    rank, size = (dealt.rank, dealt.size) if dealt else (0, 1)
    turns = itertools.cycle(range(size))
    samples = (_Sample(shard, row) for shard in dataset.shards for row in range(shard.count))
    waiting: deque[_Batch] = deque()
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        batch: list[_Sample] = []
        for sample in samples:
            batch.append(sample)
            if len(batch) == batch_size:
                waiting.append(_started(batch, preprocess, pool if next(turns) == rank else None))
                batch = []
            if len(waiting) > _BATCHES_AHEAD:
                yield waiting.popleft()
        if batch:
            waiting.append(_started(batch, preprocess, pool if next(turns) == rank else None))
        yield from waiting
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _started(
    samples: list[_Sample], preprocess: Callable[[Image.Image], Tensor], pool: ThreadPoolExecutor | None
) -> _Batch:
    captions = [sample.shard.caption(sample.row) for sample in samples]
    if pool is None:
        return _Batch(samples, captions, [])
    images = [pool.submit(_pixels, sample, sample.shard.image_bytes(sample.row), preprocess) for sample in samples]
    return _Batch(samples, captions, images)


def _pixels(sample: _Sample, data: bytes, preprocess: Callable[[Image.Image], Tensor]) -> Tensor:
    try:
        with Image.open(io.BytesIO(data)) as image:
            decoded = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"the image cannot be decoded: {error}", where=str(sample), do="Run `clipstill shards verify`"
        ) from error
    return preprocess(decoded)


def _label(sample: _Sample, field: str, numbers: dict[str, int]) -> int:
    meta = sample.shard.meta(sample.row)
    if field not in meta:
        held = ", ".join(sorted(meta)) or "none"
        raise UserError(f"there is no field {field!r}", where=str(sample), do=f"Its fields: {held}")
    name = meta[field]
    if not isinstance(name, str) or name not in numbers:
        close = difflib.get_close_matches(str(name), numbers, n=3)
        do = f"The closest are {', '.join(close)}" if close else "Labels are written as the class names are"
        raise UserError(f"the label {name!r} in field {field!r} is no class", where=str(sample), do=do)
    return numbers[name]
