"""The fetcher against servers that mean harm: nothing gets past the limits, and everything ends."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pycurl
import pytest

from ingest.fetch import Answer, Fetcher
from ingest.fetch.addresses import AddressRule
from ingest.fetch.transfer import Transfer
from ingest.settings import NetworkSettings

CAP = 1_000_000
DEADLINE = 0.7
"""Of what ends by nothing else."""
LONG, SOON = 60.0, 20.0
"""A deadline that only what is waited for in vain reaches, and the seconds within which any answer is there."""

Talk = Callable[[socket.socket, bytes], None]
"""Given a connection and the head of a request, says what it likes."""

OK = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Speaks in bytes. A connection ends when `talk` does, or when the client is gone."""

    def __init__(self, talk: Talk, address: str) -> None:
        self.talk, self.address, self.connections, self.sent = talk, address, 0, 0
        self._listening = socket.create_server((address, 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        self.closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def url(self, path: str = "x") -> str:
        return f"http://{self.address}:{self.port}/{path}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            while not self.closing.is_set():
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    part = connection.recv(65536)
                    if not part:
                        return
                    head += part
                self.talk(connection, head)

    def close(self) -> None:
        self.closing.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def forever(self, connection: socket.socket, piece: bytes, pause: float = 0.0) -> None:
        """Send `piece` again and again until the client is gone."""
        while not self.closing.wait(pause):
            self.sent += connection.send(piece)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """`serve(bytes)`: a server that says the same to all and hangs up; `serve(function)`: one that talks."""
    servers: list[Server] = []

    def start(what: Callable[[Server], Talk] | bytes, address: str = "127.0.0.1") -> Server:
        def say(connection: socket.socket, _head: bytes) -> None:
            assert isinstance(what, bytes)
            connection.sendall(what)
            connection.shutdown(socket.SHUT_RDWR)

        server = Server(say, address)
        if not isinstance(what, bytes):
            server.talk = what(server)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def fetch(urls: Sequence[str], max_bytes: int = CAP, **settings: Any) -> list[Answer]:
    chosen = {"allow_addresses": ("127.0.0.1",), "deadline": LONG, "retries": 0, **settings}
    fetcher = Fetcher(NetworkSettings(**chosen), max_bytes)
    for ticket, url in enumerate(urls):
        fetcher.start(ticket, url)
    answers: dict[int, Answer] = {}
    until = time.monotonic() + 2 * LONG
    while fetcher.pending and time.monotonic() < until:
        answers.update(fetcher.poll(1))
    fetcher.close()
    return [answers[ticket] for ticket in range(len(urls))]


def talking(*pieces: bytes, then: bytes = b"", pause: float = 0.0) -> Callable[[Server], Talk]:
    """Say `pieces`, and `then` for ever, or nothing any more."""

    def make(server: Server) -> Talk:
        def talk(connection: socket.socket, _head: bytes) -> None:
            for piece in pieces:
                connection.sendall(piece)
            if then:
                server.forever(connection, then, pause)
            server.closing.wait()

        return talk

    return make


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GZIPPED = OK + b"Content-Encoding: gzip\r\n\r\n"
BOMB = gzip.compress(bytes(200_000_000), 1)
DRIP = 0.02


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        pytest.param(talking(), "timeout", id="silence"),
        pytest.param(talking(OK), "timeout", id="half a head"),
        pytest.param(talking(OK + b"Content-Length: 50\r\n\r\nxx"), "timeout", id="half a body"),
        pytest.param(talking(OK, b"X: ", then=b"x", pause=DRIP), "timeout", id="head drips"),
        pytest.param(talking(OK, then=b"X: y\r\n", pause=DRIP), "timeout", id="headers drip"),
        pytest.param(talking(OK + b"\r\n", then=b"x", pause=DRIP), "timeout", id="body drips"),
        pytest.param(talking(CHUNKED, then=b"1\r\nx\r\n", pause=DRIP), "timeout", id="chunks drip"),
        pytest.param(talking(b"HTTP/1.1 404 No\r\n\r\n", then=b"x", pause=DRIP), "http_404", id="error drips"),
        pytest.param(talking(OK + b"\r\n", then=b"x" * 9999), "too_large", id="endless body"),
        pytest.param(talking(CHUNKED, then=b"ff\r\n" + b"x" * 255 + b"\r\n"), "too_large", id="endless chunks"),
        pytest.param(talking(OK + b"Content-Length: 1000001\r\n\r\n"), "too_large", id="one byte too long"),
        pytest.param(
            talking(OK + b"Content-Length: 99999999999999999999999999\r\n\r\n"), "too_large", id="absurd length"
        ),
        pytest.param(GZIPPED + BOMB, "too_large", id="bomb"),
        pytest.param(talking(OK, then=b"X: y\r\n" * 500), "protocol", id="header flood"),
        pytest.param(talking(OK, b"X: ", then=b"y" * 9999), "protocol", id="endless header"),
        pytest.param(talking(b"HTTP/1.1 200 ", then=b"y" * 9999), "protocol", id="endless reason"),
        pytest.param(talking(then=b"HTTP/1.1 100 Continue\r\n\r\n" * 99), "protocol", id="endless 100"),
        pytest.param(talking(then=b"HTTP/1.1 103 Hints\r\nX: y\r\n\r\n", pause=DRIP), "timeout", id="103 drips"),
        pytest.param(talking(CHUNKED, b"1;", then=b"x" * 9999), "timeout", id="endless chunk extension"),
        pytest.param(talking(CHUNKED, b"0\r\n", then=b"X: y\r\n" * 99), "protocol", id="trailer flood"),
        pytest.param(b"220 mail.example ESMTP\r\n", "protocol", id="mail server"),
        pytest.param(b"SSH-2.0-x\r\n", "protocol", id="ssh"),
        pytest.param(bytes(range(256)) * 40, "protocol", id="noise"),
        pytest.param(b"", "incomplete", id="hangs up"),
        pytest.param(OK + b"X: y\r\n", "incomplete", id="hangs up in head"),
        pytest.param(OK + b"Content-Length: 50\r\n\r\nxx", "incomplete", id="hangs up in body"),
        pytest.param(CHUNKED + b"ff\r\nxx", "incomplete", id="hangs up in chunk"),
        pytest.param(CHUNKED + b"zz\r\nxx", "incomplete", id="no chunk"),
        pytest.param(
            GZIPPED + gzip.compress(os.urandom(300_000))[:200_000] + bytes(1000), "protocol", id="broken gzip"
        ),
        pytest.param(GZIPPED + gzip.compress(b"body")[:-9], "protocol", id="half a gzip"),
        pytest.param(b"HTTP/1.1 302 Moved\r\n\r\n", "http_302", id="to nowhere"),
    ],
)
def test_everything_ends_with_a_cause(serve: Any, what: Any, cause: str) -> None:
    server = serve(what)
    began = time.monotonic()
    # What is too much, or wrong, is cut off, and not only called so in the end.
    (answer,) = fetch([server.url()], deadline=DEADLINE if cause in {"timeout", "http_404"} else LONG)
    assert (answer.error_class, time.monotonic() - began < SOON) == (cause, True), answer
    assert server.sent < 20 * CAP or "timeout" in cause
    # Said in words that are the same in every run.
    assert answer.error_message is not None
    assert str(server.port) not in answer.error_message
    assert "0x" not in answer.error_message


