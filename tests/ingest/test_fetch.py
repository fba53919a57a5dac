"""The fetcher against a well-meaning site: bodies, redirects, further tries, limits, opt-outs, robots.txt."""

from __future__ import annotations

import email.utils
import gzip
import http.server
import random
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ingest.fetch import Answer, Fetcher
from ingest.settings import NetworkSettings
from shards import UserError

DEAD = "http://127.0.0.1:1/x"
"""Nobody listens on port 1."""
LONG, SOON = 60.0, 20.0
"""A deadline that only what is waited for in vain reaches, and the seconds within which any answer is there."""


def fetch(urls: Sequence[str], max_bytes: int = 1_000_000, **settings: Any) -> list[Answer]:
    """The answers to `urls`, in their order; from this machine too, unless the settings say otherwise."""
    chosen = {"allow_addresses": ("127.0.0.1",), "deadline": LONG, **settings}
    fetcher = Fetcher(NetworkSettings(**chosen), max_bytes)
    for ticket, url in enumerate(urls):
        fetcher.start(ticket, url)
    answers: dict[int, Answer] = {}
    until = time.monotonic() + 2 * LONG
    while fetcher.pending and time.monotonic() < until:
        for ticket, answer in fetcher.poll(1):
            assert ticket not in answers
            answers[ticket] = answer
    fetcher.close()
    return [answers[ticket] for ticket in range(len(urls))]


def causes(answers: Sequence[Answer]) -> list[str | None]:
    return [answer.error_class for answer in answers]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_a_body_comes_as_it_was_sent(site: Any) -> None:
    body = noise(300_000)
    before = time.time()
    (answer,) = fetch([site.add("a.jpg", body)])
    assert (answer.error_class, answer.error_message, answer.host) == (None, None, "127.0.0.1")
    assert (answer.size, answer.attempts, answer.read()) == (len(body), 1, body)
    assert before <= answer.started <= answer.started + answer.seconds <= time.time()


def test_an_empty_body_is_a_body(site: Any) -> None:
    (answer,) = fetch([site.add("empty", b"")])
    assert (answer.error_class, answer.size, answer.read()) == (None, 0, b"")


def test_a_large_body_is_exact_too(site: Any) -> None:
    body = noise(5_000_000)
    (answer,) = fetch([site.add("large", body)], max_bytes=len(body))
    assert answer.read() == body


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_encoded_bodies_are_decoded_asked_for_or_not(site: Any, encoding: str) -> None:
    body = b"\xff\xd8" + noise(1000) + b"x" * 50_000
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    (answer,) = fetch([site.add(f"{encoding}.jpg", packed, Content_Encoding=encoding)])
    assert (answer.read(), answer.size) == (body, len(body))


def test_urls_are_mended(site: Any) -> None:
    url = site.add("a%20b/%C3%A9.jpg?q=%20%C3%BC", b"body")
    written = url.replace("%20", " ").replace("%C3%A9", "é").replace("%C3%BC", "ü").removeprefix("http:")
    (answer, bad) = fetch([f" {written}\n", "http://a\x00b/"])
    assert answer.read() == b"body"
    assert (bad.error_class, bad.host, bad.attempts, bad.seconds) == ("bad_url", None, 0, 0.0)


def test_what_the_site_answers_is_the_cause(site: Any) -> None:
    statuses = [400, 401, 403, 404, 410, 451, 501, 505, 304, 999]
    answers = fetch([site.add(f"status/{status}", b"no", status) for status in statuses])
    assert causes(answers) == [f"http_{status}" for status in statuses]
    assert [answer.attempts for answer in answers] == [1] * len(statuses)
    assert [answer.error_message for answer in answers] == [f"HTTP status {status}" for status in statuses]


def test_redirects_are_followed_and_counted(site: Any) -> None:
    site.add("target.jpg", b"there")
    urls = [site.add("hop/0", status=301, Location="/target.jpg")]
    for number, status in enumerate((302, 307, 308), 1):
        urls.append(site.add(f"hop/{number}", status=status, Location=urls[-1]))
    urls.append(site.add("hop/dead", status=302, Location="//127.0.0.1:1/x"))
    answers = fetch(urls, max_redirects=3)
    assert [*causes(answers[:3]), answers[3].error_message] == [None, None, None, "too many redirects"]
    assert {answer.read() for answer in answers[:3]} == {b"there"}
    assert (answers[3].error_class, answers[3].attempts) == ("protocol", 1)
    assert answers[4].error_class == "connect"


