"""What is minimised: functions of one global batch's embeddings, one file a family.

A loss is a module `loss(student, teachers, rows) -> scalar` over `Embeddings`; its parameters, if it has any, are
trained, checkpointed and put in the optimiser with the student's. `LOSSES` names them for recipes and the command line;
what a class's constructor takes beside `shape` are the options a recipe may give it.
"""

from distill.losses.affinity import AffinityMimicking
from distill.losses.augmented import AugmentedFeature
from distill.losses.base import ALL, Embeddings, Loss, LossShape, Targets
from distill.losses.contrastive import Contrastive
from distill.losses.feature import FeatureDistillation
from distill.losses.gradient import GradientDistillation
from distill.losses.interactive import InteractiveContrastive
from distill.losses.projecting import ProjectingLoss
from distill.losses.reinforcement import Reinforcement
from distill.losses.relational import RelationalDistillation
from distill.losses.sigmoid import Sigmoid, SigmoidAffinity
from distill.losses.weighted_sum import WeightedSum

LOSSES: dict[str, type[Loss]] = {
    "contrastive": Contrastive,
    "affinity": AffinityMimicking,
    "crd": RelationalDistillation,
    "fd": FeatureDistillation,
    "gd": GradientDistillation,
    "icl": InteractiveContrastive,
    "afd": AugmentedFeature,
    "reinforcement": Reinforcement,
    "sigmoid": Sigmoid,
    "sigmoid_affinity": SigmoidAffinity,
}

__all__ = [
    "ALL",
    "LOSSES",
    "AffinityMimicking",
    "AugmentedFeature",
    "Contrastive",
    "Embeddings",
    "FeatureDistillation",
    "GradientDistillation",
    "InteractiveContrastive",
    "Loss",
    "LossShape",
    "ProjectingLoss",
    "Reinforcement",
    "RelationalDistillation",
    "Sigmoid",
    "SigmoidAffinity",
    "Targets",
    "WeightedSum",
]
