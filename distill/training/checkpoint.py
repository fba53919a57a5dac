"""Checkpoints: the whole state of a run at a step, in safetensors and JSON, published as one folder or not at all.

    checkpoints/00000500/{model,loss,optimiser,average,pruning}.safetensors, state.json

Written by a thread from a copy, so that training goes on meanwhile. There is no RNG state: whatever is random in a step
is seeded from (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.run_folder import RunFiles
from shards import UserError
from shards.storage import sync_to_disk

log = logging.getLogger(__name__)

_BESIDE = "state"
"""The name of what is beside the tensors, among the hashes."""
_VERSION = 1
"""Of what a checkpoint holds. Another one cannot be gone on from."""

Parts = Mapping[str, Mapping[str, Tensor]]
"""The tensors of a checkpoint, by the name of their file."""


class Checkpoints:
    """The checkpoints of one run folder; the newest `keep` stay, and the one at step `best`.

    Use as a context manager: leaving it waits for what is being written, and raises what went wrong with it, unless
    something else did before.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._files, self._keep = RunFiles(run), keep
        self._folder = self._files.checkpoints
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self.best: int | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.shutdown(wait=True)
        if kind is None:
            self.wait()

    def wait(self) -> None:
        """Return once everything is on disk; raises `UserError` if it could not be written."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"a checkpoint could not be written ({error})",
                where=str(self._folder),
                do="Make room and start the run again: it goes on from the newest checkpoint there is",
            ) from error

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        return self._files.checkpoint_steps()

    def save(self, step: int, parts: Parts, state: dict[str, Any]) -> None:
        """Publish the state after `step` steps; `state` is whatever else must come back, JSON-able.

        Returns when the tensors are copied. One checkpoint is written at a time: the one before is waited for.
        """
        self.wait()
        # Copies, also because safetensors refuses tensors that share memory or have gaps.
        copies = {name: {key: _copy(tensor) for key, tensor in tensors.items()} for name, tensors in parts.items()}
        # Written out now: what `state` holds may change meanwhile.
        text = json.dumps({"version": _VERSION, "step": step, **state})
        self._writing = self._writer.submit(self._publish, step, copies, text, self.best)

    def _publish(self, step: int, parts: Parts, text: str, best: int | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
        temporary.mkdir()
        digests = {}
        for name, tensors in parts.items():
            path = temporary / f"{name}.safetensors"
            save_file(dict(tensors), path)
            digests[name] = _sha256(path)
        beside = json.loads(text)
        (temporary / "state.json").write_text(json.dumps({**beside, "sha256": digests | {_BESIDE: _told(beside)}}))
        for path in (*temporary.iterdir(), temporary):
            sync_to_disk(path)
        final = self._files.checkpoint(step)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_to_disk(self._folder)
        self._prune(best)

    def prune(self) -> None:
        """Remove what need not stay; also what a kill kept from being removed."""
        self.wait()
        self._prune(self.best)

    def _sweep(self) -> None:
        for leftover in self._folder.glob(".*.tmp"):
            shutil.rmtree(leftover)

    def _prune(self, best: int | None) -> None:
        self._sweep()
        for old in self.steps()[: -self._keep]:
            if old != best:
                shutil.rmtree(self._files.checkpoint(old))

    def load(self, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The tensors and `state` after `step` steps. Raises `UserError` if they are damaged."""
        folder = self._files.checkpoint(step)
        try:
            state: dict[str, Any] = json.loads((folder / "state.json").read_text())
            if (version := state.get("version", "none")) != _VERSION:
                raise OSError(f"it is of version {version}, this is version {_VERSION}: another release wrote it")
            digests, parts = state.pop("sha256"), {}
            if digests.pop(_BESIDE) != _told(state):
                raise OSError("state.json is not what was written")
            for name, digest in digests.items():
                path = folder / f"{name}.safetensors"
                if _sha256(path) != digest:
                    raise OSError(f"{path.name} is not what was written")
                parts[name] = load_file(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise UserError(
                f"the checkpoint cannot be read ({error})",
                where=str(folder),
                do="Delete its folder: the run then goes on from the one before, or from the start",
            ) from error
        return parts, state

    def newest(self) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The step of the newest checkpoint that is whole, and what `load` gives of it; None if there are none.

        Damaged ones after it are stepped over: each is said, and set aside as `STEP.damaged`, out of the count of those
        that stay. Raises `UserError` if all are damaged: that a run begins anew is for its user to say.
        """
        damaged: dict[Path, UserError] = {}
        for step in reversed(self.steps()):
            folder = self._files.checkpoint(step)
            try:
                parts, state = self.load(step)
            except UserError as error:
                damaged[folder] = error
                continue
            for other, problem in damaged.items():
                aside = other.with_name(f"{other.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                other.rename(aside)
                told = "%s: %s; stepped over and kept as %s, the run goes on from step %d"
                log.warning(told, other, problem.problem, aside.name, step)
            return step, parts, state
        if damaged:
            raise next(iter(damaged.values()))
        return None


def _told(state: Mapping[str, Any]) -> str:
    """The hash of what JSON says, which reading and writing again does not change."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as tensors named `<parameter>.<field>`, and its groups' scalars."""
    state = optimiser.state_dict()
    tensors = {f"{number}.{name}": value for number, fields in state["state"].items() for name, value in fields.items()}
    return tensors, state["param_groups"]


def unflatten(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Put back what `flatten` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, field = name.split(".", 1)
        state.setdefault(int(number), {})[field] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        return tensor.cpu().contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)