def test_the_host_is_that_of_the_url_as_given(site: Any) -> None:
    moved = site.add("moved", status=302, Location=site.url("target.jpg").replace("127.0.0.1", "127.0.0.3"))
    (answer,) = fetch([moved.replace("127.0.0.1", "LOCALHOST")])
    assert (answer.host, answer.error_class) == ("localhost", "blocked_address")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_what_may_pass_is_tried_again(site: Any, status: int) -> None:
    path = f"passing/{status}"

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        good = site.hits[handler.path] > 1
        handler.send_response(200 if good else status)
        handler.end_headers()
        handler.wfile.write(b"good" if good else b"bad")

    (got,) = fetch([site.add_answer(path, answer)])
    assert (got.read(), got.attempts, site.hits[f"/{path}"]) == (b"good", 2, 2)
    # The first wait is from a quarter of a second to three quarters.
    assert got.seconds >= 0.25


def test_tries_end(site: Any) -> None:
    url = site.add("broken", b"oops", 500)
    (answer,) = fetch([url], retries=2)
    assert (answer.error_class, answer.attempts, site.hits["/broken"]) == ("http_500", 3, 3)
    assert answer.seconds >= 0.25 + 0.5
    (answer,) = fetch([url], retries=0)
    assert (answer.attempts, site.hits["/broken"]) == (1, 4)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_if_the_time_allows(site: Any, form: str) -> None:
    def value(seconds: int) -> str:
        return str(seconds) if form == "seconds" else email.utils.formatdate(time.time() + seconds, usegmt=True)

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        good = site.hits[handler.path] > 1
        handler.send_response(200 if good else 429)
        handler.send_header("Retry-After", value(2))
        handler.end_headers()

    soon = site.add_answer(f"soon/{form}", answer)
    late = site.add(f"late/{form}", b"", 503, Retry_After=value(3600))
    answers = fetch([soon, late])
    assert causes(answers) == [None, "http_503"]
    # A date has no fractions of seconds.
    assert answers[0].seconds >= (2 if form == "seconds" else 0.9)
    # Nobody waits until the deadline for what comes after it.
    assert (answers[1].attempts, answers[1].seconds < SOON) == (1, True)


def test_refused_connections_and_unknown_names_are_not_tried_again() -> None:
    answers = fetch([DEAD, "http://name.invalid/"])
    assert causes(answers) == ["connect", "dns"]
    assert [answer.attempts for answer in answers] == [1, 1]


def test_dead_hosts_cost_nothing(site: Any) -> None:
    url = site.add("small", b"x" * 1000)
    alive = [f"{url}?{number}" for number in range(300)]
    for number in range(300):
        site.pages[f"/small?{number}"] = site.pages["/small"]
    answers = fetch([DEAD if number % 20 == 0 else url for number, url in enumerate(alive)], connect_timeout=LONG)
    assert causes(answers) == ["connect" if number % 20 == 0 else None for number in range(300)]
    # Neither another try nor a wait, of their own or of those behind them.
    assert {answer.attempts for answer in answers} == {1}
    assert max(answer.seconds for answer in answers) < SOON


class Crowd:
    """A page that nobody gets before `size` are there, or the time is over; counts how many were there at most."""

    def __init__(self, size: int, body: bytes = b"") -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(size)
        self._body = body

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._barrier.wait(SOON)
        # Time for one too many to come.
        threading.Event().wait(0.1)
        with self._lock:
            self._now -= 1
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(self._body)


@pytest.mark.parametrize(("limits", "most"), [({"per_host": 4}, 4), ({"connections": 3}, 3)])
def test_no_more_connections_than_allowed(site: Any, limits: dict[str, int], most: int) -> None:
    crowd = Crowd(most)
    url = site.add_answer(f"crowd/{most}", crowd)
    assert set(causes(fetch([url] * (most * 5), **limits))) == {None}
    assert crowd.most == most


def test_one_hosts_limit_does_not_hold_up_another(site: Any) -> None:
    """Four at once, two at each of two names, though all of the first stand before those of the second."""
    crowd = Crowd(4)
    url = site.add_answer("names", crowd)
    urls = [url] * 6 + [url.replace("127.0.0.1", "localhost")] * 6
    assert set(causes(fetch(urls, per_host=2, connections=4))) == {None}
    assert crowd.most == 4


