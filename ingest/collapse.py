"""Notice that nothing comes through any more, and say why: a dead resolver would otherwise fill the ledger with lies.

A few dead links say something of those rows; a thousand failures in a row, of many hosts, say something of the network.
Rows that are fetched during an outage are not accounted for: the shard is tried again, or the run stops.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ingest.engines.engine import Engine
from ingest.ledger import Fetched, Request
from shards import UserError

_WINDOW = 1000
_ENOUGH = 50
"""So many rows of a shard, all finished, are judged by themselves. In mid-shard failures, being fast, come first."""
_ALIVE = 0.01
"""The share of rows that must get a real answer."""
_HOSTS = 10
"""One host that is dead or answers badly is that host's affair; so many are not."""
_PAUSE_S = 5.0
_PROBES = 20

_PROBABLE = {
    "dns": "no name can be resolved: the resolver is down or overloaded",
    "network": "no connection can be made: the network is down, or a firewall is in the way",
    "tls": "no certificate is accepted: a proxy in the way opens TLS (name its certificates with --ca-file), or this "
    "machine's clock is wrong",
    "answers": "every host gives the same bad answer: a proxy or portal is in the way, or this machine is blocked",
    "private": "every host lies at a private address: a portal answers for the resolver, or these are machines of "
    "yours (allow them with --allow-address)",
}
_GROUPS = {
    "dns": "dns",
    "connect": "network",
    "timeout": "network",
    "incomplete": "network",
    "tls": "tls",
    "blocked_address": "private",
    **dict.fromkeys(("not_an_image", "protocol", "http_401", "http_403", "http_407", "http_429"), "answers"),
    **dict.fromkeys(("http_502", "http_503", "http_504", "http_511"), "answers"),
}
"""Cause → what it may be a symptom of. Any other outcome is a real answer, be it a 404."""


@dataclass(frozen=True)
class _Seen:
    request: Request
    group: str | None
    host: str | None


class CollapseWatch:
    """Looks at every row's result: `see` and `finish` return whether nothing comes through, `confirm` makes sure.

    `witnesses` are URLs that have answered before; those that answer now join them.
    """

    def __init__(self, witnesses: Iterable[str] = ()) -> None:
        self._witnesses = dict.fromkeys(map(Request, witnesses))
        self._recent: deque[_Seen] = deque(maxlen=_WINDOW)
        self._shard: list[_Seen] = []
        self._acquitted = False

    def begin(self) -> None:
        """A shard begins; nothing is known of it."""
        self._shard = []
        self._acquitted = False

    def see(self, request: Request, fetched: Fetched) -> bool:
        """Whether the last thousand rows failed alike."""
        seen = _Seen(request, _GROUPS.get(fetched.error_class or ""), fetched.host)
        self._recent.append(seen)
        self._shard.append(seen)
        if seen.group is None:
            self._witnesses[request] = None
            if len(self._witnesses) > _PROBES:
                del self._witnesses[next(iter(self._witnesses))]
            return False
        return not self._acquitted and len(self._recent) == _WINDOW and _collapsed(self._recent)

    def finish(self) -> bool:
        """Whether the rows since `begin`, a whole shard's, failed alike."""
        return not self._acquitted and len(self._shard) >= _ENOUGH and _collapsed(self._shard)

    def confirm(self, engine: Engine) -> None:
        """After a pause, try some of the failed rows again, and some that have answered before.

        Returns if only the latter answer: then the failures say something of those rows after all.

        Raises:
            UserError: none answers; with the probable cause.
            OSError: failed rows answer now, so the shard is to be fetched again.
        """
        failed = [seen for seen in self._recent if seen.group is not None]
        self._recent.clear()
        time.sleep(_PAUSE_S)
        probes = [seen.request for seen in {seen.host: seen for seen in failed}.values()][-_PROBES:]
        requests = [*probes, *self._witnesses]
        answered = {place for place, fetched in engine.fetch(requests) if fetched.error_class not in _GROUPS}
        if any(place < len(probes) for place in answered):
            raise OSError(f"for a moment none of {len(failed)} rows came through; they are fetched again")
        if answered:
            self._acquitted = True
            return
        group = Counter(seen.group for seen in failed).most_common(1)[0][0]
        assert group is not None
        raise UserError(
            f"nothing comes through: {len(failed)} rows failed one after the other, and again {_PAUSE_S:g} seconds "
            f"later. Probably {_PROBABLE[group]}",
            do="Mend it and run the same command again, or go on regardless with --no-stop",
        )


def _collapsed(window: Sequence[_Seen] | deque[_Seen]) -> bool:
    bad = [seen for seen in window if seen.group is not None]
    alive = len(window) - len(bad) > _ALIVE * len(window)
    return not alive and len({seen.host for seen in bad}) >= _HOSTS
