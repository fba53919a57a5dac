"""A network in which hosts can be dead: a namespace with a resolver and a web server of its own, at public addresses.

    python -m benchmarks.ingest.own_network FOLDER      in such a namespace: sets it up and serves FOLDER (`server.py`)

Good hosts (93.184.0.0/16, ports 80 and 443) answer in 20 ms; packets to 5.5.0.0/16 vanish, because nothing answers
ARP there; 5.6.0.0/16 has no route. Names are `resolver.py`'s, and resolv.conf is as it comes: 5 seconds, twice.
Works as root and as a plain user, where user namespaces are allowed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ingest.resolver import GOOD, LATENCY
from benchmarks.ingest.server import Server

_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--net")
_SETUP = (
    "ip link set lo up",
    f"ip route add local {GOOD}.0.0/16 dev lo",
    "ip link add dead0 type veth peer name dead1",
    "ip addr add 5.5.5.1/16 dev dead0",
    "ip link set dead0 arp off up",
    "ip link set dead1 up",
    "ip route add unreachable 5.6.0.0/16",
)


class NoNetworkError(Exception):
    """Why this machine allows no network of one's own."""


@dataclass(frozen=True)
class OwnNetwork:
    """The server's process, and what to put before a command to run it in the network."""

    server: int
    enter: tuple[str, ...]


@contextlib.contextmanager
def own_network(served: Path) -> Iterator[OwnNetwork]:
    """A network for the length of the block, in which `served` is what every good host has.

    Raises `NoNetworkError` where namespaces are not allowed or programs are missing.
    """
    if missing := [name for name in ("unshare", "nsenter", "ip", "mount") if shutil.which(name) is None]:
        raise NoNetworkError(f"{missing[0]} is not installed")
    command = [*_UNSHARE, sys.executable, "-m", "benchmarks.ingest.own_network", str(served)]
    root = Path(__file__).parents[2]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise NoNetworkError(said[-1] if said else f"unshare ended with {process.wait()}")
            spaces = ("--user", "--mount", "--net")
            yield OwnNetwork(
                process.pid, ("nsenter", f"--target={process.pid}", *spaces, "--preserve-credentials", "--")
            )
        finally:
            process.stdin.close()


def _set_up() -> subprocess.Popen[bytes]:
    """Addresses, routes and the resolver, which ends with this process."""
    for command in _SETUP:
        subprocess.run(command.split(), check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("nameserver 127.0.0.1\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
    resolver = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ingest.resolver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert resolver.stdout is not None
    if not resolver.stdout.readline():
        raise SystemExit("the resolver did not start")
    return resolver


if __name__ == "__main__":
    running = _set_up()
    server = Server(Path(sys.argv[1]), ("0.0.0.0",), (80, 443), LATENCY)
    os.write(sys.stdout.fileno(), (json.dumps(server.ports) + "\n").encode())
    server.run()