def test_waiting_for_a_place_takes_nothing_off_the_deadline(site: Any) -> None:
    """Sixteen one after the other, each far below the deadline, all together beyond it."""

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        site.closing.wait(0.1)
        handler.send_response(200)
        handler.end_headers()

    url = site.add_answer("slow", slow)
    moved = site.add("slow-moved", status=302, Location=url.replace("127.0.0.1", "localhost"))
    for urls in ([url] * 16, [moved] * 16):
        answers = fetch(urls, per_host=1, deadline=1.5)
        assert causes(answers) == [None] * 16
        assert all(answer.seconds >= 0.1 for answer in answers)


def test_the_deadline_is_for_all_tries_together(site: Any) -> None:
    (answer,) = fetch([site.add_stall("stalled", b"x" * 100, 10)], deadline=0.5)
    assert (answer.error_class, answer.attempts) == ("timeout", 1)
    assert 0.45 <= answer.seconds < SOON
    (answer,) = fetch([site.add("unwell", b"", 503)], deadline=0.8, retries=50)
    assert answer.error_class == "http_503"
    # After waits of a quarter of a second and half a second at least, a third one would end beyond it.
    assert answer.attempts <= 3


def test_room_and_pending(site: Any) -> None:
    fetcher = Fetcher(NetworkSettings(allow_addresses=("127.0.0.1",), connections=4, per_host=2, deadline=5), 1000)
    assert (fetcher.room, fetcher.pending, fetcher.poll(0)) == (4, 0, [])
    stalled = site.add_stall("room", b"x", 0)
    for ticket in range(3):
        fetcher.start(ticket, stalled)
    assert fetcher.poll(0) == []
    # Two are under way; the third waits for its host without a connection.
    assert (fetcher.room, fetcher.pending) == (2, 3)
    fetcher.start(3, stalled)
    assert fetcher.poll(0) == []
    assert (fetcher.room, fetcher.pending) == (2, 4)
    for ticket in range(4, 64):
        fetcher.start(ticket, stalled)
    assert (fetcher.room, fetcher.pending) == (0, 64)
    fetcher.close()


def test_held_back_requests_wait_without_a_clock_while_others_go_on(site: Any) -> None:
    settings = NetworkSettings(allow_addresses=("127.0.0.1",), connections=2, deadline=2, retries=1)
    fetcher = Fetcher(settings, 1000)
    gate = threading.Event()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        gate.wait(SOON)
        handler.send_response(503 if handler.path == "/held/1" and site.hits[handler.path] == 1 else 200)
        handler.end_headers()

    for ticket in range(3):
        fetcher.start(ticket, site.add_answer(f"held/{ticket}", answer))
    while not {"/held/0", "/held/1"} <= site.hits.keys():
        assert fetcher.poll(0.01) == []
    gate.set()
    answers: dict[int, Answer] = {}
    began = time.monotonic()
    # Longer than the deadline: neither the third nor the second's further try begins, and none is late.
    while (held := time.monotonic() - began) < 2.3:
        answers.update(fetcher.poll(2.3 - held, launch=False))
    assert (list(answers), site.hits["/held/1"], "/held/2" in site.hits) == ([0], 1, False)
    while fetcher.pending:
        answers.update(fetcher.poll(1))
    fetcher.close()
    assert causes([answers[ticket] for ticket in range(3)]) == [None, None, None]
    assert [answers[ticket].attempts for ticket in range(3)] == [1, 2, 1]


def test_nothing_is_waited_for_in_a_busy_loop_while_held_back(site: Any) -> None:
    fetcher = Fetcher(NetworkSettings(allow_addresses=("127.0.0.1",), retries=1), 1000)
    fetcher.start(0, site.add("again", b"", 503))
    while "/again" not in site.hits:
        fetcher.poll(0.01)
    began = time.process_time()
    assert fetcher.poll(1.5, launch=False) == []
    assert time.process_time() - began < 0.5
    fetcher.close()


def test_hosts_that_are_done_with_are_forgotten() -> None:
    settings = NetworkSettings(allow_addresses=("127.0.0.0/8",), robots_txt=True, per_host_rate=0)
    fetcher = Fetcher(settings, 1000)
    for ticket in range(300):
        fetcher.start(ticket, f"http://127.0.1.{ticket % 250}:1/{ticket}")
    assert len(fetcher._hosts) == 250
    while fetcher.pending:
        fetcher.poll(1)
    assert [len(kept) for kept in (fetcher._hosts, fetcher._unnamed, fetcher._gates, fetcher._jobs)] == [0] * 4
    fetcher.close()


