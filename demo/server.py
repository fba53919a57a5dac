"""The web that the demo downloads from: a real HTTP server on this machine, with the faults of the real one.

    list_rows → (caption, URL, label)       what a user would have been given
    SceneServer → 127.0.0.1:PORT            draws /SPLIT/INDEX.jpg when asked; rows in `FAULTS` go wrong

Which row goes wrong, and how, is fixed, so that two runs of the demo lose the same rows. The server is a process of its
own, so that drawing takes no time from the interpreter that downloads.
"""

from __future__ import annotations

import errno
import http.server
import io
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final

from PIL import Image

from demo.scenes import SPLITS, render, scene
from shards import UserError

HOST: Final = "127.0.0.1"

FAULT_PERIOD: Final = 2000
_FAULT_COUNTS: Final = {
    "not_found": 16,
    "server_error": 6,
    "unavailable": 6,
    "wrong_type": 8,
    "truncated": 6,
    "cut_image": 6,
    "opt_out": 8,
    "refused": 4,
    "bad_host": 4,
    "too_many_pixels": 4,
    "too_many_bytes": 2,
    "slow": 1,  # each one costs whoever downloads it a whole time-out
}


def _place_faults() -> dict[int, str]:
    draw = random.Random("faults")
    further = [kind for kind, count in _FAULT_COUNTS.items() for _ in range(count - 1)]
    draw.shuffle(further)
    # One of every kind comes in the first half of a period, so that a short list of rows has them all too.
    order = [*_FAULT_COUNTS, *further]
    early = len(order) // 2
    rows = draw.sample(range(FAULT_PERIOD // 2), early)
    rows += draw.sample(range(FAULT_PERIOD // 2, FAULT_PERIOD), len(order) - early)
    return dict(sorted(zip(rows, order, strict=True)))


FAULTS: Final[dict[int, str]] = _place_faults()
"""What goes wrong at which row, by the row's index modulo `FAULT_PERIOD`: about 3.5 % of all rows.

not_found 404, server_error 500, unavailable 503; wrong_type: a page of HTML that answers 200; truncated: the connection
ends before the announced length; cut_image: half a JPEG in a whole answer; opt_out: `X-Robots-Tag: noai`; refused: a
port where nobody listens; bad_host: a name that does not resolve; too_many_pixels: 6000 × 6000 in a small file;
too_many_bytes: an answer that goes on and on, without a length; slow: nothing for `stall` seconds.
"""

_OUTLIVES = 5.0
"""Seconds for which a server goes on when its parent is gone."""

_NOBODYS_PORT = 1  # tcpmux: reserved, unused for decades, and below 1024, so no ordinary program opens it
_STATUSES = {
    "not_found": HTTPStatus.NOT_FOUND,
    "server_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}
_PAGE = b"<!doctype html><html><head><title>Moved</title></head><body>This picture has moved.</body></html>\n"


def fault(index: int) -> str | None:
    """What goes wrong with row `index` of either split: a kind named at `FAULTS`, or None."""
    return FAULTS.get(index % FAULT_PERIOD)


def list_rows(base_url: str, split: str, count: int) -> Iterator[tuple[str, str, str]]:
    """Yield the first `count` rows of a split as (caption, URL, label).

    `base_url` as `SceneServer` gives it; apart from its port the rows are always the same. Raises ValueError for a
    split that is not one of `scenes.SPLITS`.
    """
    for index in range(count):
        shown = scene(index, split)
        bases = {"refused": f"http://{HOST}:{_NOBODYS_PORT}", "bad_host": "http://pictures.invalid"}
        ending = "png" if index % 10 == 3 else "jpg"
        yield shown.caption, f"{bases.get(fault(index) or '', base_url)}/{split}/{index:06d}.{ending}", shown.label


def free_port() -> int:
    """Return a TCP port of `HOST` that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class _Options:
    pixels: int
    stall: float
    endless_bytes: int


class SceneServer:
    """The server as a context manager: `with SceneServer(port) as base_url`. Ends with the block, or after its parent.

    `port`: 0 takes a free one; a demo that may be started again passes the same one each time, since URLs are data.
    `pixels`: width and height of the pictures. `stall`: seconds for which a slow row says nothing; longer than the
    client's time-out. `endless_bytes`: where an answer that goes on and on ends after all; above the client's limit.

    Entering raises UserError if the port is taken.
    """

    def __init__(self, port: int = 0, *, pixels: int = 80, stall: float = 60.0, endless_bytes: int = 4_000_000) -> None:
        self._port = port
        self._options = _Options(pixels, stall, endless_bytes)
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> str:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_serve, args=(self._port, self._options, theirs), name="scene-server", daemon=True
        )
        process.start()
        theirs.close()  # so that a server that dies early ends the wait below
        with ours:
            try:
                answer = ours.recv()
            except EOFError:
                answer = "it ended before it listened"
        if isinstance(answer, str):
            process.join()
            raise UserError(
                f"port {self._port} cannot be used: {answer}",
                where="the demo's web server",
                do="End the program that holds the port, or start the demo in a new folder",
            )
        self._process = process
        return f"http://{HOST}:{answer}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self._process = None


def _serve(port: int, options: _Options, ready: multiprocessing.connection.Connection) -> None:
    # Ctrl-C reaches every process of a terminal; this one is ended by its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        web = _bind(port, options)
    except OSError as error:
        ready.send(error.strerror or str(error))
        return
    with web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        ready.send(web.server_address[1])
        ready.close()
        _wait_for_parent()
        # Workers of a driver that was killed live for seconds more: without a web they would take the rest of their
        # rows for failures, and publish them.
        time.sleep(_OUTLIVES)


def _bind(port: int, options: _Options) -> _Web:
    """Listen; on the port of a demo that was just killed, once its server has ended too."""
    deadline = time.monotonic() + 2 * _OUTLIVES
    while True:
        try:
            return _Web(port, options)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # The sentinel is a pipe, which a process forked by the parent may hold open after it; hence the second look.
    while os.getppid() == parent.pid:
        if multiprocessing.connection.wait([parent.sentinel], timeout=0.5):
            return


class _Web(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # 5 by default: a burst of connections would be dropped and come again a second later

    def __init__(self, port: int, options: _Options) -> None:
        super().__init__((HOST, port), _Handler)
        self.options = options

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that hang up are a part of what is shown here.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Scenes"
    sys_version = ""
    timeout = 60  # seconds that a connection may stay idle
    wbufsize = -1  # head and body leave together
    disable_nagle_algorithm = True
    server: _Web

    def do_GET(self) -> None:
        asked = re.fullmatch(rf"/({'|'.join(SPLITS)})/([0-9]{{6,12}})\.(jpg|png)", self.path)
        if asked is None:
            self._fail(HTTPStatus.NOT_FOUND)
            return
        split, index, ending = asked[1], int(asked[2]), asked[3]
        kind = fault(index)
        if kind in _STATUSES:
            self._fail(_STATUSES[kind])
        elif kind in _ANSWERS:
            _ANSWERS[kind](self, self._draw(split, index, "JPEG"))
        else:
            format = "PNG" if ending == "png" else "JPEG"
            self._send(self._draw(split, index, format), f"image/{format.lower()}")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _draw(self, split: str, index: int, format: str) -> bytes:
        return _encode(render(scene(index, split), self.server.options.pixels), format)

    def _fail(self, status: HTTPStatus) -> None:
        self._send(f"{status} {status.phrase}\n".encode(), "text/plain", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, *, opt_out: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if opt_out:
            self.send_header("X-Robots-Tag", "noai")
        self.end_headers()
        self.wfile.write(body)

    def _send_page(self, _image: bytes) -> None:
        self._send(_PAGE, "text/html")

    def _send_truncated(self, image: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(image)))
        self.end_headers()
        self.wfile.write(image[: len(image) // 2])
        self.close_connection = True

    def _send_cut(self, image: bytes) -> None:
        self._send(image[: len(image) // 2], "image/jpeg")

    def _send_opt_out(self, image: bytes) -> None:
        self._send(image, "image/jpeg", opt_out=True)

    def _send_many_pixels(self, _image: bytes) -> None:
        self._send(_draw_huge(), "image/jpeg")

    def _send_many_bytes(self, image: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Connection", "close")  # which also sets close_connection
        self.end_headers()
        self.wfile.write(image)
        block = bytes(1 << 16)
        for _ in range(self.server.options.endless_bytes // len(block) + 1):
            self.wfile.write(block)

    def _send_slowly(self, image: bytes) -> None:
        time.sleep(self.server.options.stall)
        self._send(image, "image/jpeg")


_ANSWERS: Final[dict[str, Callable[[_Handler, bytes], None]]] = {
    "wrong_type": _Handler._send_page,
    "truncated": _Handler._send_truncated,
    "cut_image": _Handler._send_cut,
    "opt_out": _Handler._send_opt_out,
    "too_many_pixels": _Handler._send_many_pixels,
    "too_many_bytes": _Handler._send_many_bytes,
    "slow": _Handler._send_slowly,
}


def _encode(image: Image.Image, format: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **({"quality": 90} if format == "JPEG" else {"compress_level": 1}))
    return stream.getvalue()


@lru_cache(maxsize=1)
def _draw_huge() -> bytes:
    # One byte a pixel while it is made, and a few hundred kB once it is.
    return _encode(Image.new("L", (6000, 6000), 90), "JPEG")
