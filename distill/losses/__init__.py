"""What is minimised: functions of one global batch's embeddings, one file a family.

A loss is a module `loss(student, teacher) -> scalar` over `Embeddings`; its parameters, if it has any, are trained,
checkpointed and put in the optimiser with the student's. `LOSSES` names them for recipes and the command line.
"""

from distill.losses.affinity import AffinityMimicking
from distill.losses.base import Embeddings, Loss, LossShape, WeightedSum
from distill.losses.contrastive import Contrastive
from distill.losses.feature import FeatureDistillation

LOSSES: dict[str, type[Loss]] = {
    "contrastive": Contrastive,
    "affinity": AffinityMimicking,
    "feature": FeatureDistillation,
}

__all__ = [
    "LOSSES",
    "AffinityMimicking",
    "Contrastive",
    "Embeddings",
    "FeatureDistillation",
    "Loss",
    "LossShape",
    "WeightedSum",
]
