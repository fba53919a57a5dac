"""Evaluation of the student while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from clip_models import LoadedModel, ModelConfig, tokenizer_for
from distill.settings import EvaluationSettings
from distill.training.ranks import Ranks
from evaluation.classes import read_classes
from evaluation.retrieval import SHARED
from evaluation.run import check_captioned, evaluate, shared, shared_note
from shards import Dataset, UserError


class InRun:
    """Evaluates an open_clip module by `EvaluationSettings`; everything it needs is opened when it is made.

    `note` says what a reader of the figures must know, if anything.
    Raises `UserError` for a dataset or classes that cannot be used.
    """

    def __init__(self, settings: EvaluationSettings, config: ModelConfig, device: torch.device) -> None:
        self.settings, self._config, self._device = settings, config, device
        self._dataset = Dataset.open(settings.shards)
        check_captioned(self._dataset, is_classified=settings.classes is not None)
        if settings.best is not None and "retrieval" in settings.best and not self._dataset.captioned:
            raise UserError(
                f"{settings.best} cannot be measured on a dataset without captions",
                where=settings.shards,
                do="Give --best eval/zero_shot/top1",
            )
        self.note = shared_note(shared(self._captions()), len(self._dataset)) if self._dataset.captioned else None
        self._classes: list[str] | None = None
        self._templates: list[str] = []
        if settings.classes:
            self._classes, self._templates = read_classes(settings.classes)
            self._check_labels()
        self._preprocess = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False)
        self._tokenizer = tokenizer_for(config)

    def _captions(self) -> Iterator[str]:
        for shard in self._dataset.shards:
            yield from (shard.caption(row) for row in range(shard.count))
            shard.release()

    def _check_labels(self) -> None:
        """Refuse now, not after a thousand steps, a field or classes that the dataset does not have."""
        label, known = self.settings.label or "", set(self._classes or ())
        for shard in self._dataset.shards:
            for row in range(shard.count):
                meta = shard.meta(row)
                if label not in meta:
                    raise UserError(
                        f"{shard.keys[row]} has no field {label!r}; its fields: {', '.join(sorted(meta)) or 'none'}",
                        where=self.settings.shards,
                        do="Name one of them as --label",
                    )
                if meta[label] not in known:
                    raise UserError(
                        f"{meta[label]!r}, the {label} of {shard.keys[row]}, is none of the {len(known)} classes",
                        where=str(self.settings.classes),
                        do="Add it, or name another field as --label",
                    )
            shard.release()

    def __call__(self, model: Any, ranks: Ranks) -> dict[str, float]:
        """The figures as the log names them: `eval/zero_shot/top1`, `eval/retrieval/image_to_text/R@1`, ...

        All processes call it and embed a share each; the first one has the figures. The module is left in evaluation
        mode.
        """
        loaded = LoadedModel("student", model.eval(), self._config, self._preprocess, self._tokenizer)
        found = evaluate(
            loaded,
            self._dataset,
            classes=self._classes,
            templates=self._templates,
            label_field=self.settings.label,
            batch_size=self.settings.batch_size,
            device=self._device,
            dealt=ranks if ranks.size > 1 else None,
        )
        return {f"eval/{name}": value for name, value in _flat(found) if name not in _COUNTS}


_COUNTS = ("samples", "zero_shot/classes", f"retrieval/{SHARED}")


def _flat(tree: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            flat += [(f"{name}/{inner}", number) for inner, number in _flat(value)]
        elif value is not None:
            flat.append((name, float(value)))
    return flat
