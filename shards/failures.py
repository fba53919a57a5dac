"""Shards that failed, or that a process was at when it died: one JSON file each, gone when the shard succeeds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from shards.credentials import without_credentials
from shards.storage import Folder
from shards.task import Spec

FAILURES = "_failures"
_DIED = "the process ended while it was at this shard"


@dataclass
class Failures:
    """The `_failures` of every folder that a run looks into.

    `in_process`: shards are made in this process, which may die of one. Of a worker's death the runner hears.
    """

    in_process: bool
    _known: dict[Folder, set[str]] = field(default_factory=dict)

    def look(self, folder: Folder) -> None:
        """List what is there; to be called once before anything else."""
        self._known[folder] = set(folder.child(FAILURES).names())

    def add(self, spec: Spec, cause: str, attempts: int, trace: str, key: str | None = None) -> None:
        """`spec` has failed for good, because of the sample `key` if it is one sample."""
        said, trace = without_credentials(cause), without_credentials(trace)
        how = {"cause": said, "attempts": attempts, "trace": trace, "careful": spec.careful}
        report = {"shard": spec.shard, "key": key, **how}
        spec.folder.child(FAILURES).publish(_name(spec), json.dumps(report, indent=1).encode())
        self._known[spec.folder].add(_name(spec))

    def clear(self, spec: Spec) -> None:
        """Forget what was said of `spec`."""
        if _name(spec) in self._known[spec.folder]:
            spec.folder.child(FAILURES).delete(_name(spec))
            self._known[spec.folder].discard(_name(spec))

    def begin(self, spec: Spec) -> None:
        """This process begins `spec`, and may die of it: should it, the next one is to be careful."""
        if self.in_process:
            self.add(replace(spec, careful=True), _DIED, 0, "")

    def let_go(self, spec: Spec) -> None:
        """This process is no more at `spec`, and lives. One that was suspected before still is, until it succeeds."""
        if self.in_process and not spec.careful:
            self.clear(spec)

    def suspected(self, spec: Spec) -> bool:
        """Whether a process died while it was at `spec`."""
        if _name(spec) not in self._known[spec.folder]:
            return False
        try:
            report: Any = json.loads(spec.folder.child(FAILURES).read(_name(spec)))
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(report, dict) and bool(report.get("careful"))


def _name(spec: Spec) -> str:
    return f"{spec.shard:05d}.json"
