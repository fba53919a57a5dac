"""One run at a time in a folder of an object store: an object that its holder renews, kept by conditions on writes.

S3 writes an object on the condition that there is none (`If-None-Match: *`), or that it still is the version that was
seen (`If-Match`). So of two runs that want the lease one gets it, also where both take over from one that died. Whether
a holder lives is judged by its renewals and one's own clock: clocks of machines are never compared.

A run that was taken for dead, or its workers, may live on for a while. So files of a shard are written on the condition
that there are none; only who still works for the holder removes what is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import UserError
from shards.outages import ride_out
from shards.ranges import read_file
from shards.stores import code_of

log = logging.getLogger(__name__)

NAME = ".run.json"
_RENEW_S = 10.0
_LOOK_EVERY_S = 1.0
_GIVE_UP_S = 5.0
DEAD_S = 45.0
"""A lease that was not renewed for so long is nobody's."""
_TRIES = 5
"""So often what is in a file's way is removed."""


class Held(NamedTuple):
    """A lease that this process, or the one that it works for, was given: over the folder at `url`, to a run."""

    url: str
    run: str


_held: dict[str, Held] = {}


def over(url: str) -> Held | None:
    """The lease over a folder, or one above it, that this process works under."""
    return next((held for held in _held.values() if f"{url}/".startswith(f"{held.url.rstrip('/')}/")), None)


def remember(held: Held) -> None:
    """This process works for the run that holds a lease."""
    _held[held.url] = held


def refuse_lost(held: Held) -> None:
    """Raise `UserError` if a lease is another run's by now, or nobody's."""
    try:
        holder = json.loads(read_file(f"{held.url.rstrip('/')}/{NAME}"))
    except (FileNotFoundError, ValueError):
        holder = None
    if not isinstance(holder, dict) or holder.get("run") != held.run:
        raise _lost(held.url)


def put(fs: Any, path: str, held: Held, how: Callable[..., Any]) -> None:
    """Put an object as `how` does, which takes s3fs's `mode`, and never over one of a run that has taken over.

    Raises `UserError` if one has.
    """
    for _ in range(_TRIES):
        try:
            ride_out(held.url, lambda: how(mode="create"))
        except OSError as error:
            if not isinstance(error, FileExistsError) and code_of(error) not in _REFUSED:
                raise
        else:
            return
        # A killed attempt's, or one of a run that was taken for dead; or ours, and the answer was lost.
        refuse_lost(held)
        with contextlib.suppress(FileNotFoundError):
            ride_out(held.url, lambda: fs.rm_file(path))
    raise OSError(f"{path}: somebody else writes it again and again")


_REFUSED = frozenset({"PreconditionFailed", "412"})
"""How S3 says that a condition does not hold."""


def _lost(url: str) -> UserError:
    return UserError(
        f"another run took over here, as this one was not heard of for {DEAD_S:.0f} s",
        where=url,
        do="Let that one go on, or end it and run the same command again",
    )


@contextlib.contextmanager
def leased(fs: Any, path: str, url: str) -> Iterator[None]:
    """Wait until no other run holds the folder at `path` of `fs`, then hold it.

    A store that is not S3's, or keeps no conditions, has no leases: the second is said. Raises `UserError` in the end
    of the block if the lease was lost to another run, which took this one for dead.
    """
    lease = _Lease(fs, f"{path.rstrip('/')}/{NAME}", url)
    if not lease.is_kept or not lease.taken():
        yield
        return
    threading.Thread(target=lease.keep, daemon=True).start()
    remember(lease.held)
    try:
        yield
    except KeyboardInterrupt:
        lease.refuse_lost()
        raise
    finally:
        lease.ended.set()
        _held.pop(url, None)
        # Not longer: a store that is away shall not hold up an end. What stays is nobody's soon.
        giving = threading.Thread(target=lease.give_up, daemon=True)
        giving.start()
        giving.join(_GIVE_UP_S)
    lease.refuse_lost()


