"""A set's result, in percent by our names → published names, as fractions, with the main metric of its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.suites.tasks import TASKS, task_name

Metrics = dict[str, float | None]

_CLASSES = {
    "acc1": "top1",
    "acc5": "top5",
    "mean_per_class_recall": "mean_per_class",
    "mean_average_precision": "mAP",
    "F1-macro_all": "f1_macro",
    "acc_worst_region": "worst_region",
    "acc_wg": "worst_region",
    "acc_top5_wg": "worst_income_ds_top5",
}
_USUAL = ("acc1", "mean_average_precision", "mean_recall@1", "acc", "group_acc", "avg_jaccard_score")
"""The main metric of a set that is no task of DataComp's: the first of these that it has."""


def rows_of(set_name: str, result: Mapping[str, Any]) -> dict[str, Metrics]:
    """Name of the task → metrics, with `main_metric`. Of SugarCrepe each part is a task, as published."""
    found: dict[str, Metrics] = {}
    parts = {task: value for task, value in result.items() if isinstance(value, dict) and "instances" in value}
    for task, told in parts.items():
        name = f"SugarCrepe {task.replace('_', '-').capitalize()}" if "_" in task else task_name(set_name)
        found[name] = _with_main(name, _matched(told))
    own: Metrics = {}
    if "zero_shot" in result:
        own |= _classified(result["zero_shot"])
    if "retrieval" in result:
        own |= _retrieved(result["retrieval"])
    if own:
        name = task_name(set_name)
        found[name] = _with_main(name, own)
    return found


def _with_main(name: str, metrics: Metrics) -> Metrics:
    if name in TASKS:
        return {**metrics, "main_metric": metrics.get(TASKS[name].metric)}
    return {**metrics, "main_metric": next((metrics[one] for one in _USUAL if one in metrics), None)}


def _classified(told: Mapping[str, Any]) -> Metrics:
    found = {name: told[ours] / 100 for name, ours in _CLASSES.items() if ours in told}
    return found if "mean_average_precision" in found else {"acc5": None, **found}


def _retrieved(told: Mapping[str, Any]) -> Metrics:
    """CLIP_benchmark calls it image retrieval where a text asks, and text retrieval where an image does."""
    found: Metrics = {}
    for k in (1, 5, 10):
        found[f"image_retrieval_recall@{k}"] = told["text_to_image"][f"R@{k}"] / 100
        found[f"text_retrieval_recall@{k}"] = told["image_to_text"][f"R@{k}"] / 100
    return {**found, "mean_recall@1": told["mean_R@1"] / 100}


def _matched(told: Mapping[str, Any]) -> Metrics:
    if "jaccard" in told:
        return {"avg_jaccard_score": told["jaccard"] / 100} | {
            f"jaccard_score_{name.removeprefix('jaccard_')}": value / 100
            for name, value in told.items()
            if name.startswith("jaccard_")
        }
    if "group" not in told:
        return {"image_acc": 1.0, "text_acc": told["text"] / 100, "acc": told["text"] / 100}
    return {"image_acc": told["image"] / 100, "text_acc": told["text"] / 100, "acc": told["group"] / 100}
