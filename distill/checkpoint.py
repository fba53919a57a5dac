"""Checkpoints: the whole state of a run at a step, in safetensors and JSON, published as one folder or not at all.

    checkpoints/00000500/{model,loss,optimiser}.safetensors, state.json

There is no RNG state: whatever is random in a step is seeded from (seed, step).
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards import UserError
from shards.storage import sync_to_disk

KEEP = 2
PARTS = ("model", "loss", "optimiser")


class Checkpoints:
    """The checkpoints of one run folder; the newest `KEEP` are kept."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "checkpoints"

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def save(
        self, step: int, model: nn.Module, loss: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Publish the state after `step` steps; `state` is whatever else must come back, JSON-able."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.prune()
        temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
        temporary.mkdir()
        moments, scalars = _flatten(optimiser)
        for name, tensors in zip(PARTS, (model.state_dict(), loss.state_dict(), moments), strict=True):
            _save(temporary / f"{name}.safetensors", tensors)
        (temporary / "state.json").write_text(json.dumps({"step": step, "optimiser": scalars, **state}))
        for path in (*temporary.iterdir(), temporary):
            sync_to_disk(path)
        final = self._folder / f"{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_to_disk(self._folder)
        self.prune()

    def prune(self) -> None:
        """Remove all but the newest; also what a kill kept from being removed."""
        for leftover in self._folder.glob(".*.tmp"):
            shutil.rmtree(leftover)
        for old in self.steps()[:-KEEP]:
            shutil.rmtree(self._folder / f"{old:08d}")

    def load(self, step: int, model: nn.Module, loss: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """Put the state after `step` steps back in place; returns `state`. Raises `UserError` if it is damaged."""
        folder = self._folder / f"{step:08d}"
        try:
            weights, extra, moments = (load_file(folder / f"{name}.safetensors") for name in PARTS)
            state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"the checkpoint cannot be read ({error})",
                where=str(folder),
                do="Delete its folder: the run then goes on from the one before, or from the start",
            ) from error
        model.load_state_dict(weights)
        loss.load_state_dict(extra)
        _restore(optimiser, moments, state["optimiser"])
        return state


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    # Copies, since safetensors refuses tensors that share memory or have gaps.
    save_file(
        {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, path
    )


def _flatten(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors named `<parameter>.<field>`, and its groups' scalars."""
    state = optimiser.state_dict()
    tensors = {f"{number}.{name}": value for number, fields in state["state"].items() for name, value in fields.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, field = name.split(".", 1)
        state.setdefault(int(number), {})[field] = value
    optimiser.load_state_dict({"state": state, **scalars})
