"""The machines of a Ray cluster, what a worker needs of one, and for how many workers there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import UserError

_GB = 10**9


@dataclass(frozen=True)
class Machine:
    """One that is alive. `resources`: what it has in all, by Ray's names; `leaves`: it takes nothing new."""

    id: str
    resources: Mapping[str, float]
    leaves: bool = False


@dataclass(frozen=True)
class Needs:
    """What a worker reserves on its machine: cores, devices, bytes of memory."""

    cpus: float = 1
    gpus: float = 0
    memory: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """As `ray.remote` takes it."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory or None}

    def room(self, machines: Sequence[Machine]) -> int:
        """How many workers fit on the machines, if nobody else uses them."""
        needs = self._resources()
        return sum(
            min(int(machine.resources.get(kind, 0) / need) for kind, need in needs.items())
            for machine in machines
            if not machine.leaves
        )

    def refusal(self, machines: Sequence[Machine]) -> UserError:
        """Why no worker fits on any of the machines."""
        needs = self._resources()
        have = [", ".join(_said(kind, machine.resources.get(kind, 0)) for kind in needs) for machine in machines]
        return UserError(
            f"a worker needs {' and '.join(_said(*need) for need in needs.items())} on one machine, those of the Ray "
            f"cluster have {'; '.join(have)}",
            do="Ask for less, or join a larger cluster with --ray-address",
        )

    def _resources(self) -> dict[str, float]:
        needs = (("CPU", self.cpus), ("GPU", self.gpus), ("memory", float(self.memory)))
        return {kind: need for kind, need in needs if need > 0}


def _said(kind: str, amount: float) -> str:
    return f"{amount / _GB:.3g} GB of memory" if kind == "memory" else f"{amount:g} {kind}"
