"""Evaluation of the student while it trains, on any evaluation set, dealt out over the run's processes."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.nn.functional import pad

from clip_models import LoadedModel, ModelConfig, Precision, tokenizer_for
from distill.settings import EvaluationSettings
from distill.training.ranks import Ranks
from evaluation.run import evaluate
from evaluation.sets import open_by_name, refuse_unknown_figure
from shards import UserError

_NO_FIGURES = ("samples", "speed")
_COUNTS = ("classes", "captions", "instances", "shared_captions")


class InRun:
    """Evaluates an open_clip module by `EvaluationSettings`; everything it needs is opened when it is made.

    Every process of a run makes one and calls it; each embeds its part of the images and texts. `note` says what a
    reader of the figures must know, if anything. `refused`: of the last call, the sets that gave no figures, and why.
    Raises `UserError` for a set or classes that cannot be used.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        config: ModelConfig,
        device: torch.device,
        precision: Precision = "fp32",
        ranks: Ranks | None = None,
    ) -> None:
        self.settings, self._config, self._device, self._precision = settings, config, device, precision
        self._ranks = ranks or Ranks(0, 1, device)
        self._sets = open_by_name(settings.on, settings)
        refuse_unknown_figure(settings.best, self._sets)
        notes = [
            note if len(self._sets) == 1 else f"{name}: {note}"
            for name, one in self._sets.items()
            for note in one.notes
        ]
        self.note = "; ".join(notes) or None
        self.refused: list[str] = []
        self._preprocess = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False)
        self._tokenizer = tokenizer_for(config)

    def __call__(self, model: Any) -> dict[str, float]:
        """The figures as the log names them: `eval/zero_shot/top1`, `eval/retrieval/image_to_text/R@1`, ...; of
        several sets `eval/SET/zero_shot/top1`.

        A set that cannot be evaluated has no figures, and is in `refused`: what has trained for hours goes on.
        The module is left in evaluation mode.
        """
        loaded = LoadedModel("student", model.eval(), self._config, self._preprocess, self._tokenizer)
        figures: dict[str, float] = {}
        self.refused = []
        for name, one in self._sets.items():
            try:
                found = evaluate(
                    loaded,
                    one,
                    batch_size=self.settings.batch_size,
                    device=self._device,
                    precision=self._precision,
                    deal=_Dealt(self._ranks),
                    limits=False,
                ).result
            except UserError as error:
                self.refused.append(str(error))
                continue
            prefix = "eval" if len(self._sets) == 1 else f"eval/{name}"
            for task in found.keys() - set(_NO_FIGURES):
                figures |= {f"{prefix}/{task}/{figure}": value for figure, value in _flat(found[task])}
        return dict(sorted(figures.items()))


class _Dealt:
    """Work cut into as many parts in a row as there are processes."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def part(self, count: int) -> slice:
        each = -(-count // self._ranks.size)
        return slice(min(count, self._ranks.rank * each), min(count, (self._ranks.rank + 1) * each))

    def whole(self, part: Tensor, count: int) -> Tensor:
        each = -(-count // self._ranks.size)
        padded = pad(part, (0, 0, 0, each - len(part))).to(self._ranks.device)
        return self._ranks.gather(padded)[:count].cpu()

    def agreed(self, error: UserError | None) -> None:
        told = None if error is None else [error.problem, error.where, error.do]
        for problem, where, do in filter(None, self._ranks.heard(told)):
            raise UserError(problem, where=where, do=do)


def _flat(tree: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            flat += [(f"{name}/{inner}", number) for inner, number in _flat(value)]
        elif value is not None and name not in _COUNTS:
            flat.append((name, float(value)))
    return flat