def test_a_reset_connection_is_incomplete_and_tried_again(serve: Any) -> None:
    def make(_server: Server) -> Talk:
        def talk(connection: socket.socket, _head: bytes) -> None:
            connection.sendall(OK + b"Content-Length: 50\r\n\r\nxx")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        return talk

    server = serve(make)
    (answer,) = fetch([server.url()], retries=1, deadline=5)
    assert (answer.error_class, answer.attempts, server.connections) == ("incomplete", 2, 2)


def test_a_body_of_just_the_cap_is_taken(serve: Any) -> None:
    body = os.urandom(CAP)
    for head in (OK, OK + b"Content-Length: 1000000\r\n"):
        (answer,) = fetch([serve(head + b"\r\n" + body).url()], deadline=5)
        assert answer.read() == body
        (answer,) = fetch([serve(head + b"\r\n" + body).url()], max_bytes=CAP - 1, deadline=5)
        assert answer.error_class == "too_large"


def test_nobody_waits_for_the_end_of_a_body_that_nobody_wants(serve: Any) -> None:
    """2 MB a second, within the cap for longer than the deadline."""
    target = serve(OK + b"Content-Length: 2\r\n\r\nhi")
    moved = b"HTTP/1.1 302 Moved\r\nLocation: " + target.url().encode() + b"\r\n\r\n"
    gone = b"HTTP/1.1 404 No\r\n\r\n"
    urls = [serve(talking(head, then=b"x" * 10_000, pause=0.005)).url() for head in (moved, gone)]
    answers = fetch(urls, max_bytes=5_000_000_000)
    assert [answer.error_class for answer in answers] == [None, "http_404"]
    assert answers[0].read() == b"hi"
    assert max(answer.seconds for answer in answers) < SOON


