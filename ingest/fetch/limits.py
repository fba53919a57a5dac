"""What this machine lets a process have: open files, ports. Running out of them is nobody's answer about a URL."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from dataclasses import dataclass

from ingest.settings import NetworkSettings
from shards import UserError

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Errors of the system that say that this machine is full."""

CRAMPED_S = 20.0
"""For so long it may have no room for anything until the run stops."""
CRAMPED_WAIT_S = 0.2
"""When to try again what there was no room for."""
MOST_LOOKUPS = 256
"""Names that are looked up at one time: some hang for ten seconds or more."""

_OTHERS = 64
"""Descriptors for everything else that is opened in the meantime: spools, shards, bodies that wait, the plan."""
_OF_A_CONNECTION = 3
"""Its socket, the duplicate that curl takes, and the file of a long body."""


@dataclass(frozen=True)
class Room:
    """How many connections may be open, and how many names may be looked up, at one time."""

    connections: int
    lookups: int


def make_room(settings: NetworkSettings) -> Room:
    """Raise this process's limit of open files as far as `settings` need it and the system allows; what fits then."""
    used = _open_files()
    wanted = used + _OTHERS + _OF_A_CONNECTION * settings.connections + MOST_LOOKUPS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return Room(settings.connections, MOST_LOOKUPS)
    free = soft - used - _OTHERS
    lookups = max(4, min(MOST_LOOKUPS, free // 4))
    return Room(max(1, min(settings.connections, (free - lookups) // _OF_A_CONNECTION)), lookups)


def is_out_of_files() -> bool:
    """Whether no file can be opened now, which libraries report as a failure of what it was for."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in NO_ROOM
    return False


def check_patience(seconds: float) -> None:
    """Raise `UserError` if this machine has been full for too long."""
    if seconds > CRAMPED_S:
        raise UserError(
            f"this machine has had no open file or free port left for {CRAMPED_S:g} seconds",
            do="Raise its limits (ulimit -n), end what else uses them, or ask for fewer --connections",
        )


def _open_files() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  pathlib would make an object of each
    return 100
