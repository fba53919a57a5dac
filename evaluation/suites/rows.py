"""A row of a table: who it is, what it costs, and the metrics of each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evaluation.suites.metrics import Metrics
from evaluation.suites.tasks import GROUPS

OURS = "ours"


@dataclass(frozen=True, kw_only=True)
class Row:
    """`source`: a paper, a file, or `OURS`. `tasks`: metrics as fractions, by a task's name. Costs where known:

    `image`, `text` parameters in millions, `embedding` of them the token embedding's; `macs` of an image and a text in
    10⁹; `pairs` a second; `latency` in ms of one image and one text. `means`: of DataComp's groups, where they were
    printed and the tasks were not.
    """

    name: str
    source: str
    data: str = ""
    tasks: Mapping[str, Metrics] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    image: float | None = None
    text: float | None = None
    embedding: float = 0.0
    macs: float | None = None
    pairs: float | None = None
    latency: float | None = None

    def metric(self, task: str, metric: str) -> float | None:
        """Of a task, or of a group of tasks: the mean of their main metrics, None unless all are there."""
        if task not in GROUPS:
            found = self.tasks.get(task, {}).get(metric)
            return None if found is None or np.isnan(found) else found
        each = [self.tasks.get(one, {}).get("main_metric") for one in GROUPS[task]]
        known = [value for value in each if value is not None and not np.isnan(value)]
        return float(np.mean(known)) if len(known) == len(each) else self.means.get(task)

    def parameters(self, *, embedding: bool) -> float | None:
        """In millions, with or without the token embedding, as the suite's papers count them."""
        if self.image is None:
            return None
        return self.image + (self.text or 0.0) + (self.embedding if embedding else 0.0)
