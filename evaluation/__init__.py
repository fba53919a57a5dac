"""How good a model is, on whatever people judge models by: zero-shot classification, retrieval and more.

Comes in: a loaded model and an evaluation set. Goes out: plain numbers in percent, with intervals, differences between
models, and tables beside published ones. Read `run.py` first. `sets/` says what a set is and opens each kind, and
`tasks.py` what it asks; `zero_shot.py`, `retrieval.py` and `matching.py` hold a protocol each and know no sets.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from evaluation.prompts import Prompts, read_classes
    from evaluation.retrieval import SHARED, recall, recall_of_groups
    from evaluation.run import Evaluation, evaluate
    from evaluation.sets import EvaluationSet, SetSettings, open_set, open_sets
    from evaluation.several import evaluate_all
    from evaluation.text_cache import TextCache
    from evaluation.zero_shot import top_k
else:
    __getattr__ = lazily(
        __name__, "prompts", "sets", "settings", "retrieval", "zero_shot", "text_cache", "run", "several"
    )

__all__ = [
    "SHARED",
    "Evaluation",
    "EvaluationSet",
    "Prompts",
    "SetSettings",
    "TextCache",
    "evaluate",
    "evaluate_all",
    "open_set",
    "open_sets",
    "read_classes",
    "recall",
    "recall_of_groups",
    "top_k",
]
