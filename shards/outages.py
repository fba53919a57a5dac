"""A store that does not answer for a while is waited for: here, and nowhere else.

The libraries behind fsspec try a request that fails again for some seconds; botocore does so five times, with random
pauses that grow. What lasts longer than that is an outage. Nothing is lost by waiting for its end, so whoever asks
waits, and goes on where it was; the console says so once, and once more when the store answers again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shards.errors import UserError, one_line
from shards.stores import ShortReadError, came_wrong, is_passing

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 900.0
"""So long an outage is waited out."""
_LONGEST_S = 20.0
"""Between two tries."""
_SHORT = 4
"""Tries in all at what comes, but not as it should be: that may be so for good."""

_lock = threading.Lock()
_answered: set[str] = set()
_away: dict[str, float] = {}
"""Stores that do not answer now, and since when."""
listeners: list[Callable[[str, bool, str], None]] = []
"""Who is told beside the log: the store, whether it is away now, and the line."""
_ending = threading.Event()
"""Set when the process was told to end."""


class StoreAwayError(UserError):
    """A store was waited for and did not come back."""


def store_of(url: str) -> str:
    """What has its outages in common: a bucket or host."""
    scheme, colon, rest = url.partition("://")
    return f"{scheme}{colon}{rest.partition('/')[0]}"


def has_answered(url: str) -> bool:
    """Whether this store has answered this process, or the one that says so (`remember`)."""
    return store_of(url) in _answered


def remember(url: str) -> None:
    """A store has answered somebody: that it is not there now is an outage, and no mistake in its name."""
    _answered.add(store_of(url))


def wait_no_more() -> None:
    """The process was told to end: whoever waits for a store, or would, gives up at once."""
    _ending.set()


def wait_again() -> None:
    """What was told to end has ended, and this process goes on."""
    _ending.clear()


def is_away(store: str) -> bool:
    """Whether this process waits for a store."""
    return store in _away


def ride_out(url: str, call: Callable[[], T]) -> T:
    """Call, again and again while the store at `url` is away, overloaded, or breaks off, and return what comes of it.

    A store that never answered is not waited for: its name may be wrong. Raises what `call` raises; `UserError` where
    the store was waited for and did not come back; `KeyboardInterrupt` for a store that is away when the process was
    told to end.
    """
    if _ending.is_set() and store_of(url) in _away:
        raise KeyboardInterrupt
    tries = short = 0
    while True:
        try:
            found = call()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not came_wrong(error):
                # Of a store that never answered it may be a library's word for that.
                _came_back(url, is_sure=False)
            if not is_passing(error):
                raise
            short += came_wrong(error)
            if short >= _SHORT and not isinstance(error, ShortReadError):
                raise ShortReadError(f"{url}: {error}") from error
            if short >= _SHORT or not (came_wrong(error) or has_answered(url)):
                raise
            if came_wrong(error):
                pause = 0.2
            else:
                pause = 1.0
                # Of an outage that was waited for once nobody waits again, whoever asks.
                if _went_away(url, error) > PATIENCE_S:
                    raise StoreAwayError(
                        f"the store has not answered for {_minutes(PATIENCE_S)} ({_reason(error)})",
                        where=store_of(url),
                        do="What was published stays: run the same command again once it answers",
                    ) from error
            if _ending.wait(random.uniform(0.5, 1) * min(_LONGEST_S, pause * 2.0**tries)):
                raise KeyboardInterrupt from error
            tries += 1
        else:
            # Some libraries say of what they cannot reach that it is not there.
            _came_back(url, is_sure=found is not False and found != [])
            return found


def _reason(error: BaseException) -> str:
    return one_line(str(error))[:300] or type(error).__name__


def _went_away(url: str, error: BaseException) -> float:
    """For how many seconds it has been away; said once."""
    store = store_of(url)
    with _lock:
        now = time.monotonic()
        since = _away.setdefault(store, now)
    if since == now:
        reason, most = _reason(error), _minutes(PATIENCE_S)
        _say(store, f"{store}: the store does not answer ({reason}); waiting for it, {most} at most", is_away=True)
    return now - since


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _came_back(url: str, *, is_sure: bool = True) -> None:
    store = store_of(url)
    if is_sure:
        _answered.add(store)
    if store in _away:
        with _lock:
            since = _away.pop(store, None)
        if since is not None:
            gone = time.monotonic() - since
            _say(store, f"{store}: the store answers again, after {gone:.0f} s", is_away=False)


def _say(store: str, line: str, *, is_away: bool) -> None:
    log.warning("%s", line)
    for listener in listeners:
        listener(store, is_away, line)
