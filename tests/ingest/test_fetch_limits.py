"""What this machine cannot, and what was asked not to be done: no row fails for either. And proxies, by name only."""

from __future__ import annotations

import http.server
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.fetch import Answer, Fetcher
from ingest.fetch.hosts import HostQueues
from ingest.settings import NetworkSettings
from shards import UserError


def fetch(urls: list[str], **settings: Any) -> list[Answer]:
    fetcher: Fetcher[int] = Fetcher(NetworkSettings(**{"deadline": 20, **settings}), 1_000_000)
    for ticket, url in enumerate(urls):
        fetcher.start(ticket, url)
    answers: dict[int, Answer] = {}
    while fetcher.pending:
        answers.update(fetcher.poll(1))
    fetcher.close()
    return [answers[ticket] for ticket in range(len(urls))]


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from tests.ingest.test_fetch_limits import fetch
urls = ["{url}?%d" % n for n in range({rows})]
answers = fetch(urls, allow_addresses=("127.0.0.1",), connections=512, per_host=400, per_host_rate=0)
print({{answer.error_class for answer in answers}}, len(answers), {{answer.attempts for answer in answers}})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > {soft})
"""


@pytest.mark.parametrize(("hard", "raised"), [(128, False), (4096, True)])
def test_a_limit_of_open_files_makes_no_row_fail(site: Any, hard: int, *, raised: bool) -> None:
    """The limit is raised if the system lets us; else there are fewer connections."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"x" * 1000)

    url = site.add_answer("many", answer)
    site.pages.update({f"/many?{number}": answer for number in range(600)})
    program = FEW_FILES.format(soft=128, hard=hard, url=url, rows=600)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == f"{{None}} 600 {{1}}\n{raised}\n", done.stderr


FILES_GO = """
import os, resource, time
from ingest.fetch import Fetcher
from ingest.fetch import fetcher as module
from ingest.settings import NetworkSettings
fetcher = Fetcher(NetworkSettings(allow_addresses=("127.0.0.1",), deadline=0.9), 1000)
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
fetcher.start(0, "{url}")
until = time.monotonic() + 1
while time.monotonic() < until:
    assert fetcher.poll(0.1) == []
for number in taken:
    os.close(number)
answers = []
while not answers:
    answers = fetcher.poll(1)
print(answers[0][1].error_class, answers[0][1].attempts)
fetcher.close()
"""


def test_files_that_others_take_are_waited_for(site: Any) -> None:
    program = FILES_GO.format(url=site.add("waited", b"x"))
    root = Path(__file__).parents[2]
    command = ["prlimit", "--nofile=200:200", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "None 1\n", done.stderr


def test_a_hosts_pace_is_kept_and_nobody_fails_for_it(site: Any) -> None:
    url = site.add("paced", b"x")
    quick = site.add("quick", b"x").replace("127.0.0.1", "localhost")
    began = time.monotonic()
    answers = fetch([url] * 12 + [quick], allow_addresses=("127.0.0.1",), per_host_rate=8, deadline=1)
    # Two may come at once, and then one every eighth of a second; the others' clocks stand still.
    assert {answer.error_class for answer in answers} == {None}
    assert time.monotonic() - began >= 10 / 8


def test_turns_are_by_host_and_in_order() -> None:
    hosts: HostQueues[str] = HostQueues(per_host=1, rate=2)
    for number in range(3):
        hosts.add("a", f"a{number}", 0.0)
        hosts.add("b", f"b{number}", 0.0)
    assert [hosts.next(0.0), hosts.next(0.0), hosts.next(0.0)] == ["a0", "b0", None]
    hosts.ended("a", 0.1)
    assert (hosts.next(0.4), hosts.due) == (None, 0.5)
    assert hosts.drop(lambda request: request == "a1") == 1
    hosts.ended("b", 0.5)
    assert [hosts.next(0.5), hosts.next(0.5), hosts.next(0.9)] == ["b1", "a2", None]
    hosts.ended("a", 0.6)
    hosts.ended("b", 0.6)
    assert (hosts.next(1.0), hosts.next(1.0), len(hosts)) == ("b2", None, 1)
    hosts.ended("b", 1.1)
    assert (hosts.next(1.5), len(hosts), hosts.due) == (None, 0, None)


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy for http, and the requests and credentials that it got."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['Proxy-Authorization']}")
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"hi")

        def do_CONNECT(self) -> None:
            asked.append(f"CONNECT {self.path}")
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_proxy_that_is_named_is_asked_for_names_and_addresses(
    proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    place, asked = proxy
    urls = ["http://name.invalid/a", "http://10.0.0.1/b", "https://name.invalid/c"]
    answers = fetch(urls, proxy=f"http://user:word@{place}", retries=0)
    assert [answer.error_class for answer in answers] == [None, None, "connect"]
    assert answers[2].error_message == "the proxy makes no connection to the host"
    assert sorted(asked) == [
        "CONNECT name.invalid:443",
        "http://10.0.0.1/b Basic dXNlcjp3b3Jk",
        "http://name.invalid/a Basic dXNlcjp3b3Jk",
    ]


class _Socks(socketserver.StreamRequestHandler):
    """SOCKS 5 without a password, and what is asked behind it; knows names only."""

    def handle(self) -> None:
        self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\5\0")
        request = self.rfile.read(5)
        self.server.asked.append(self.rfile.read(request[4]).decode() if request[3] == 3 else "an address")  # type: ignore[attr-defined]
        self.rfile.read(2)
        self.wfile.write(b"\5\0\0\1" + bytes(6))
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_looks_names_up_whatever_it_is_called(scheme: str) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Socks) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            place = f"{scheme}://127.0.0.1:{server.server_address[1]}"
            (answer,) = fetch(["http://name.invalid/a"], proxy=place, retries=0)
        finally:
            server.shutdown()
            thread.join()
    assert (answer.error_class, answer.size) == (None, 2)
    assert server.asked == ["name.invalid"]  # type: ignore[attr-defined]


def test_a_proxy_that_is_not_there_is_no_connection() -> None:
    for kind in ("http", "socks5h"):
        (answer,) = fetch(["http://name.invalid/a"], proxy=f"{kind}://127.0.0.1:1", retries=0)
        assert answer.error_class == "connect"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a.b", "http://", "http://u:secret@a:b:c", "http://a:99999"])
def test_a_proxys_password_is_not_told(url: str) -> None:
    with pytest.raises(UserError, match="proxy") as caught:
        NetworkSettings(proxy=url)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(NetworkSettings(proxy="http://u:secret@a.b"))


def test_which_directives_keep_an_image_out_can_be_chosen(site: Any, clipstill_here: Callable[..., Any]) -> None:
    urls = [site.add(word, b"x", X_Robots_Tag=word) for word in ("noai", "noindex", "nosnippet")]
    chosen: list[tuple[tuple[str, ...], list[str | None]]] = [
        (("noai",), ["opt_out", None, None]),
        (("nosnippet", "noindex"), [None, "opt_out", "opt_out"]),
        ((), [None, None, None]),
    ]
    for words, expected in chosen:
        answers = fetch(urls, allow_addresses=("127.0.0.1",), opt_outs=words)
        assert [answer.error_class for answer in answers] == expected
    done = clipstill_here("ingest", "x.csv", "--name", "x", "--out", "x", "--opt-out", "noai,,no ai")
    assert (done.returncode, "is no directive" in done.stderr) == (2, True)
