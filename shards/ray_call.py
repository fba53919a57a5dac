"""One call on Ray: in a process of its own, where there is room, and begun again where its machine is lost."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shards.errors import UserError
from shards.ray_machines import Machine, Needs
from shards.ray_session import RayLostError
from shards.ray_worker import cause_of, machine_went

log = logging.getLogger(__name__)

R = TypeVar("R")

_LOOK_EVERY_S = 2.0
_LOSSES = 3
"""So many machines in a row may be lost under it: it may be what kills them."""


class RayCaller:
    """An actor's class. `threads`: how many the call may use."""

    def __init__(self, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)

    def begin(self) -> str:
        """Answered once the process is there: on which machine."""
        import ray  # noqa: PLC0415

        machine: str = ray.get_runtime_context().get_node_id()
        return machine

    def call(self, function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
        return function(*arguments)


class _MachineLostError(Exception):
    """Of a machine whose raylet alone has died, or that vanished, calls do not tell."""


def call_on_ray(
    needs: Needs, threads: int, look: Callable[[], Sequence[Machine]], function: Callable[..., R], *arguments: Any
) -> R:
    """What a function returns, called in a process that has what it `needs`.

    `look`: the machines that are alive, asked every few seconds; what it raises ends the wait. Raises `UserError` if
    the process dies, and what the function raises.
    """
    import ray  # noqa: PLC0415

    for losses in range(1, _LOSSES + 1):
        actor = ray.remote(**needs.options, max_restarts=0)(RayCaller).remote(threads)
        try:
            machine: str = _awaited(actor.begin.remote(), look)
            result: R = _awaited(actor.call.remote(function, arguments), look, machine)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except (ray.exceptions.RayError, RayLostError, _MachineLostError) as error:
            is_lost = isinstance(error, _MachineLostError | ray.exceptions.ActorUnavailableError) or machine_went(error)
            if not is_lost or losses == _LOSSES:
                reason, _ = cause_of(error)
                raise UserError(f"the worker process died ({reason})", do="Run the same command again") from None
            log.warning("the machine that was at work was lost: beginning again on another")
            ray.kill(actor)
        else:
            return result
    raise AssertionError("the last loss raises")


def _awaited(reference: Any, look: Callable[[], Sequence[Machine]], machine: str | None = None) -> Any:
    import ray  # noqa: PLC0415

    while not ray.wait([reference], timeout=_LOOK_EVERY_S)[0]:
        alive = {each.id for each in look()}
        if machine is not None and machine not in alive:
            raise _MachineLostError("its machine was lost")
    return ray.get(reference)
