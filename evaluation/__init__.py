"""How good a model is: zero-shot classification and image-text retrieval.

Comes in: a loaded model and a dataset of shards, or embeddings. Goes out: plain numbers in percent.
Read `run.py` first; `zero_shot.py` and `retrieval.py` hold one protocol each and know nothing of datasets.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from evaluation.classes import read_classes
    from evaluation.retrieval import SHARED, recall, recall_of_groups
    from evaluation.run import evaluate, shared_note
    from evaluation.zero_shot import class_weights, top_k
else:
    __getattr__ = lazily(__name__, "classes", "retrieval", "zero_shot", "run")

__all__ = [
    "SHARED",
    "class_weights",
    "evaluate",
    "read_classes",
    "recall",
    "recall_of_groups",
    "shared_note",
    "top_k",
]
