"""What is minimised: functions of one global batch's embeddings, one file a family.

A loss is a module `loss(student, teachers, rows) -> scalar` over `Embeddings`; its parameters, if it has any, are
trained, checkpointed and put in the optimiser with the student's. `LOSSES` names them for recipes and the command line;
what a class's constructor takes beside `shape` are the options a recipe may give it. Torch is loaded by the first loss
that is looked up.
"""

from typing import TYPE_CHECKING

from shards.lazy import Registry, lazily

if TYPE_CHECKING:
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
else:
    __getattr__ = lazily(
        __name__,
        "base",
        "contrastive",
        "affinity",
        "relational",
        "feature",
        "gradient",
        "interactive",
        "augmented",
        "reinforcement",
        "sigmoid",
        "projecting",
        "weighted_sum",
    )

LOSSES: "Registry[type[Loss]]" = Registry(
    {
        "contrastive": "distill.losses.contrastive:Contrastive",
        "affinity": "distill.losses.affinity:AffinityMimicking",
        "crd": "distill.losses.relational:RelationalDistillation",
        "fd": "distill.losses.feature:FeatureDistillation",
        "gd": "distill.losses.gradient:GradientDistillation",
        "icl": "distill.losses.interactive:InteractiveContrastive",
        "afd": "distill.losses.augmented:AugmentedFeature",
        "reinforcement": "distill.losses.reinforcement:Reinforcement",
        "sigmoid": "distill.losses.sigmoid:Sigmoid",
        "sigmoid_affinity": "distill.losses.sigmoid:SigmoidAffinity",
    }
)
WITHOUT_TEACHER = {"contrastive", "sigmoid"}
"""Those whose class says `needs_teacher = False`, known before torch is loaded."""

__all__ = [
    "ALL",
    "LOSSES",
    "WITHOUT_TEACHER",
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
