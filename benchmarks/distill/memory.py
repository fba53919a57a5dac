"""The most memory that a kind of step holds, of the GPU's or, without one, of the process's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.distill.contenders import Contender

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_gb(contender: Contender) -> float:
    """GB: what the contender keeps between steps, and what one step adds at its height.

    It must have taken a step before. Contenders share a process, so each one's share of what is kept (student,
    optimiser, teachers) is counted from its tensors, and what a step adds is the rise of the high-water mark.
    """
    added = rise(lambda: contender.turn(1), contender.run.device)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in _kept(contender))
    return (kept + added) / 1e9


def rise(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that `work` adds at its height to what is held before it: of the GPU's memory, else of this process's."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # What earlier steps have freed, but not given back, would hide what this one needs.
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")
        before = _status("VmRSS")
    work()
    return (torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")) - before


def _kept(contender: Contender) -> Iterator[Tensor]:
    run = contender.run
    for module in (run.student, run.loss, *(teacher.model for teacher in contender.models)):
        yield from module.parameters()
        yield from module.buffers()
    for state in run.optimiser.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _status(field: str) -> int:
    """Bytes."""
    text = _STATUS.read_text()
    return int(text[text.index(f"{field}:") :].split(maxsplit=2)[1]) * 1024