def test_endless_redirects_end(serve: Any) -> None:
    asked: list[bytes] = []

    def make(server: Server) -> Talk:
        def talk(connection: socket.socket, head: bytes) -> None:
            asked.append(head)
            target = server.url(str(len(asked))).encode()
            connection.sendall(b"HTTP/1.1 302 On\r\nContent-Length: 0\r\nLocation: " + target + b"\r\n\r\n")

        return talk

    (answer,) = fetch([serve(make).url()], deadline=5, max_redirects=7)
    assert (answer.error_class, len(asked)) == ("protocol", 8)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:1/x", "data:,x", "http://a\x01b/", "http://:1/"],
)
def test_a_redirect_to_anything_but_http_is_not_followed(serve: Any, location: str) -> None:
    head = f"HTTP/1.1 302 Moved\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n"
    (answer,) = fetch([serve(head.encode()).url()])
    assert answer.error_class in {"protocol", "http_302"}


SPELLINGS = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0X7F.0.0.1",
    "0177.0.0.1",
    "017700000001",
    "localhost",
    "LocalHost",
    "localhost.",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "0.0.0.0",
    "0",
    "[::]",
    "127.0.0.%31",
    "１２７.0.0.1",
    "127。0。0。1",
    "①②⑦.0.0.1",
    "good.example@127.0.0.1",
    "good.example:80@127.0.0.1",
    "169.254.169.254",
    "[fd00:ec2::254]",
    "10.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_private_address_is_connected_to(serve: Any, host: str) -> None:
    """Nor after a redirect. The rule sees what a name resolves to, at the very socket: `localhost` is a name."""
    inside = serve(OK + b"Content-Length: 6\r\n\r\nsecret")
    url = f"http://{host}:{inside.port}/x"
    head = f"HTTP/1.1 302 Moved\r\nContent-Length: 0\r\nLocation: {url}\r\n\r\n"
    # The whole of 127.0.0.0/8 is this machine: one address of it is allowed, all others are not.
    outside = serve(head.encode(), "127.0.0.2")
    for start, allowed in ((url, ()), (outside.url(), ("127.0.0.2",))):
        (answer,) = fetch([start], allow_addresses=allowed)
        assert (answer.error_class, answer.attempts, inside.connections) == ("blocked_address", 1, 0)
    assert outside.connections == 1