class _Lease:
    def __init__(self, fs: Any, name: str, url: str) -> None:
        self._fs, self._name, self._url = fs, name, url
        protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
        self.is_kept = "s3" in protocols
        self._me = {
            "run": uuid.uuid4().hex,
            "process": os.getpid(),
            "began": _begun(os.getpid()),
            "machine": _machine(),
        }
        self.held = Held(url, str(self._me["run"]))
        self._renewals = 0
        self._tag = ""
        self._lost = False
        self._keeps_conditions = True
        self.ended = threading.Event()

    def taken(self) -> bool:
        """Wait for the lease and take it; False where the store keeps no conditions."""
        seen, since, said = "", time.monotonic(), False
        while not ride_out(self._url, lambda: self._put(IfNoneMatch="*")):
            holder, tag = ride_out(self._url, self._look)
            if holder is None:
                continue
            if self._is_me(holder):
                # The answer was lost on its way, and the request made again.
                self._tag = tag
                return True
            if tag != seen:
                seen, since = tag, time.monotonic()
            is_dead = _is_dead(holder) or time.monotonic() - since > DEAD_S
            if is_dead and ride_out(self._url, lambda tag=tag: self._put(IfMatch=tag)):  # type: ignore[misc]
                return True
            if not said:
                said = True
                log.warning(
                    "%s: another run is at work here (process %s on %s); waiting for its end, or its death",
                    self._url,
                    holder.get("process"),
                    holder.get("host"),
                )
            time.sleep(_LOOK_EVERY_S)
        if self._keeps_conditions and not ride_out(self._url, lambda: self._put(IfNoneMatch="*")):
            return True
        log.warning("%s: this store keeps no conditions on writes: see that one run at a time works here", self._url)
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._name)
        return False

    def keep(self) -> None:
        """Renew the lease until `ended` is set; where somebody else has it, interrupt the run."""
        while not self.ended.wait(_RENEW_S):
            # During an outage it cannot be renewed, and nobody can take it over.
            with contextlib.suppress(Exception):
                if not self._put(IfMatch=self._tag) and not self._is_mine() and not self.ended.is_set():
                    self._lost = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return

    def _is_mine(self) -> bool:
        """Whether it is after all: an answer to a renewal may have been lost."""
        holder, tag = self._look()
        if holder is not None and self._is_me(holder):
            self._tag = tag
            return True
        return False

    def _is_me(self, holder: dict[str, Any]) -> bool:
        return holder.get("run") == self._me["run"]

    def refuse_lost(self) -> None:
        if self._lost:
            raise _lost(self._url)

    def give_up(self) -> None:
        with contextlib.suppress(Exception):
            if not self._lost and self._is_mine():
                self._fs.rm_file(self._name)

    def _put(self, **condition: str) -> bool:
        """Write the lease on a condition; whether it held."""
        self._renewals += 1
        told = {**self._me, "host": socket.gethostname(), "renewals": self._renewals}
        try:
            answer = self._fs.pipe_file(self._name, json.dumps(told).encode(), **condition)
        except FileExistsError:
            return False
        except OSError as error:
            code = code_of(error)
            self._keeps_conditions = code != "NotImplemented"
            if code in _REFUSED | {"NoSuchKey", "404"}:
                return False
            if code == "NotImplemented":
                return True
            raise
        self._tag = str(answer["ETag"])
        return True

    def _look(self) -> tuple[dict[str, Any] | None, str]:
        """Who holds it, and the version of the object that says so, or one before it; None if it is gone."""
        self._fs.invalidate_cache()
        try:
            tag = str(self._fs.info(self._name)["ETag"])
            holder = json.loads(read_file(f"{self._url.rstrip('/')}/{NAME}"))
        except FileNotFoundError:
            return None, ""
        except ValueError:
            holder = {}
        return (holder if isinstance(holder, dict) else {}), tag


def _machine() -> str:
    """This machine since it was started, and this container; "" where that cannot be told."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _begun(process: int) -> str:
    """When a process began, in ticks of its machine's clock; "" where there is none."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, and is no more."""
    here = bool(_machine()) and holder.get("machine") == _machine()
    process = holder.get("process")
    return here and isinstance(process, int) and _begun(process) != holder.get("began")
