"""A shard task: a pure function from one shard spec to one published record, or one failure with its cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from shards.storage import Folder


@dataclass(frozen=True)
class Spec:
    """One unit of work: which shard, the folder its record goes to, and the fingerprint that makes it done.

    Stages subclass it with what their workers need. A spec crosses processes, so it holds names, never pixels.
    `careful` is set once a worker process died while it was at this spec: the worker then takes no risk. Such a spec
    has its worker to itself, so that one of several that died together is not taken along again.
    """

    shard: int
    folder: Folder
    fingerprint: str
    careful: bool = field(default=False, compare=False, kw_only=True)

    @property
    def label(self) -> str:
        return f"{self.folder.url.rsplit('/', 1)[-1]}/{self.shard:05d}"


S_contra = TypeVar("S_contra", bound=Spec, contravariant=True)
S = TypeVar("S", bound=Spec)


class Worker(Protocol[S_contra]):
    """What runs in a worker process; made once there, used for many shards, by up to `overlap` threads at a time."""

    def run(self, spec: S_contra) -> Any:
        """Do the work, publish payload then record, return the record; of `map_shards`, return what is to be known.

        Raises `UserError` (the whole run stops), `ShardError` (the shard is quarantined at once), or anything else
        (the shard is tried again, and quarantined after the last try).
        """
        ...

    def close(self) -> None:
        """Let go of what it holds; called once, unless its process dies first.

        After an interrupt `run` may still be under way in other threads: it then ends soon, by any exception.
        """
        ...


@runtime_checkable
class BusyWorker(Protocol):
    """A worker that tells for how many seconds in all its accelerator, or the cores in its place, have been at work."""

    @property
    def busy_seconds(self) -> float: ...


@runtime_checkable
class GrowingTask(Protocol):
    """A task whose specs become known while it runs: they are run as they come, and never held all at once."""

    def outlook(self) -> tuple[int, str]:
        """How many specs are known by now, and in a few words how far it has got with finding them; "" when it has."""
        ...


class ShardTask(Protocol, Generic[S]):
    """A stage's work. The task object itself travels to the workers: keep it small and picklable."""

    name: str
    overlap: int
    """How many specs a worker may be at, at once: 1 where a shard keeps a worker busy, more where it mostly waits."""

    def specs(self) -> Iterator[S | None]:
        """Every spec of the stage, done or not, in order. A task that grows gives None where the next is not known yet,
        after having waited for some time.
        """
        ...

    def open(self) -> Worker[S]:
        """Load what a worker needs (a model, a client); called once in each worker."""
        ...
