"""Automatic inheritance as a run does it: a student under masks, driven to a sparsity while it learns.

    begin(step)                     the step's gates are drawn
    forward, loss, backward         open_clip's own methods, through the gates
    after_backward(step, scaled)    the penalty's gradients
    optimiser.step                  with `groups()` among its groups
    after_step(average)             log α stays within its limits, and the average of the weights has it as it is

Gates depend on seed and step alone: every process, micro-batch and caption set of a step sees the same ones, and so
does a run that goes on from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clip_models import ModelConfig
from distill.pruning.gates import Gates
from distill.pruning.masks import mask, masked_towers
from distill.pruning.materialise import materialise
from distill.pruning.report import missed, pruning_report
from distill.pruning.settings import PruneSettings
from distill.pruning.sparsity import expected_sparsity, sparsity_penalty
from shards import seed64

_MULTIPLIERS = (10.0, 10.0)


class Pruning(nn.Module):
    """Puts the trained towers of `model` under masks, in place, and moves them: a hook of a run's steps.

    The masks are parameters of `model`, in its state dict; `multipliers`, λ1 and λ2, are this module's only one.
    `config` is the model's. Raises `UserError` if a tower cannot be masked, or if the student
    is not what `settings` begin from.
    """

    def __init__(self, model: Any, config: ModelConfig, settings: PruneSettings, seed: int) -> None:
        super().__init__()
        mask(model, config)
        self._seed = seed
        # In a dictionary they are no children: their parameters are the model's.
        self._towers = {tower.kind: tower.gates for tower in masked_towers(model)}
        for gates in self.gates:
            gates.counts_removed = settings.removed == "reference"
        self.settings = settings.begun_at(float(expected_sparsity(self.gates).detach()))
        self.multipliers = nn.Parameter(model.logit_scale.new_tensor(_MULTIPLIERS))

    @property
    def gates(self) -> list[Gates]:
        """Each masked tower's, the image's first."""
        return list(self._towers.values())

    def masks(self) -> list[nn.Parameter]:
        """Every log α."""
        return [row for gates in self.gates for row in gates.parameters() if row.requires_grad]

    def groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW, whose learning rate stays: the masks, and the multipliers, which ascend."""
        common = {"lr": self.settings.lr, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
        return [{"params": self.masks(), **common}, {"params": [self.multipliers], "maximize": True, **common}]

    def begin(self, step: int) -> None:
        """Draw the gates of `step` (from 0)."""
        generator = torch.Generator().manual_seed(seed64("gates", self._seed, step) >> 1)
        for gates in self.gates:
            gates.draw(generator)

    def penalty(self, step: int) -> Tensor:
        """What the sparsity that is missing at `step` adds to the loss; 0-d, with gradient."""
        return sparsity_penalty(expected_sparsity(self.gates), self.settings.target_at(step), self.multipliers)

    def add_gradients(self, step: int, scaled: Callable[[Tensor], Tensor]) -> None:
        """Add the gradients of `scaled(penalty)` to those of masks and multipliers.

        For after the backward pass of the loss: the penalty is the same on every process and need not be averaged.
        """
        found = [*self.masks(), self.multipliers]
        for parameter, grad in zip(found, torch.autograd.grad(scaled(self.penalty(step)), found), strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

    def after_backward(self, step: int, scaled: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """`add_gradients`, and what the log is told of the step: `figures`."""
        figures = self.figures(step)
        self.add_gradients(step, scaled)
        return figures

    @torch.no_grad()
    def after_step(self, average: Any = None) -> None:
        """Bring the masks back within their limits, and give them to `average`, a copy of the model, as they are.

        Averaged masks would lag behind the sparsity that was reached.
        """
        for gates in self.gates:
            gates.clamp()
        for tower in () if average is None else masked_towers(average):
            for theirs, ours in zip(tower.gates.parameters(), self._towers[tower.kind].parameters(), strict=True):
                theirs.copy_(ours)

    def finished(self, model: Any, config: ModelConfig) -> tuple[Any, ModelConfig]:
        """The dense model that the masked `model` comes to, and its config."""
        return materialise(model, config)

    def report(self, model: Any) -> dict[str, Any]:
        """What is left of `model`, for `pruning.json`."""
        return pruning_report(model, self.settings)

    def missed(self, report: Mapping[str, Any]) -> str | None:
        """Where the sparsity that was reached is not the one asked for: that, and what to do."""
        return missed(report)

    @torch.no_grad()
    def figures(self, step: int) -> dict[str, Tensor]:
        """For the log: sparsity expected (of each tower too) and asked for, the penalty, λ1 and λ2; 0-d."""
        towers = {f"prune/sparsity/{kind}": expected_sparsity([gates]) for kind, gates in self._towers.items()}
        return {
            "prune/sparsity": expected_sparsity(self.gates),
            **(towers if len(towers) > 1 else {}),
            "prune/target": self.multipliers.new_tensor(self.settings.target_at(step)),
            "prune/penalty": self.penalty(step),
            "prune/lambda1": self.multipliers[0].clone(),
            "prune/lambda2": self.multipliers[1].clone(),
        }
