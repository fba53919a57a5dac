"""Notice that nothing comes through any more, and say why: a dead resolver would otherwise fill the ledger with lies.

A few dead links say something of those rows; a thousand failures in a row, of many hosts, say something of the network.
Rows that are fetched during an outage are not accounted for: the shard is tried again, or the run stops. That goes for
every shard that is open at the time.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ingest.engines.engine import Engine
from ingest.fetched import Fetched, Request
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
    number: int
    request: Request
    group: str | None
    host: str | None


class OutageDetector:
    """Looks at every row's result in a worker, of however many shards at a time.

    `witnesses` are URLs that have answered before; those that answer now join them.
    """

    def __init__(self, witnesses: Iterable[str] = ()) -> None:
        self.witnesses = dict.fromkeys(map(Request, witnesses))
        self.recent: deque[_Seen] = deque(maxlen=_WINDOW)
        self.numbers = itertools.count()
        self.open: set[ShardOutage] = set()
        self.lock = threading.Lock()
        self.trial = threading.Lock()
        """Held until it is clear what a collapse was about; no shard is finished meanwhile."""
        self.verdict: UserError | None = None

    @contextlib.contextmanager
    def shard(self) -> Iterator[ShardOutage]:
        """A shard begins; nothing is known of it."""
        shard = ShardOutage(self)
        with self.lock:
            self.open.add(shard)
        try:
            yield shard
        finally:
            with self.lock:
                self.open.discard(shard)


class ShardOutage:
    """One shard's part: `see` and `finish` return whether nothing comes through, `confirm` makes sure.

    Both raise what another shard's `confirm` found out, if that is about rows of this shard too.
    """

    def __init__(self, watch: OutageDetector) -> None:
        self._watch = watch
        self._rows: list[_Seen] = []
        self._acquitted = False
        self._last_failure = -1
        self._spoilt: OSError | None = None

    def restart(self) -> None:
        """The shard's rows are fetched again."""
        self._rows = []

    def see(self, request: Request, fetched: Fetched) -> bool:
        """Whether the last thousand rows of all shards failed alike."""
        watch = self._watch
        with watch.lock:
            self._check()
            seen = _Seen(next(watch.numbers), request, _GROUPS.get(fetched.error_class or ""), fetched.host)
            watch.recent.append(seen)
            self._rows.append(seen)
            if seen.group is None:
                watch.witnesses[request] = None
                if len(watch.witnesses) > _PROBES:
                    del watch.witnesses[next(iter(watch.witnesses))]
                return False
            self._last_failure = seen.number
            return not self._acquitted and len(watch.recent) == _WINDOW and _collapsed(watch.recent)

    def finish(self) -> bool:
        """Whether the shard's rows failed alike. Waits for the verdict on another shard's collapse."""
        with self._watch.trial, self._watch.lock:
            self._check()
            return self._is_collapsed()

    def confirm(self, engine: Engine) -> None:
        """After a pause, try some of the failed rows again, and some that have answered before.

        Returns if only the latter answer: then the failures say something of those rows after all.

        Raises:
            UserError: none answers; with the probable cause.
            OSError: failed rows answer now, so the shard is to be fetched again, and all others with rows among them.
        """
        watch = self._watch
        with watch.trial:
            with watch.lock:
                self._check()
                window = len(watch.recent) == _WINDOW and _collapsed(watch.recent)
                if not window and not self._is_collapsed():
                    return  # another shard's trial was about these rows
                judged = list(watch.recent) if window else self._rows
                failed = [seen for seen in judged if seen.group is not None]
                watch.recent.clear()
            time.sleep(_PAUSE_S)
            with watch.lock:
                # Those too that have answered meanwhile, in other shards.
                witnesses = list(watch.witnesses)
            answered, from_failed = _ask_again(engine, failed, witnesses)
            with watch.lock:
                if from_failed:
                    engine.forget_failures()
                    error = OSError(f"for a moment none of {len(failed)} rows came through; they are fetched again")
                    for shard in watch.open:
                        if shard._last_failure >= failed[0].number:
                            shard._spoilt = error
                    raise error
                if answered:
                    self._acquitted = True
                    return
                watch.verdict = _verdict(failed)
                raise watch.verdict

    def _check(self) -> None:
        if self._watch.verdict is not None:
            raise self._watch.verdict
        if self._spoilt is not None:
            raise self._spoilt

    def _is_collapsed(self) -> bool:
        return not self._acquitted and len(self._rows) >= _ENOUGH and _collapsed(self._rows)


def _ask_again(engine: Engine, failed: Sequence[_Seen], witnesses: Sequence[Request]) -> tuple[bool, bool]:
    """Whether anything answers now, and whether one of the failed rows does: the last ones, one a host."""
    engine.forget_failures()
    probes = [seen.request for seen in {seen.host: seen for seen in failed}.values()][-_PROBES:]
    results = engine.fetch([*probes, *witnesses])
    answered = {place for place, fetched in results if fetched.error_class not in _GROUPS}
    return bool(answered), any(place < len(probes) for place in answered)


def _verdict(failed: Sequence[_Seen]) -> UserError:
    group = Counter(seen.group for seen in failed).most_common(1)[0][0]
    assert group is not None
    return UserError(
        f"nothing comes through: {len(failed)} rows failed one after the other, and again {_PAUSE_S:g} seconds "
        f"later. Probably {_PROBABLE[group]}",
        do="Mend it and run the same command again, or go on regardless with --no-stop",
    )


def _collapsed(window: Sequence[_Seen] | deque[_Seen]) -> bool:
    bad = [seen for seen in window if seen.group is not None]
    alive = len(window) - len(bad) > _ALIVE * len(window)
    return not alive and len({seen.host for seen in bad}) >= _HOSTS
