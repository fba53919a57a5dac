"""Automatic weight inheritance: a student learns which of its heads, MLP units and width to keep (TinyCLIP, ICCV 2023).

Comes in: a student with a teacher's weights, and a sparsity. Goes out: the dense model that is left, an ordinary model
folder, which the next run trains on, or prunes further. Read `pruning.py` first (a run's view of it), then `gates.py`
(one learned number a unit), `sparsity.py` (what the gates are driven to), `masks.py` (a model under gates),
`materialise.py` (the same without) and `report.py` (what is left, drawn).
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from distill.pruning.pruning import Pruning
    from distill.pruning.report import draw_architecture, pruning_report
    from distill.pruning.settings import PruneSettings
else:
    __getattr__ = lazily(__name__, "settings", "pruning", "report")

__all__ = ["PruneSettings", "Pruning", "draw_architecture", "pruning_report"]
