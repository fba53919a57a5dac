"""What workers on Ray count, where Ray's own endpoint of each machine serves it to Prometheus.

Names begin with `ray_clipstill_`; each carries the command (`stage`) and Ray's own tags. Counters only grow: images a
second are `rate(ray_clipstill_samples_total[1m])`, the share of rows that became samples is samples by rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shards.record import ShardRecord

if TYPE_CHECKING:
    from shards.executor import Outcome

_COUNTERS = {
    "shards": "shards that were made",
    "failed": "attempts at a shard that failed",
    "rows": "rows of shards that were made",
    "samples": "samples of shards that were made",
    "bytes": "bytes of shards that were made",
    "busy_seconds": "seconds in which an accelerator, or the cores in its place, ran a teacher",
}


class WorkerMetrics:
    """One worker's."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter  # noqa: PLC0415 - only workers have Ray

        self._tags = {"stage": stage}
        self._busy = 0.0
        self._counters: dict[str, Any] = {
            name: Counter(f"clipstill_{name}", description, ("stage",)) for name, description in _COUNTERS.items()
        }

    def ended(self, outcome: Outcome, busy: float) -> None:
        """Count an attempt; `busy` are the worker's seconds so far."""
        self._count("busy_seconds", busy - self._busy)
        self._busy = max(busy, self._busy)
        record = outcome.result
        if outcome.kind != "done":
            self._count("failed", 1)
        else:
            self._count("shards", 1)
        if isinstance(record, ShardRecord):
            self._count("rows", record.stats.get("rows", record.count))
            self._count("samples", record.count)
            self._count("bytes", sum(file.bytes for file in record.files))

    def _count(self, name: str, amount: float) -> None:
        if amount > 0:
            self._counters[name].inc(amount, self._tags)
