"""Outages of a store that workers on Ray meet, said where the user sees it: by way of the cluster's key-value store.

Workers do not print. Each leaves there what it last knew of a store, under its driver's job; the driver looks.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

from shards import outages
from shards.ray_session import RaySession

log = logging.getLogger("shards.outages")

_NAMESPACE = b"clipstill-outages"


def leave_for_driver() -> None:
    """In a worker: have its driver know of outages."""
    if _leave not in outages.listeners:
        outages.listeners.append(_leave)


def _leave(store: str, is_away: bool, line: str) -> None:
    from ray.experimental import internal_kv  # noqa: PLC0415 - slow to import

    with contextlib.suppress(Exception):  # it is said in the worker's log, too
        told = json.dumps([is_away, line]).encode()
        internal_kv._internal_kv_put(_job() + store.encode(), told, overwrite=True, namespace=_NAMESPACE)


class Heard:
    """In the driver: says each outage that workers met once, and its end."""

    def __init__(self) -> None:
        self._away: set[str] = set()

    @property
    def is_waiting(self) -> bool:
        """Whether it is still to be said that a store answers again."""
        return bool(self._away)

    def look(self, session: RaySession | None) -> None:
        """Ask the cluster what there is new; one small request, and one for each store that was away once.

        One that is silent is not asked: Ray would end this process after a minute.
        """
        if session is None or session.is_silent:
            return
        for store, (is_away, line) in _left().items():
            if is_away == (store in self._away) or (is_away and outages.is_away(store)):
                continue
            (self._away.add if is_away else self._away.discard)(store)
            log.warning("%s", line)

    def forget(self, session: RaySession | None) -> None:
        """Remove what was left."""
        from ray.experimental import internal_kv  # noqa: PLC0415

        self._away.clear()
        if session is None or session.is_silent:
            return
        with contextlib.suppress(Exception):
            internal_kv._internal_kv_del(_job(), del_by_prefix=True, namespace=_NAMESPACE)


def _left() -> dict[str, Any]:
    from ray.experimental import internal_kv  # noqa: PLC0415

    found = {}
    with contextlib.suppress(Exception):  # of a cluster that is lost others tell
        for name in internal_kv._internal_kv_list(_job(), namespace=_NAMESPACE):
            told = internal_kv._internal_kv_get(name, namespace=_NAMESPACE)
            if told is not None:
                found[name.removeprefix(_job()).decode()] = json.loads(told)
    return found


def _job() -> bytes:
    import ray  # noqa: PLC0415

    return f"{ray.get_runtime_context().get_job_id()} ".encode()
