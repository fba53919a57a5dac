"""The web both contenders download from: one process that spends next to nothing on a request.

    python -m benchmarks.ingest.server FOLDER      FOLDER/GROUP/* are the bodies, FOLDER/server.pem the certificate

It holds every answer in memory and prints one line of JSON with its ports once it listens, over http and https, on
the addresses `HOSTS`: a list of URLs has many hosts. `/GROUP/NUMBER` answers with body NUMBER modulo the group's size.
A connection stays open unless the client asks to close it or the query is `?close`. Ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 9))
_REQUEST = re.compile(rb"GET /(\w+)/(\d+)[^ ]* HTTP/1\.[01]\r\n")
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_BUFFER = 1 << 20
"""Bytes the kernel takes at once: an answer of usual size leaves in one call."""


class Server:
    """Answers on all `HOSTS` from one thread; `ports` are the http and the https port, the same on every address."""

    def __init__(self, folder: Path) -> None:
        self._groups = {
            group.name.encode(): [_answer(path.read_bytes()) for path in sorted(group.iterdir())]
            for group in folder.iterdir()
            if group.is_dir()
        }
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(folder / "server.pem")
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, bool]] = {}
        self._connections: dict[int, _Connection] = {}
        self.ports = {"http": self._listen(tls=False), "https": self._listen(tls=True)}

    def _listen(self, *, tls: bool) -> int:
        port = 0
        for host in HOSTS:
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
            for number, _ in self._poll.poll():
                if number == until:
                    return
                if number in self._listeners:
                    self._accept(*self._listeners[number])
                elif number in self._connections:
                    self._advance(self._connections[number])

    def _accept(self, listener: socket.socket, tls: bool) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                plain, _ = listener.accept()
                plain.setblocking(False)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
                sock = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False) if tls else plain
                connection = _Connection(sock, self._groups)
                self._connections[sock.fileno()] = connection
                self._poll.register(sock, select.EPOLLIN)

    def _advance(self, connection: _Connection) -> None:
        number = connection.sock.fileno()
        try:
            waits_for = connection.advance()
        except OSError:
            # The client left: at its end, or in the middle for reasons of its own.
            self._poll.unregister(number)
            del self._connections[number]
            connection.sock.close()
            return
        if waits_for != connection.waits_for:
            connection.waits_for = waits_for
            self._poll.modify(number, waits_for)


class _Connection:
    def __init__(self, sock: socket.socket, groups: dict[bytes, list[bytes]]) -> None:
        self.sock = sock
        self.waits_for: int = select.EPOLLIN
        self._groups = groups
        self._steps = self._talk()

    def advance(self) -> int:
        """Go on as far as possible; returns what to wait for. Raises `OSError` when the connection is over."""
        for waits_for in self._steps:
            return waits_for
        raise ConnectionError

    def _talk(self) -> Iterator[int]:
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
            closing = b"connection: close" in head.lower() or b"?close HTTP" in head
            left = memoryview(self._answer_to(head))
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

    def _answer_to(self, head: bytes) -> bytes:
        request = _REQUEST.match(head + b"\r\n")
        bodies = self._groups.get(request[1]) if request else None
        return bodies[int(request[2]) % len(bodies)] if request and bodies else _NOT_FOUND


def _answer(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


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
