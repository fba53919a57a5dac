"""The weighted sum of losses that a run minimises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.losses.base import ALL, Embeddings, Loss, Targets
from distill.losses.parts import in_parts
from distill.losses.projecting import ProjectingLoss


class WeightedSum(nn.Module):
    """Σ weight · loss over losses, the mean over caption sets; returns it and each unweighted term, detached, by name.

    Losses that project the student share the projections of the first of them, as in CLIP-KD, whose losses all see the
    same projected student: its parameters are listed once, under that loss's name.
    """

    def __init__(self, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.losses: Mapping[str, Loss] = nn.ModuleDict(losses)  # type: ignore[assignment]
        projecting = [loss for loss in losses.values() if isinstance(loss, ProjectingLoss)]
        for loss in projecting[1:]:
            loss.project_as(projecting[0])

    def forward(
        self, students: Mapping[str, Embeddings], targets: Targets, weights: Mapping[str, float], rows: slice = ALL
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`students` by caption set. A term is named after its loss; of several caption sets each has one, LOSS/SET."""
        present = None if targets.present is None else targets.present.nonzero()[:, 0]
        terms, weighted = {}, []
        for name, loss in self.losses.items():
            found = []
            for captions, student in students.items():
                teachers = targets.teachers.get(captions, ())
                if present is None or not loss.needs_teacher:
                    term = in_parts(loss, student, teachers, rows)
                else:
                    term = _of_present(loss, student, teachers, present, rows)
                found.append(term)
                if len(students) > 1:
                    terms[f"{name}/{captions}"] = term.detach()
            mean = torch.stack(found).mean()
            terms[name] = mean.detach()
            weighted.append(weights[name] * mean)
        return torch.stack(weighted).sum(), terms


def _of_present(
    loss: Loss, student: Embeddings, teachers: Sequence[Embeddings], present: Tensor, rows: slice
) -> Tensor:
    """The loss of the samples at the (P,) places that teachers know, as a batch of their own: the rows' share of it."""
    start, stop, _ = rows.indices(len(student.image))
    bounds = torch.tensor([start, stop], device=present.device)
    first, last = torch.searchsorted(present, bounds).tolist()
    if first == last:
        # Nothing was said of these rows, but a gradient is still due to all that the others' rows reach: zero.
        reached = student.image.sum() + student.text.sum() + student.logit_scale + student.logit_bias
        return 0 * sum((parameter.sum() for parameter in loss.parameters()), start=reached)
    known = [teacher.only(present) for teacher in teachers]
    share = in_parts(loss, student.only(present), known, slice(first, last))
    # Processes have unequal parts of these samples: their mean has to weigh them by how many they have.
    parts = len(student.image) / (stop - start)
    weight: float = (last - first) * parts / len(present)
    return share * weight
