"""How good a model is: zero-shot classification and image-text retrieval.

Comes in: a loaded model and a dataset of shards, or embeddings. Goes out: plain numbers in percent.
Read `evaluate.py` first; `zero_shot.py` and `retrieval.py` hold one protocol each and know nothing of datasets.
"""

from evaluation.classes import read_classes
from evaluation.evaluate import evaluate, shared_note
from evaluation.retrieval import SHARED, recall, recall_of_groups
from evaluation.zero_shot import class_weights, top_k

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
