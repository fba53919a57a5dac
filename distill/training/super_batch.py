"""Which part of a super-batch is trained on: the samples that the student gets wrong and the teachers do not.

Active curation with a teacher (ACID and ACED, Udandarao et al., CVPR 2025, arXiv 2411.18674): each sample's contrastive
loss within the super-batch, the student's less the teachers'; the highest are trained on. What the teachers say comes
from the cache, so the price is a forward of the student. The choice follows from the step and the weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import ALL, Embeddings, Targets
from distill.losses.contrastive import affinities
from distill.training.ranks import Ranks


def sample_losses(embeddings: Embeddings, rows: slice = ALL) -> Tensor:
    """½[−log sm(τ·i·xᵀ)_jj − log sm(τ·x·iᵀ)_jj] of each sample j of the `rows`, within the whole batch: (R,)."""
    own = torch.arange(len(embeddings.image), device=embeddings.image.device)[rows]
    both = affinities(embeddings.image, embeddings.text, embeddings.logit_scale, rows)
    to_text, to_image = (F.cross_entropy(logits, own, reduction="none") for logits in both)
    return (to_text + to_image) / 2


def gaps(students: Mapping[str, Embeddings], targets: Targets, rows: slice = ALL) -> Tensor:
    """The student's loss of each of the `rows`, less the mean of the teachers', the mean over caption sets: (R,)."""
    found = []
    for captions, student in students.items():
        theirs = [sample_losses(teacher, rows) for teacher in targets.teachers[captions]]
        found.append(sample_losses(student, rows) - torch.stack(theirs).mean(dim=0))
    return torch.stack(found).mean(dim=0)


def highest(scores: Tensor, count: int) -> Tensor:
    """The places of the `count` highest of (S,), ascending; of equal ones the first."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


class Deal:
    """Hands the chosen samples to processes in equal parts, each of which holds some rows of the super-batch.

    `chosen` (B,): their places in the super-batch, ascending, the same in every process.
    """

    def __init__(self, ranks: Ranks, chosen: Tensor, held: int) -> None:
        """`held`: rows of the super-batch in each process."""
        self._ranks, self._chosen, self._held = ranks, chosen, held
        self._owners = chosen // held
        self._counts = torch.bincount(self._owners, minlength=ranks.size)

    def __call__(self, rows: Tensor) -> Tensor:
        """(held, ...) of this process's → (B / size, ...), those that it is to train on. No gradient goes back."""
        ranks = self._ranks
        own = self._chosen[self._owners == ranks.rank].to(rows.device) - ranks.rank * self._held
        if ranks.size == 1:
            return rows[own]
        most = int(self._counts.max())
        sent = rows.new_zeros(most, *rows.shape[1:])
        sent[: len(own)] = rows[own]
        firsts = self._counts.cumsum(0) - self._counts
        within = torch.arange(len(self._chosen), device=self._chosen.device) - firsts[self._owners]
        places = (self._owners * most + within)[ranks.rows(len(self._chosen))]
        return ranks.gather(sent)[places.to(rows.device)]
