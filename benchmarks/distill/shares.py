"""Where the time of a step from the cache goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from benchmarks.distill.contenders import Contender, synchronise

_FORWARD, _LOSS, _OPTIMISER = "forward", "loss", "optimiser"
_BACKWARD = "backward, clipping"
_TARGETS, _WAIT, _REST = "targets", "waiting for the batch", "rest"
_ORDER = (_FORWARD, _BACKWARD, _OPTIMISER, _LOSS, _TARGETS, _WAIT, _REST)
_OPERATORS = 10


def step_shares(contender: Contender, steps: int) -> dict[str, Any]:
    """Shares of the time by part and by operator, and what reading the cache takes, which other threads do.

    On a GPU each part is waited for, so that it is charged what it started; there, operators are kernels.
    """
    contender.turn(1)
    seconds = _parts(contender, steps)
    whole = sum(seconds.values())
    return {
        "steps": steps,
        "step_ms": whole / steps * 1e3,
        "parts": {name: seconds[name] / whole for name in _ORDER},
        "cache_read_ms": _cache_read_ms(contender),
        "operators": _operators(contender, max(1, steps // 2)),
    }


def _parts(contender: Contender, steps: int) -> dict[str, float]:
    """Seconds by part, of all steps."""
    run = contender.run
    seconds = dict.fromkeys(_ORDER, 0.0)
    at = 0.0

    def charged(name: str) -> Callable[..., None]:
        """Charge the time since the last part's end to `name`."""

        def end(*_: object) -> None:
            nonlocal at
            synchronise(run.device)
            now = time.perf_counter()
            seconds[name] += now - at
            at = now

        return end

    hooks = [
        run.student.register_forward_pre_hook(charged(_REST)),
        run.student.register_forward_hook(charged(_FORWARD)),
        run.loss.register_forward_pre_hook(charged(_REST)),
        run.loss.register_forward_hook(charged(_LOSS)),
        run.optimiser.register_step_pre_hook(charged(_BACKWARD)),
        run.optimiser.register_step_post_hook(charged(_OPTIMISER)),
    ]
    synchronise(run.device)
    at = time.perf_counter()
    for _ in range(steps):
        batch = next(contender.batches)
        charged(_WAIT)()
        told = contender.told(batch)
        charged(_TARGETS)()
        run.step(told)
        charged(_REST)()
    for hook in hooks:
        hook.remove()
    return seconds


def _cache_read_ms(contender: Contender) -> float:
    """Milliseconds to read one batch's rows: a view and a caption a sample, as float32 of unit norm."""
    run = contender.run
    times = []
    for step in range(20):
        places = run.order.batch(step)
        start = time.perf_counter()
        for cache in run.caches:
            cache.image(places, np.zeros(len(places), np.int64))
            cache.text(places)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def _operators(contender: Contender, steps: int) -> dict[str, float]:
    """The costliest operators of a step, by their own share of the time of all."""
    # Read at the first use: without a GPU it would complain that there is none.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    cuda = contender.run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        contender.turn(steps)
    times: dict[str, float] = {}
    for entry in profiler.key_averages():
        # An annotation spans kernels that are listed themselves.
        if (entry.device_type.name == "CUDA") == cuda and not entry.is_user_annotation:
            times[entry.key] = entry.self_device_time_total if cuda else entry.self_cpu_time_total
    whole = sum(times.values())
    ranked = sorted(times, key=lambda name: -times[name])[:_OPERATORS]
    return {name: times[name] / whole for name in ranked}