def test_an_address_is_allowed_in_every_spelling_and_no_other(serve: Any) -> None:
    server = serve(OK + b"Content-Length: 2\r\n\r\nhi")
    for host in ("127.0.0.1", "127.1", "2130706433", "localhost", "[::ffff:127.0.0.1]", "user:word@127.0.0.1"):
        (answer,) = fetch([f"http://{host}:{server.port}/"])
        assert answer.read() == b"hi", host
    count = server.connections
    for allowed in (("127.0.0.2",), ("::1",), ("127.0.0.2", "10.0.0.0/8")):
        (answer,) = fetch([server.url()], allow_addresses=allowed)
        assert (answer.error_class, server.connections) == ("blocked_address", count)


def test_an_allowed_address_among_others_says_what_the_matter_is(serve: Any) -> None:
    """`localhost` is ::1 too, which is not allowed."""
    silent = serve(talking())
    urls = ["http://localhost:1/", f"http://localhost:{silent.port}/", "http://[::1]:1/"]
    answers = fetch(urls, deadline=DEADLINE)
    assert [answer.error_class for answer in answers] == ["connect", "timeout", "blocked_address"]


def test_the_shortest_connect_timeout_is_not_endless() -> None:
    """A backlog that is full takes no further connection."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        (answer,) = fetch([url], connect_timeout=0.0004, deadline=LONG)
    assert (answer.error_class, answer.seconds < SOON) == ("timeout", True)


def test_a_lack_of_memory_is_no_answer_about_a_url() -> None:
    transfer = Transfer(NetworkSettings(), AddressRule())
    transfer.begin("http://192.0.2.1/", 1, 1000, image=True)
    with pytest.raises(MemoryError):
        transfer.result(pycurl.E_OUT_OF_MEMORY)
    transfer.handle.close()


FULL_DISK = """
import os, subprocess, tempfile
folder = tempfile.mkdtemp()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
os.environ["TMPDIR"] = tempfile.tempdir = folder
from own_network import begin
begin()
from ingest.fetch import Fetcher
from ingest.settings import NetworkSettings
from shards import UserError
import http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(SIZE))
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
fetcher = Fetcher(NetworkSettings(allow_addresses=("127.0.0.1",)), 10**8)
fetcher.start(0, f"http://127.0.0.1:{server.server_port}/")
try:
    while fetcher.pending:
        print([answer.error_class for _, answer in fetcher.poll(1)])
except UserError as error:
    print(str(error).replace(folder, "FOLDER"))
"""


@pytest.mark.parametrize("size", [2_000_000, 2**20 + 10])
def test_a_full_disk_is_the_users_to_mend(in_own_network: Callable[[str], str], size: int) -> None:
    """Even where the last bytes alone do not fit."""
    said = in_own_network(FULL_DISK.replace("SIZE", str(size)))
    assert said == "the disk of FOLDER is full. Free some space, or set TMPDIR to another disk\n"


def test_many_large_bodies_do_not_fill_the_memory(serve: Any) -> None:
    """Twenty of 10 MB, all waiting to be read, within a few MB each of what stays in memory."""
    size, count = 10_000_000, 20
    url = serve(OK + b"Content-Length: %d\r\n\r\n" % size + bytes(size)).url()
    tracemalloc.start()
    answers = fetch([url] * count, max_bytes=size, deadline=20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < count * 3_000_000
    assert {len(answer.read()) for answer in answers} == {size}


def test_a_full_machine_is_no_answer_about_a_url(serve: Any) -> None:
    """Without file descriptors left, the run must stop rather than call every host dead."""
    server = serve(OK + b"Content-Length: 2\r\n\r\nhi")
    fetcher = Fetcher(NetworkSettings(allow_addresses=("127.0.0.1",)), CAP)
    # Curl's own descriptors are opened by a first fetch.
    fetcher.start(0, server.url("a"))
    while fetcher.pending:
        fetcher.poll(1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        fetcher.start(1, server.url("b").replace("127.0.0.1", "127.1"))
        with pytest.raises(OSError, match="Too many open files"):
            fetcher.poll(5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        fetcher.close()
