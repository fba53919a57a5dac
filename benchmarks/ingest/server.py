"""The web both contenders download from: one process that spends next to nothing on a request.

    python -m benchmarks.ingest.server FOLDER      FOLDER/GROUP/* are the bodies, FOLDER/server.pem the certificate

It holds every answer in memory and prints one line of JSON with its ports once it listens, over http and https, on
the addresses `HOSTS`: a list of URLs has many hosts. `/GROUP/NUMBER` answers with body NUMBER modulo the group's size;
`/status/404`, `/html/0`, `/noai/NUMBER`, `/silent/0` and `/moved/GROUP/NUMBER` are what else the web answers. The query
may say how: `?close` ends the connection, `?after=3` answers 3 seconds later, `?drip=3` sends the body over 3 seconds.
A connection stays open unless the client asks to close it. Ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import mimetypes
import os
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 9))
_REQUEST = re.compile(rb"GET /(\w+)/(?:(\w+)/)?(\d+)(?:\.\w+)?(?:\?(\w+)(?:=([\d.]+))?)?[^ ]* HTTP/1\.[01]\r\n")
_HOST = re.compile(rb"\r\nhost: *([^\r]+)", re.IGNORECASE)
_PAGE = b"<!doctype html><title>Gone</title><p>This picture has moved.".ljust(3000)
_DROPS = 20
"""Pieces that a body is sent in when it drips."""
_BUFFER = 1 << 20
"""Bytes the kernel takes at once: an answer of usual size leaves in one call."""


class Server:
    """Answers on all `hosts` from one thread; `ports` are the http and the https port, the same on every address.

    `latency`: seconds that every answer takes.
    """

    def __init__(
        self, folder: Path, hosts: Sequence[str] = HOSTS, ports: tuple[int, int] = (0, 0), latency: float = 0
    ) -> None:
        self._groups = {
            group.name.encode(): [_file(path) for path in sorted(group.iterdir())]
            for group in folder.iterdir()
            if group.is_dir()
        }
        self._latency = latency
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(folder / "server.pem")
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, bool]] = {}
        self._connections: dict[int, _Connection] = {}
        self._pauses: list[tuple[float, int, _Connection]] = []
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        http, https = ports
        self.ports = {"http": self._listen(hosts, http, tls=False), "https": self._listen(hosts, https, tls=True)}

    def _listen(self, hosts: Sequence[str], port: int, *, tls: bool) -> int:
        for host in hosts:
            listener = socket.create_server((host, port), backlog=4096)
            port = int(listener.getsockname()[1])
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener, tls
            self._poll.register(listener, select.EPOLLIN)
        return port

    def run(self) -> None:
        """Answer until standard input ends."""
        until = sys.stdin.fileno()
        self._poll.register(until, select.EPOLLIN | select.EPOLLHUP)
        while True:
            patience = max(0.0, self._pauses[0][0] - time.monotonic()) if self._pauses else None
            for number, _ in self._poll.poll(patience):
                if number == until:
                    return
                if number in self._listeners:
                    self._accept(*self._listeners[number])
                elif number in self._connections:
                    self._advance(number, self._connections[number])
            now = time.monotonic()
            while self._pauses and self._pauses[0][0] <= now:
                _, number, connection = heapq.heappop(self._pauses)
                if self._connections.get(number) is connection:
                    self._advance(number, connection)

    def _accept(self, listener: socket.socket, tls: bool) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                plain, _ = listener.accept()
                plain.setblocking(False)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
                sock = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False) if tls else plain
                connection = _Connection(sock, self._groups, self._latency)
                self._connections[sock.fileno()] = connection
                self._poll.register(sock, select.EPOLLIN)

    def _advance(self, number: int, connection: _Connection) -> None:
        try:
            waits_for = connection.advance()
        except OSError:
            # The client left: at its end, or in the middle for reasons of its own.
            self._poll.unregister(number)
            del self._connections[number]
            connection.sock.close()
            return
        if isinstance(waits_for, _Pause):
            heapq.heappush(self._pauses, (time.monotonic() + waits_for.seconds, number, connection))
            waits_for = 0
        if waits_for != connection.waits_for:
            connection.waits_for = waits_for
            self._poll.modify(number, waits_for)


@dataclass(frozen=True)
class _Pause:
    seconds: float


class _Connection:
    def __init__(self, sock: socket.socket, groups: dict[bytes, list[bytes]], latency: float) -> None:
        self.sock = sock
        self.waits_for: int = select.EPOLLIN
        self._groups = groups
        self._latency = latency
        self._steps = self._talk()

    def __lt__(self, other: object) -> bool:
        """Two pauses that end at the same moment are in any order."""
        return False

    def advance(self) -> int | _Pause:
        """Go on as far as possible; returns what to wait for. Raises `OSError` when the connection is over."""
        for waits_for in self._steps:
            return waits_for
        raise ConnectionError

    def _talk(self) -> Iterator[int | _Pause]:
        if isinstance(self.sock, ssl.SSLSocket):
            yield from self._until_done(self.sock.do_handshake)
        received = b""
        closing = False
        while not closing:
            while b"\r\n\r\n" not in received:
                more = yield from self._until_done(self.sock.recv, 65536)
                if not more:
                    return
                received += more
            head, _, received = received.partition(b"\r\n\r\n")
            request = _REQUEST.match(head + b"\r\n")
            how, seconds = (request[4], float(request[5] or 0)) if request else (None, 0.0)
            closing = b"connection: close" in head.lower() or how == b"close"
            if pause := seconds if how == b"after" else self._latency:
                yield _Pause(pause)
            answer = self._answer_to(request, head)
            if answer is None:
                return
            pieces = _DROPS if how == b"drip" else 1
            size = -(-len(answer) // pieces)
            for start in range(0, len(answer), size):
                if start:
                    yield _Pause(seconds / pieces)
                left = memoryview(answer)[start : start + size]
                while left:
                    sent = yield from self._until_done(self.sock.send, left)
                    left = left[sent:]

    def _until_done(self, call: Any, *arguments: Any) -> Any:
        while True:
            try:
                return call(*arguments)
            except ssl.SSLWantReadError:
                yield select.EPOLLIN
            except ssl.SSLWantWriteError:
                yield select.EPOLLOUT
            except BlockingIOError:
                yield select.EPOLLOUT if call == self.sock.send else select.EPOLLIN

    def _answer_to(self, request: re.Match[bytes] | None, head: bytes) -> bytes | None:
        """All of an answer; None to end the connection without one."""
        if request is None:
            return _NOT_FOUND
        group, inner, number = request[1], request[2], int(request[3])
        host = _HOST.search(head)
        match group:
            case b"silent":
                answer = None
            case b"status":
                answer = _answer(number, _PAGE, "text/html")
            case b"html":
                answer = _answer(200, _PAGE, "text/html")
            case b"moved" if inner is not None and host is not None:
                answer = _answer(302, location=f"http://www-{host[1].decode()}/{inner.decode()}/{number}")
            case b"noai":
                photos = self._groups[b"photo"]
                answer = photos[number % len(photos)].replace(b"\r\n", b"\r\nX-Robots-Tag: noai\r\n", 1)
            case _:
                bodies = self._groups.get(group)
                answer = bodies[number % len(bodies)] if bodies else _NOT_FOUND
        return answer


def _file(path: Path) -> bytes:
    """The answer that holds a file."""
    return _answer(200, path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream")


def _answer(status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> bytes:
    lines = {"Content-Type": kind, "Content-Length": str(len(body)), **headers}
    head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'No'}\r\n"
    return (head + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n").encode() + body


_NOT_FOUND = _answer(404)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """A server process for the length of the block: its process number and its ports."""
    command = [sys.executable, "-m", "benchmarks.ingest.server", str(folder)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ports: dict[str, int] = json.loads(process.stdout.readline())
        try:
            yield process.pid, ports
        finally:
            process.stdin.close()


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]))
    os.write(sys.stdout.fileno(), (json.dumps(server.ports) + "\n").encode())
    server.run()
