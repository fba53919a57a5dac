"""Map a function over shards whose results are looked at and not published: in order, on any executor."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

from shards.executor import Executor, Outcome
from shards.task import ShardTask, Spec

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_AHEAD = 4
"""So many shards for each that is under way may have been begun before the first of them has ended."""


def map_shards(task: ShardTask[Any], executor: Executor) -> Iterator[Outcome]:
    """What came of each spec, in the order of the specs: a result, or the cause why there is none.

    What may pass is tried three times in all. Nothing is written: whoever stops begins again. Raises `UserError` where
    a worker met something that only the user can mend.
    """
    specs = task.specs()
    first = next(specs, None)
    if first is None:
        return
    executor.start(task)
    try:
        yield from _in_order(chain([first], specs), executor)
    finally:
        executor.close()


def _in_order(specs: Iterator[Spec | None], executor: Executor) -> Iterator[Outcome]:
    again: list[Spec] = []
    begun: deque[Spec] = deque()
    ended: dict[Spec, Outcome] = {}
    tries: Counter[Spec] = Counter()
    flying = 0
    while True:
        while flying < executor.slots:
            spec = again.pop() if again else None
            if spec is None and len(begun) < _AHEAD * executor.slots and (spec := next(specs, None)) is not None:
                begun.append(spec)
            if spec is None:
                break
            executor.submit(spec)
            flying += 1
        if not flying:
            return
        outcome = executor.wait()
        assert outcome is not None
        flying -= 1
        tries[outcome.spec] += 1
        if outcome.error is not None:
            raise outcome.error
        if outcome.kind == "transient" and tries[outcome.spec] < _ATTEMPTS:
            log.warning(
                "%s: attempt %d failed (%s), trying again", outcome.spec.label, tries[outcome.spec], outcome.cause
            )
            again.append(outcome.spec)
            continue
        ended[outcome.spec] = outcome
        while begun and begun[0] in ended:
            yield ended.pop(begun.popleft())
