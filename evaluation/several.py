"""Several models on several sets: each one's figures, their spread as seeds, their differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_models import LoadedModel
from evaluation.against_teacher import against_teacher
from evaluation.figures import Figure, differences, spread
from evaluation.run import Evaluation, evaluate
from evaluation.sets.base import EvaluationSet
from evaluation.text_cache import TextCache


def evaluate_all(
    models: Mapping[str, LoadedModel],
    sets: Mapping[str, EvaluationSet],
    *,
    teacher: LoadedModel | None = None,
    cache: TextCache | None = None,
    **how: Any,
) -> dict[str, Any]:
    """`{"models": {MODEL: {SET: result}}}`, with, of several models,

    `"spread": {SET: {FIGURE: {mean, sd, low, high}}}` over all of them, as if they were seeds of one, and
    `"differences": {SET: {MODEL: {FIGURE: {difference, low, high, p}}}}` of each to the first, by a paired bootstrap;
    with a teacher `"teacher": {SET: result}`, and in each model's results what `against_teacher` says.

    `how`: as of `evaluate`. One set after the other; embeddings of one set alone are held.
    """
    told: dict[str, Any] = {"models": {name: {} for name in models}}
    spreads: dict[str, Any] = {}
    compared: dict[str, Any] = {}
    taught: dict[str, Any] = {}
    for at, evaluated in sets.items():
        found = {name: evaluate(loaded, evaluated, cache=cache, **how) for name, loaded in models.items()}
        for name, evaluation in found.items():
            told["models"][name][at] = evaluation.result
        if teacher is not None:
            beside = evaluate(teacher, evaluated, cache=cache, **how)
            taught[at] = beside.result
            for evaluation in found.values():
                evaluation.result["teacher"] = against_teacher(evaluated, evaluation, beside)
        if len(found) > 1:
            spreads[at], compared[at] = _over(found, len(evaluated))
    if len(models) > 1:
        told |= {"spread": spreads, "differences": compared}
    return told | ({"teacher": taught} if teacher is not None else {})


def _over(found: Mapping[str, Evaluation], images: int) -> tuple[dict[str, Any], dict[str, Any]]:
    figures: list[dict[str, Figure]] = [evaluation.figures for evaluation in found.values()]
    shared = [name for name in figures[0] if all(name in other for other in figures)]
    over = {name: spread([one[name].value for one in figures]) for name in shared}
    names = list(found)
    apart = {name: differences(found[name].figures, found[names[0]].figures, images) for name in names[1:]}
    return over, apart
