"""Map a shard task over its specs: skip what is done, bound what is in flight, retry what may pass, quarantine what
cannot, and end with an error if anything is missing.

Where the work runs is an `Executor`'s business: `InProcess` here, Ray in `ray_executor.py`; both keep this contract.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from shards.errors import IncompleteError, UserError
from shards.executor import Executor, InProcess, Outcome
from shards.failures import FAILURES, Failures
from shards.progress import Meter
from shards.record import compact
from shards.sound import PublishedShards
from shards.storage import Folder
from shards.task import GrowingTask, ShardTask, Spec

log = logging.getLogger(__name__)

_ATTEMPTS = 3


@dataclass
class Summary:
    """What a run did: shards found done, done now, and the sum of every record's `stats` (old and new).

    `remade` says of each shard that was done once, and had to be done again, what was wrong with its files.
    """

    skipped: int = 0
    finished: int = 0
    remade: list[str] = field(default_factory=list)
    samples: int = 0
    stats: Counter[str] = field(default_factory=Counter)


def run_shards(task: ShardTask[Any], executor: Executor, *, attempts: int = _ATTEMPTS) -> Summary:
    """Bring every spec of `task` to a published record.

    Shards already published with the wanted fingerprint are skipped, unless their files are gone or have another size
    than recorded; a transient failure is tried `attempts` times in all; what fails for good is written to
    `_failures/NNNNN.json` and does not stop the others.

    Raises:
        UserError: a worker met something that only the user can mend; the run stops.
        IncompleteError: the run ended with shards missing; the message names them and why.
    """
    work = _Work(task, attempts, in_process=isinstance(executor, InProcess))
    summary = Summary()
    try:
        with Meter(task.name, work.total, unit="shards") as meter:
            for outcome in _outcomes(work, task, executor, meter):
                if outcome.result is None:
                    work.failed.append(outcome)
                    work.tell(meter)
                else:
                    summary.finished += 1
                    work.tell(meter, 1, outcome.result.count)
    finally:
        work.close()
    summary.skipped, summary.remade = work.skipped, work.published.withdrawn
    _add_up(work, summary)
    if work.failed:
        causes = "; ".join(f"{outcome.spec.label}: {outcome.cause}" for outcome in work.failed[:5])
        more = f" and {len(work.failed) - 5} more" if len(work.failed) > 5 else ""
        raise IncompleteError(
            f"{task.name}: {len(work.failed)} of {work.total} shards are missing ({causes}{more}). Details are in "
            f"{FAILURES}/ beside the shards; the same command tries only the missing ones again"
        )
    for folder in work.wanted:
        folder.sweep()
    return summary


class _Work:
    """The specs of a task as they come, but for those that are done, then those that are to be tried again.

    A task that grows is never looked at whole. Where finding specs ends in a `UserError`, `broken` has it, and the work
    is over all the same: what is in flight shall end first.
    """

    def __init__(self, task: ShardTask[Any], attempts: int, *, in_process: bool) -> None:
        self.attempts = attempts
        self._growing = task if isinstance(task, GrowingTask) else None
        known = [] if self._growing else list(task.specs())
        self._known = len(known)
        self._specs: Iterator[Spec | None] = task.specs() if self._growing else iter(known)
        self.published = PublishedShards()
        self._more = True
        self.again: deque[Spec] = deque()
        self.wanted: dict[Folder, set[int]] = {}
        self.skipped = 0
        self.failed: list[Outcome] = []
        self.failures = Failures(in_process)
        self.broken: UserError | None = None

    @property
    def total(self) -> int:
        """How many specs there are, as far as is known."""
        return self._growing.outlook()[0] if self._growing else self._known

    @property
    def over(self) -> bool:
        """Whether none is left, as far as is known."""
        return not self._more and not self.again

    def next(self) -> Spec | None:
        """The next spec that is to be run; None if there is none now."""
        # What is new comes first: what has failed may need time to pass.
        try:
            while self._more and (spec := next(self._specs)) is not None:
                if not self._is_done(spec):
                    return replace(spec, careful=True) if self.failures.suspected(spec) else spec
                self.failures.clear(spec)
                self.skipped += 1
        except StopIteration:
            self._more = False
        except UserError as error:
            self._more, self.broken = False, error
        return None if self._more or not self.again else self.again.popleft()

    def _is_done(self, spec: Spec) -> bool:
        if spec.folder not in self.wanted:
            self.wanted[spec.folder] = set()
            self.failures.look(spec.folder)
        self.wanted[spec.folder].add(spec.shard)
        return self.published.has(spec.folder, spec.shard, spec.fingerprint)

    def tell(self, meter: Meter, units: int = 0, items: int = 0) -> None:
        """Tell the meter what is done and how much there is, and whatever else is to be known."""
        total, note = self._growing.outlook() if self._growing else (self._known, "")
        failed = f"{len(self.failed)} failed" if self.failed else ""
        meter.expect(total, self.skipped)
        meter.advance(units, items, note=", ".join(filter(None, [failed, note])))

    def close(self) -> None:
        """Nothing more is wanted."""
        if isinstance(self._specs, Generator):
            self._specs.close()


def _add_up(work: _Work, into: Summary) -> None:
    """Add every published record of the specs, old and new; also writes the derived manifests."""
    for folder, shards in work.wanted.items():
        for shard, record in (work.published.unchanged(folder) or compact(folder)).items():
            if shard in shards:
                into.samples += record.count
                into.stats.update(record.stats)


def _outcomes(work: _Work, task: ShardTask[Any], executor: Executor, meter: Meter) -> Iterator[Outcome]:
    """Final outcomes in order of completion; retries and the quarantine happen inside.

    The executor is started for the first spec that is to be run, and closed in the end.
    """
    tries: Counter[Spec] = Counter()
    flying: list[Spec] = []
    started = False
    try:
        while flying or not work.over:
            asks = not work.over and (not started or len(flying) < executor.slots)
            if asks:
                spec = work.next()
                if spec is not None:
                    if not started:
                        work.published.forget()
                        executor.start(task)
                        started = True
                    work.failures.begin(spec)
                    flying.append(spec)
                    executor.submit(spec)
                elif not work.over:
                    work.tell(meter)
            if not flying:
                continue
            # The next spec may be long in coming: what is known begins, and what has ended is seen, before it is asked
            # for. It is there that time passes then, not here too.
            outcome = executor.wait(0.0 if asks else None)
            if outcome is None:
                continue
            flying.remove(outcome.spec)
            work.failures.let_go(outcome.spec)
            tries[outcome.spec] += 1
            if _is_final(outcome, tries[outcome.spec], work):
                yield outcome
    finally:
        _end(executor if started else None, flying, work)
    if work.broken is not None:
        raise work.broken


def _end(executor: Executor | None, flying: list[Spec], work: _Work) -> None:
    """Nobody is at these any more, also where an interrupt does not wait for it."""
    try:
        if executor is not None:
            executor.close()
    finally:
        for spec in flying:
            work.failures.let_go(spec)


def _is_final(outcome: Outcome, tried: int, work: _Work) -> bool:
    """Whether the outcome of the attempt number `tried` stands; else its spec is to be tried again."""
    if outcome.result is not None:
        work.failures.clear(outcome.spec)
        return True
    if outcome.error is not None:
        raise outcome.error
    if outcome.kind == "transient" and tried < work.attempts:
        said = f"{outcome.spec.label}: attempt {tried} failed ({outcome.cause}), trying again"
        log.warning("%s", said, extra=_facts(outcome, tried))
        work.again.append(outcome.spec)
        return False
    work.failures.add(outcome.spec, outcome.cause, tried, outcome.trace, outcome.key)
    # Said to people at the end of the run, with the others.
    log.debug("%s: failed for good (%s)", outcome.spec.label, outcome.cause, extra=_facts(outcome, tried))
    return True


def _facts(outcome: Outcome, tried: int) -> dict[str, Any]:
    """What a log of JSON lines has beside the message."""
    spec = outcome.spec
    facts = {"folder": spec.folder.url, "shard": spec.shard, "key": outcome.key, "attempt": tried}
    return {"facts": {**facts, "cause": outcome.cause}}
