"""A real HTTP server in front of an S3 server that does to requests what networks and stores do to them."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

KINDS = ("slow_down", "error", "reset", "broken", "short", "lost")
"""503 SlowDown; 500; no answer; an answer that breaks off; a whole answer of too few bytes; done, and no answer."""

_ERROR = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>%s</Message></Error>"


class FaultyStore(http.server.ThreadingHTTPServer):
    """Hands requests on to `upstream`. A seeded `share` of them comes to grief, by one of `kinds`; while `gone` is set
    none is answered, and from request `leave_at` on the next `stay_away` are not.
    """

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.share = 0.0
        self.kinds: tuple[str, ...] = KINDS
        self.gone = threading.Event()
        self.leave_at: int | None = None
        self.stay_away = 0
        self.forgets = False
        """Whether an upload that has ended is known no more, as with some stores; Amazon's gives its answer again."""
        self.ended: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.turned_away = 0
        self._draw = random.Random(seed)
        self._lock = threading.Lock()

    def turn(self, command: str, path: str) -> AbstractContextManager[object]:  # noqa: ARG002 - of who overrides it
        """What a request is handed on in."""
        return contextlib.nullcontext()

    def is_away(self) -> bool:
        """Whether a request that comes now is turned away."""
        with self._lock:
            leaves = self.leave_at is not None and self.requests.total() >= self.leave_at and self.stay_away > 0
            self.stay_away -= leaves
            self.turned_away += leaves or self.gone.is_set()
            return leaves or self.gone.is_set()

    def fate(self, method: str) -> str:
        """What becomes of the next request; "" for what should."""
        with self._lock:
            self.requests[method] += 1
            if self._draw.random() >= self.share:
                return ""
            kind = self._draw.choice(self.kinds)
            if kind in {"broken", "short"} and method != "GET":
                return ""
            self.faults[kind] += 1
            return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""

    def shutdown_request(self, request: Any) -> None:
        """Without a word of farewell, which would make an end of a reset."""
        self.close_request(request)

    def __enter__(self) -> FaultyStore:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FaultyStore
    protocol_version = "HTTP/1.1"

    def handle_expect_100(self) -> bool:
        return self.server.gone.is_set() or super().handle_expect_100()

    def _any(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if server.is_away():
            self._reset()
            return
        fate = server.fate(self.command)
        if self.path in server.ended and server.forgets:
            self._answer(404, {"Content-Type": "application/xml"}, _ERROR % (b"NoSuchUpload", b"It does not exist."))
            return
        if fate in {"slow_down", "error"}:
            status, code = (503, b"SlowDown") if fate == "slow_down" else (500, b"InternalError")
            self._answer(
                status, {"Content-Type": "application/xml"}, _ERROR % (code, b"Please reduce your request rate")
            )
            return
        if fate == "reset":
            self._reset()
            return
        with (
            server.turn(self.command, self.path),
            contextlib.closing(http.client.HTTPConnection(server.upstream, timeout=60)) as connection,
        ):
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data = response.read()
            if self.command == "POST" and "uploadId=" in self.path and response.status == 200:
                server.ended.add(self.path)
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOPS}
        whole = len(data) > 1 and response.status in {200, 206} and "xml" not in headers.get("Content-Type", "")
        if fate == "lost":
            self._reset()
        elif fate == "short" and whole:
            # As of a store that keeps no sums of its objects; with them, botocore finds out.
            bare = {name: value for name, value in headers.items() if "checksum" not in name.lower()}
            self._answer(response.status, bare, data[: len(data) // 2])
        elif fate == "broken" and whole:
            self._answer(response.status, headers, data, break_off=True)
        else:
            self._answer(response.status, headers, data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, break_off: bool = False) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", None) if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if break_off else data)
        if break_off:
            self._reset()

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


_HOPS = {"connection", "transfer-encoding", "keep-alive", "server", "date"}