def test_wake_ends_a_poll_early() -> None:
    fetcher = Fetcher(NetworkSettings(), 1000)
    timer = threading.Timer(0.1, fetcher.wake)
    timer.start()
    began = time.monotonic()
    assert fetcher.poll(LONG) == []
    assert time.monotonic() - began < SOON
    timer.join()
    assert fetcher.poll(0.05) == []
    fetcher.close()


def test_connections_are_used_again(start_site: Callable[[Any], Any], site_class: type[Any]) -> None:
    """With HTTP/1.1 and one place, one connection serves all, errors and redirects among them."""
    site = site_class()
    site.RequestHandlerClass = type("Keeping", (site.RequestHandlerClass,), {"protocol_version": "HTTP/1.1"})
    ports: list[int] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        ports.append(handler.client_address[1])
        status = {"/gone": 404, "/moved": 302}.get(handler.path, 200)
        handler.send_response(status)
        if status == 302:
            handler.send_header("Location", "/there")
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"body")

    urls = [site.add_answer(path, answer) for path in ("a", "gone", "moved", "there", "b")]
    for _ in start_site(site):
        answers = fetch(urls, per_host=1)
    assert causes(answers) == [None, "http_404", None, None, None]
    assert (len(ports), len(set(ports))) == (6, 1)


def test_one_urls_password_does_not_go_with_the_next(site: Any) -> None:
    seen: list[str | None] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        handler.send_response(302 if handler.path == "/secret-moved" else 200)
        handler.send_header("Location", site.url("secret"))
        handler.end_headers()

    urls = [site.add_answer(path, answer) for path in ("secret", "secret-moved")]
    fetch([urls[1].replace("//", "//user:pass@"), urls[0]], per_host=1)
    assert seen == ["Basic dXNlcjpwYXNz", None, None]


@pytest.mark.parametrize(
    ("headers", "cause"),
    [
        ([("X-Robots-Tag", "noai")], "opt_out"),
        ([("x-robots-TAG", " noimageindex ")], "opt_out"),
        ([("X-Robots-Tag", "nofollow"), ("X-Robots-Tag", "otherbot: all"), ("X-Robots-Tag", "noindex")], "opt_out"),
        ([("X-Robots-Tag", "otherbot: noindex"), ("X-Robots-Tag", "clipstill: noai")], "opt_out"),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2010 15:00:00 PST, noai")], "opt_out"),
        ([("X-Robots-Tag", "nofollow,\r\n noai")], "opt_out"),
        ([("X-Robots-Tag", "otherbot: noindex"), ("X-Robots-Tag", "otherbot: noai")], None),
        ([("X-Robots-Tagged", "noai"), ("Robots", "noai")], None),
    ],
)
def test_opt_outs_are_honoured_before_the_body(
    site: Any, headers: Sequence[tuple[str, str]], cause: str | None
) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        if cause:
            handler.wfile.flush()
            site.closing.wait(SOON)

    url = site.add_answer(f"opt-out/{hash(tuple(headers))}", answer)
    (got,) = fetch([url])
    assert (got.error_class, got.attempts, got.seconds < SOON) == (cause, 1, True)
    if cause:
        (got,) = fetch([url], deadline=0.3, opt_outs=())
        assert got.error_class == "timeout"


def test_an_opt_out_on_the_way_counts_and_one_on_an_error_does_not(site: Any) -> None:
    target = site.add("wanted", b"x")
    urls = [
        site.add("way", status=302, Location=target, X_Robots_Tag="noai"),
        site.add("to-opt-out", status=302, Location=site.add("unwanted", b"x", X_Robots_Tag="noai")),
        site.add("gone", b"", 404, X_Robots_Tag="noindex"),
    ]
    assert causes(fetch(urls)) == ["opt_out", "opt_out", "http_404"]


def test_the_agent_says_who_we_are(site: Any) -> None:
    site.agents.clear()
    fetch([site.add("who", b"x"), site.add("who-moved", status=302, Location="/who")], user_agent="somebody/3 (for x)")
    assert site.agents == ["somebody/3 (for x)"] * 3


def test_a_proxy_of_the_environments_is_not_asked(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would connect to whatever it likes on our behalf."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, site.url(""))
    site.hits.clear()
    assert causes(fetch(["http://192.0.2.1/x", "https://192.0.2.1/x"])) == ["blocked_address"] * 2
    assert site.hits == {}


def test_certificates_that_cannot_be_read_are_the_users_error(tmp_path: Any) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(UserError, match="certificates") as caught:
            Fetcher(NetworkSettings(ca_file=str(path)), 1000)
        assert str(path) in str(caught.value)
