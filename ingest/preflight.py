"""Before the first download: is the resolver the bottleneck? Web-scale lists name a new host every few rows."""

from __future__ import annotations

import contextlib
import threading
import time
from urllib.parse import urlsplit

import pyarrow as pa

from ingest.fetch.names import NO_ADDRESS, Names

_HOSTS = 300
_ENOUGH = 20
"""Lists of fewer hosts ask the resolver too little to matter."""
_PATIENCE_S, _SILENCE_S = 8.0, 2.0
"""How long to wait in all, and after the last answer: names that nobody answers for hold nobody up."""
_FAST = 200.0
"""Images a second that one would expect of a single core."""


def resolver_warning(rows: pa.Table) -> str | None:
    """One line if looking names up would hold the download back, judged by the hosts of `rows` (a column `url`).

    Takes 8 seconds at most: looks up to 300 hosts up, as a worker does it.
    """
    hosts = [host for url in rows["url"].to_pylist() if (host := _name(url)) is not None]
    distinct = list(dict.fromkeys(hosts))[:_HOSTS]
    if len(distinct) < _ENOUGH:
        return None
    answered, seconds = _look_up(distinct)
    if not answered:
        return f"the resolver answers for none of {len(distinct)} hosts of this list; see /etc/resolv.conf"
    names = answered / seconds
    rate = names * len(hosts) / len(set(hosts))
    if rate >= _FAST:
        return None
    return (
        f"the resolver will be the bottleneck: it answers {names:.0f} names a second, and this list has "
        f"{len(set(hosts))} hosts in {len(hosts)} rows, so expect {rate:.0f} images a second at most for a worker. "
        "A caching resolver on this machine (unbound, knot-resolver) mends that"
    )


def _look_up(hosts: list[str]) -> tuple[int, float]:
    """How many names were answered for, be it that there is no such name, and in how many seconds the last one was."""
    news = threading.Event()
    names = Names(news.set, _PATIENCE_S)
    began = last = time.monotonic()
    for host in hosts:
        names.ask(host)
    open_, answered = len(hosts), 0
    while open_:
        news.clear()
        now = time.monotonic()
        for _, name in names.answered():
            open_ -= 1
            if name.failure is None or name.failure == NO_ADDRESS:
                answered, last = answered + 1, now
        until = min(began + _PATIENCE_S, last + _SILENCE_S if answered else began + _PATIENCE_S)
        if now >= until:
            break
        news.wait(min(until, names.due or until) - now)
    names.close()
    return answered, max(last - began, 1e-3)


def _name(url: str | None) -> str | None:
    """The host of a URL if it must be looked up."""
    with contextlib.suppress(ValueError):
        host = urlsplit((url or "").strip()).hostname
        if host and host.isascii() and not host.replace(".", "").isdigit() and ":" not in host:
            return host
    return None
