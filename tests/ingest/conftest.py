"""A web site on this machine that answers well and badly, and the command line run as a user runs it."""

from __future__ import annotations

import http.server
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipstill.main import main

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Site(http.server.ThreadingHTTPServer):
    """Pages by path; what is not there is a 404."""

    # The usual backlog of five makes clients wait a second before they try again.
    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "http"
        self.pages: dict[str, Answer] = {}
        self.agents: list[str | None] = []
        self.hits: dict[str, int] = {}
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""

    def add(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> str:
        """A page; returns its URL. Underscores in the names of headers stand for dashes."""
        return self.add_answer(path, lambda handler: reply(handler, body, status, headers))

    def add_answer(self, path: str, answer: Answer) -> str:
        self.pages[f"/{path}"] = answer
        return self.url(path)

    def add_cut(self, path: str, body: bytes, sent: int) -> str:
        """A page whose connection is cut after `sent` bytes of the body."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            _head(handler, 200, {}, len(body))
            handler.wfile.write(body[:sent])

        return self.add_answer(path, answer)

    def add_stall(self, path: str, body: bytes, sent: int | None) -> str:
        """A page that says nothing more after `sent` bytes of the body; None: not even a status."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            if sent is not None:
                _head(handler, 200, {}, len(body))
                handler.wfile.write(body[:sent])
            self.closing.wait()

        return self.add_answer(path, answer)

    def add_flaky(self, path: str, body: bytes) -> str:
        """A page that is an error the first time."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            reply(handler, body, 503 if self.hits[handler.path] == 1 else 200, {})

        return self.add_answer(path, answer)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.agents.append(self.headers["User-Agent"])
        self.server.hits[self.path] = self.server.hits.get(self.path, 0) + 1
        self.server.pages.get(self.path, lambda handler: reply(handler, b"nothing", 404, {}))(self)

    def log_message(self, *_: object) -> None:
        pass


def _head(handler: http.server.BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], size: int) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(size))
    handler.end_headers()


def reply(handler: http.server.BaseHTTPRequestHandler, body: bytes, status: int, headers: Mapping[str, str]) -> None:
    _head(handler, status, headers, len(body))
    handler.wfile.write(body)


def serving(site: Site) -> Iterator[Site]:
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    site.closing.set()
    site.shutdown()
    site.server_close()
    thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    yield from serving(Site())


@pytest.fixture(scope="session")
def start_site() -> Callable[[Site], Iterator[Site]]:
    """Serves a site of another kind."""
    return serving


@pytest.fixture(scope="session")
def site_class() -> type[Site]:
    return Site


COLOURS = np.array([[(200, 30, 30), (30, 200, 30)], [(30, 30, 200), (90, 90, 90)]], np.uint8)
"""Of the quarters: red and green above, blue and grey below."""


def quarters(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: a picture that shows which way up it is and whether its colours are right."""
    return COLOURS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(sink, kind, **options)
    return sink.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """`picture(height=60, width=80, kind="JPEG")`: quarters in four colours, encoded."""

    def make(height: int = 60, width: int = 80, kind: str = "JPEG") -> bytes:
        return encode(quarters(height, width), kind, **({"quality": 95} if kind == "JPEG" else {}))

    return make


Clipstill = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def clipstill() -> Clipstill:
    """`clipstill("ingest", ...)` in a process of its own."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("clipstill")), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)

    return run


@pytest.fixture
def clipstill_here(capfd: pytest.CaptureFixture[str]) -> Clipstill:
    """`clipstill_here("ingest", ...)` in this process, which is faster."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        more = ["--in-process"] if arguments[0] in {"ingest", "ingest retry"} else []
        status = main([*map(str, arguments), *more])
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def in_own_network() -> Callable[[str], str]:
    """Runs a program that may use `own_network.py` in a network namespace of its own; what it prints."""
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    try:
        subprocess.run([*enter, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine gives no network namespaces ({error})")
    helpers = Path(__file__).with_name("own_network")

    def run(program: str) -> str:
        text = f"import sys; sys.path.insert(0, {str(helpers)!r})\n{program}"
        done = subprocess.run(
            [*enter, sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
