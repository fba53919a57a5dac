"""Before the first download: is the resolver the bottleneck? Web-scale lists name a new host every few rows."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import urlsplit

import pyarrow as pa

_HOSTS = 300
_ENOUGH = 20
"""Lists of fewer hosts ask the resolver too little to matter."""
_AT_ONCE = 64
_PATIENCE_S = 8.0
_FAST = 200.0
"""Images a second that one would expect of a single core."""


def resolver_warning(rows: pa.Table) -> str | None:
    """One line if looking names up would hold the download back, judged by the hosts of `rows` (a column `url`).

    Takes 8 seconds at most: looks up to 300 hosts up, 64 at once, as the system does it.
    """
    hosts = [host for url in rows["url"].to_pylist() if (host := _name(url)) is not None]
    distinct = list(dict.fromkeys(hosts))[:_HOSTS]
    if len(distinct) < _ENOUGH:
        return None
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lookup")
    began = time.monotonic()
    lookups = [pool.submit(_is_answered, host) for host in distinct]
    done, _ = wait(lookups, timeout=_PATIENCE_S)
    seconds = max(time.monotonic() - began, 1e-3)
    pool.shutdown(wait=False, cancel_futures=True)
    answered = sum(lookup.result() for lookup in done)
    if not answered:
        return f"the resolver answers for none of {len(distinct)} hosts of this list; see /etc/resolv.conf"
    names = answered / seconds
    rate = names * len(hosts) / len(set(hosts))
    if rate >= _FAST:
        return None
    return (
        f"the resolver will be the bottleneck: it answers {names:.0f} names a second, and this list has "
        f"{len(set(hosts))} hosts in {len(hosts)} rows, so expect {rate:.0f} images a second at most. A caching "
        "resolver on this machine (unbound, knot-resolver) mends that"
    )


def _name(url: str | None) -> str | None:
    """The host of a URL if it must be looked up."""
    with contextlib.suppress(ValueError):
        host = urlsplit((url or "").strip()).hostname
        if host and not host.replace(".", "").isdigit() and ":" not in host:
            return host
    return None


def _is_answered(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error.errno == socket.EAI_NONAME  # that there is no such name is an answer too
    except (OSError, UnicodeError):
        return False
    return True
