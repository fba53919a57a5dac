"""The gradients of one step: a process's part of a global batch, whole or in micro-batches.

    pixels, tokens → raw embeddings of this part → gathered from all processes, as what the teachers said is
                                                                             → Σ weight·loss over this part's rows
                                                                             → gradients, averaged over processes

In micro-batches it takes two passes (the gradient cache of Gao et al., 2021, arXiv:2101.06983): embed all of them
without keeping activations, take the loss's gradient with respect to the embeddings, then run each again and carry
that gradient back through it. The loss sees the whole batch either way, so the gradient is the same but for rounding.
What is not the same: dropout and masks are drawn for each piece. Batch norms see the whole batch (`batch_norm.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.data.loader import Batch
from distill.losses import Embeddings, Targets, WeightedSum
from distill.short_texts import shortened
from distill.training.batch_norm import WholeBatchNorms
from distill.training.ranks import Ranks
from distill.training.student import Student
from distill.training.super_batch import Deal, gaps, highest

Encoded = dict[str, Tensor]
"""As `Student.forward` returns it."""


class Gradients:
    """Computes a step's gradients into the parameters of student and loss.

    `dealt`: how many samples a step reads; where these are more than `batch_size`, that many of them are chosen.
    `text_from_cache`: the only teacher's text embeddings stand for the student's. `image_from_cache`: the student is
    given its image embeddings in place of pixels. `seed` maps the place of a
    micro-batch's first sample in the global batch, and the step, to what seeds its randomness.
    """

    def __init__(
        self,
        student: Student,
        loss: WeightedSum,
        ranks: Ranks,
        *,
        batch_size: int,
        dealt: int | None = None,
        micro_batches: int,
        text_from_cache: bool,
        image_from_cache: bool = False,
        seed: Callable[[int, int], int],
    ) -> None:
        self._student, self._loss, self._ranks = student, loss, ranks
        self._text_from_cache, self._image_from_cache, self._seed = text_from_cache, image_from_cache, seed
        self._batch_size, self._dealt = batch_size, dealt or batch_size
        self._rows = ranks.rows(batch_size)
        part = batch_size // ranks.size
        # Every n-th row, so that a piece of all processes together is the same rows however many there are.
        self._pieces = [slice(at, part, micro_batches) for at in range(micro_batches)]
        self._norms = WholeBatchNorms(student, ranks)
        self._trains = any(parameter.requires_grad for parameter in student.parameters())
        self._shared: nn.Module = student
        if ranks.size > 1 and self._trains:
            devices = [ranks.device.index] if ranks.device.type == "cuda" else None
            self._shared = DistributedDataParallel(student, device_ids=devices, gradient_as_bucket_view=True)

    def __call__(
        self,
        batch: Batch,
        weights: Mapping[str, float],
        scaled: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Add the gradients of `scaled(loss)`; returns the loss and its terms, 0-d, means over all processes."""
        device = self._ranks.device
        pixels = self._seen(batch).to(device, non_blocking=True)
        short = {name: shortened(ids) if self._student.shortens else ids for name, ids in batch.tokens.items()}
        tokens = {name: ids.to(device, non_blocking=True) for name, ids in short.items()}
        figures: dict[str, Tensor] = {}
        if self._dealt > self._batch_size:
            deal, figures = self._chosen(pixels, tokens, batch.targets)
            pixels, tokens = deal(pixels), {name: deal(ids) for name, ids in tokens.items()}
            batch = replace(batch, targets=batch.targets.with_rows(lambda rows: deal(rows.to(device))))
        if len(self._pieces) == 1:
            self._begin(batch.step, 0)
            with self._norms.measuring() if self._ranks.size > 1 else contextlib.nullcontext():
                encoded = self._shared(pixels, tokens)
            total, terms = self._total(encoded, batch.targets, weights)
            # What no loss reaches has a gradient too, zero: the processes wait for each other's.
            torch.autograd.backward(scaled(total + 0 * (encoded["logit_scale"] + encoded["logit_bias"])))
        else:
            total, terms = self._in_two_passes(batch, pixels, tokens, weights=weights, scaled=scaled)
        self._ranks.mean_gradients([self._loss])
        return self._ranks.mean({"loss": total.detach(), **terms}) | figures

    def _seen(self, batch: Batch) -> Tensor:
        """What the student's image side is given: pixels, or what the teacher saw in them."""
        if not self._image_from_cache:
            return batch.images
        return next(iter(batch.targets.teachers.values()))[0].image

    @torch.no_grad()
    def _chosen(self, pixels: Tensor, tokens: Mapping[str, Tensor], targets: Targets) -> tuple[Deal, dict[str, Tensor]]:
        """Which samples of the super-batch are trained on, and figures for the log.

        The student looks at them as in evaluation, as many at a time as it trains on.
        """
        ranks, student = self._ranks, self._student
        size = self._batch_size // ranks.size // len(self._pieces)
        pieces = [slice(at, at + size) for at in range(0, len(pixels), size)]
        student.train(False)
        parts = [student(pixels[piece], {name: ids[piece] for name, ids in tokens.items()}) for piece in pieces]
        student.train()
        rows = [name for name in parts[0] if parts[0][name].ndim]
        encoded = {name: torch.cat([part[name] for part in parts]) for name in rows} | student.scalars()
        whole = self._gathered(targets)
        scores = ranks.gather(gaps(self._students(encoded, whole), whole, ranks.rows(self._dealt)))
        chosen = highest(scores, self._batch_size)
        figures = {"aced/gap": scores.mean(), "aced/gap_chosen": scores[chosen].mean()}
        return Deal(ranks, chosen, self._dealt // ranks.size), figures

    def _begin(self, step: int, at: int) -> None:
        # Whatever is random in a forward (dropout, masks) depends on step and place alone: a resumed run repeats it.
        torch.manual_seed(self._seed(step, (self._rows.start or 0) + at))

    def _in_two_passes(
        self,
        batch: Batch,
        pixels: Tensor,
        tokens: Mapping[str, Tensor],
        *,
        weights: Mapping[str, float],
        scaled: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        whole = self._embedded(batch.step, pixels, tokens)
        rows = [name for name in whole if whole[name].ndim]
        leaves = {name: whole[name] for name in rows} | self._student.scalars()
        leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
        total, terms = self._total(leaves, batch.targets, weights)
        torch.autograd.backward(scaled(total))
        last = self._pieces[-1]
        for piece in self._pieces if self._trains else ():
            self._begin(batch.step, piece.start)
            alone = getattr(self._shared, "no_sync", None)
            with contextlib.nullcontext() if piece is last or alone is None else alone():
                with self._norms.known():
                    encoded = self._shared(pixels[piece], {name: ids[piece] for name, ids in tokens.items()})
                carried = [(encoded[name], _grad(leaves[name])[piece]) for name in rows]
                # The scalars' gradient is of the whole part: it is carried once.
                carried += [(encoded[n], _grad(leaves[n]) * (piece is last)) for n in ("logit_scale", "logit_bias")]
                torch.autograd.backward(torch.stack([(value * grad).sum() for value, grad in carried]).sum())
        return total, terms

    @torch.no_grad()
    def _embedded(self, step: int, pixels: Tensor, tokens: Mapping[str, Tensor]) -> Encoded:
        """This process's rows without activations: in pieces, but where batch norms must see all of them."""
        if self._norms.any:
            with self._norms.measuring():
                whole: Encoded = self._student(pixels, tokens)
            return whole
        parts = []
        for piece in self._pieces:
            self._begin(step, piece.start)
            parts.append(self._student(pixels[piece], {name: ids[piece] for name, ids in tokens.items()}))
        rows = [name for name in parts[0] if parts[0][name].ndim]
        # A piece's rows lie as many apart as there are pieces.
        return {name: torch.stack([part[name] for part in parts], dim=1).flatten(0, 1) for name in rows}

    def _total(
        self, encoded: Encoded, targets: Targets, weights: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        whole = self._gathered(targets)
        summed: tuple[Tensor, dict[str, Tensor]] = self._loss(
            self._students(encoded, whole), whole, weights, self._rows
        )
        return summed

    def _students(self, encoded: Encoded, whole: Targets) -> dict[str, Embeddings]:
        """By caption set the student's embeddings of the whole batch, from those of this process's part."""
        ranks = self._ranks
        image = ranks.gather(encoded["image"])
        students = {}
        for captions in self._captions(encoded, whole):
            text = (
                whole.teachers[captions][0].text if self._text_from_cache else ranks.gather(encoded[f"text/{captions}"])
            )
            # Raw rows are what is gathered and carried between passes, so that their lengths have gradients too.
            student = Embeddings.of_raw(image, text, encoded["logit_scale"], encoded["logit_bias"])
            if self._text_from_cache:
                student = replace(student, text=text, checked=False)  # of unit norm already
            students[captions] = student
        return students

    def _captions(self, encoded: Encoded, targets: Targets) -> list[str]:
        if self._text_from_cache:
            return list(targets.teachers)
        return [name.removeprefix("text/") for name in encoded if name.startswith("text/")]

    def _gathered(self, targets: Targets) -> Targets:
        """What the teachers said of the whole batch, on this process's device."""

        def gathered(part: Tensor) -> Tensor:
            return self._ranks.gather(part.to(self._ranks.device, non_blocking=True))

        whole = targets.with_rows(gathered)
        if targets.present is None:
            return whole
        return replace(whole, present=gathered(targets.present.to(torch.uint8)).bool())


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
