"""A student as people use it: which label fits a picture, and embeddings of pictures and texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from distill.use.encoders import Encoders, Rows
from distill.use.pixels import Picture, is_one, preprocessed, upright
from shards.errors import UserError

_BATCH = 32
TEMPLATES = ("a photo of a {}",)


class Student:
    """What `load` returns; `name` is what it was loaded from.

    Pictures are paths, bytes of image files, images of Pillow's, or arrays (h, w, 3) of uint8; one alone, or several
    in any iterable, which are decoded a batch at a time. What is not one is a `UserError` of one line.
    """

    def __init__(self, name: str, encoders: Encoders) -> None:
        self.name = name
        self._encoders = encoders
        self._labelled: tuple[tuple[tuple[str, ...], ...], Rows] | None = None

    def __repr__(self) -> str:
        return f"Student({self.name!r})"

    def classify(
        self,
        images: Picture | Iterable[Picture],
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] = TEMPLATES,
    ) -> Any:
        """Of one picture the probability of each label, the likeliest first (`{"cat": 0.97, ...}`); of more a list.

        A label stands in each template in the place of `{}` (or `{c}`), unless `labels` has prompts for each. As in
        CLIP (Radford et al. 2021, section 3.1): each prompt's embedding is normalised, their mean over the prompts too,
        and the probabilities are the softmax of the logits.
        """
        weights, names = self._weights(labels, templates), tuple(labels)
        found = []
        for batch in self._batches(images):
            logits = self._encoders.scale * batch.astype(np.float64) @ weights.T
            likely = np.exp(logits - logits.max(axis=1, keepdims=True))
            likely /= likely.sum(axis=1, keepdims=True)
            order = np.argsort(-likely, axis=1, kind="stable")
            found += [{names[at]: float(row[at]) for at in places} for row, places in zip(likely, order, strict=True)]
        return found[0] if is_one(images) else found

    def embed_images(self, images: Picture | Iterable[Picture]) -> Rows:
        """(n, D) float32 of unit norm; of one picture alone (D,)."""
        rows = list(self._batches(images))
        if not rows:
            raise UserError("no pictures were given", do="Give at least one")
        return rows[0][0] if is_one(images) else np.concatenate(rows)

    def embed_texts(self, texts: str | Iterable[str]) -> Rows:
        """(n, D) float32 of unit norm; of one text alone (D,).

        Raises `UserError` if the student has no text tower: it meets the texts of its teacher.
        """
        if self._encoders.texts is None:
            raise UserError(
                "this student has no text tower: it was trained to meet the text embeddings of its teacher",
                where=self.name,
                do="Embed the texts with that teacher, and the pictures with embed_images",
            )
        given = [texts] if isinstance(texts, str) else list(texts)
        wrong = next((text for text in given if not isinstance(text, str)), None)
        if wrong is not None or not given:
            problem = f"this is a {type(wrong).__name__}, not a text" if given else "no texts were given"
            raise UserError(problem, do="Give a string, or several")
        rows = [self._encoders.texts(given[start : start + _BATCH]) for start in range(0, len(given), _BATCH)]
        return rows[0][0] if isinstance(texts, str) else np.concatenate(rows)

    def _batches(self, images: Picture | Iterable[Picture]) -> Iterator[Rows]:
        given: Any = [images] if is_one(images) else images
        if not isinstance(given, Iterable):
            upright(given)  # says what it is
        waiting = iter(given)
        with ThreadPoolExecutor() as pool:
            while batch := list(itertools.islice(waiting, _BATCH)):
                yield self._encoders.images(np.stack(list(pool.map(self._pixels, batch))))

    def _pixels(self, picture: Picture) -> Rows:
        return preprocessed(upright(picture), self._encoders.preprocess_cfg)

    def _weights(self, labels: Sequence[str] | Mapping[str, Sequence[str]], templates: Sequence[str]) -> Rows:
        """(labels, D) of unit norm; the last ones are kept, for who asks about one picture after the other."""
        prompts = prompts_of(labels, templates)
        if self._labelled is None or self._labelled[0] != prompts:
            rows = self.embed_texts([text for texts in prompts for text in texts])
            ends = np.cumsum([len(texts) for texts in prompts])[:-1]
            means = np.stack([part.mean(axis=0) for part in np.split(rows, ends)])
            self._labelled = prompts, means / np.linalg.norm(means, axis=1, keepdims=True)
        return self._labelled[1]


def prompts_of(
    labels: Sequence[str] | Mapping[str, Sequence[str]], templates: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """The prompts of each label: its own, or the templates with it in their places.

    Raises `UserError` unless there are two labels or more, and a prompt at least for each.
    """
    names = checked_labels(labels if isinstance(labels, str) else tuple(labels))
    if not isinstance(labels, Mapping):
        forms = checked_templates(templates)
        return tuple(tuple(form.replace("{c}", name).replace("{}", name) for form in forms) for name in names)
    for name, texts in labels.items():
        if isinstance(texts, str) or not texts:
            raise UserError(
                f"the prompts of {name!r} are {texts!r}", do='Give a list of at least one: ["a photo of a cat"]'
            )
    return tuple(tuple(labels[name]) for name in names)


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Raises `UserError` unless these are two texts or more, each another."""
    names = () if isinstance(labels, str) else tuple(labels)
    if len(names) < 2 or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"the labels are {labels!r}", do='Give at least two to choose from: ["cat", "dog"]')
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise UserError(f"the label {twice!r} is there twice", do="Give each once")
    return names


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Raises `UserError` unless these are one text or more with a place for the label."""
    forms = () if isinstance(templates, str) else tuple(templates)
    if not forms or not all(isinstance(form, str) for form in forms):
        raise UserError(f"the templates are {templates!r}", do='Give a list of at least one: ["a photo of a {}"]')
    bare = next((form for form in forms if "{}" not in form and "{c}" not in form), None)
    if bare is not None:
        raise UserError(f"the template {bare!r} has no {{}}", do="Write {} where the label goes")
    return forms
