"""robots.txt: asked for once a site, before anything else of it, and obeyed; over TLS: whom we trust."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ingest.fetch import Answer, Fetcher
from ingest.settings import NetworkSettings

LONG, SOON = 60.0, 20.0
"""A deadline that only what is waited for in vain reaches, and the seconds within which any answer is there."""
DISALLOW = b"User-agent: otherbot\nDisallow: /\n\nUser-agent: clipstill\nDisallow: /private/\n"


def fetch(urls: Sequence[str], **settings: Any) -> list[Answer]:
    chosen = {"allow_addresses": ("127.0.0.1",), "deadline": LONG, "retries": 0, "robots_txt": True, **settings}
    fetcher = Fetcher(NetworkSettings(**chosen), 1000)
    for ticket, url in enumerate(urls):
        fetcher.start(ticket, url)
    answers: dict[int, Answer] = {}
    until = time.monotonic() + 2 * LONG
    while fetcher.pending and time.monotonic() < until:
        answers.update(fetcher.poll(1))
    fetcher.close()
    return [answers[ticket] for ticket in range(len(urls))]


def causes(answers: Sequence[Answer]) -> list[str | None]:
    return [answer.error_class for answer in answers]


@pytest.fixture
def place(site_class: type[Any], start_site: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    """A site of one's own: there is one robots.txt a site."""
    yield from start_site(site_class())


@pytest.fixture
def other(site_class: type[Any], start_site: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    yield from start_site(site_class())


def test_robots_txt_is_asked_for_once_and_obeyed(place: Any) -> None:
    place.add("robots.txt", DISALLOW, X_Robots_Tag="noindex")
    urls = [place.add(f"{folder}/{n}", b"x") for n in range(10) for folder in ("private", "public")]
    answers = fetch(urls, per_host=2)
    assert causes(answers) == ["robots_txt", None] * 10
    assert [answer.attempts for answer in answers] == [0, 1] * 10
    assert place.hits["/robots.txt"] == 1
    assert not any(path.startswith("/private") for path in place.hits)


def test_without_being_asked_to_nobody_asks_for_it(place: Any) -> None:
    place.add("robots.txt", DISALLOW)
    assert causes(fetch([place.add("private/x", b"x")], robots_txt=False)) == [None]
    assert "/robots.txt" not in place.hits


@pytest.mark.parametrize(
    ("status", "cause"), [(404, None), (403, None), (410, None), (429, None), (500, "http_500"), (503, "http_503")]
)
def test_a_site_without_robots_txt(place: Any, status: int, cause: str | None) -> None:
    place.add("robots.txt", DISALLOW, status)
    (answer,) = fetch([place.add("private/x", b"x")])
    assert answer.error_class == cause
    if cause:
        assert answer.error_message == f"robots.txt could not be read: HTTP status {status}"


def test_one_out_of_reach_allows_nothing(place: Any) -> None:
    place.add_stall("robots.txt", b"x", None)
    urls = [place.add("x", b"x"), "http://127.0.0.1:1/x", "http://127.0.0.2/x", "http://name.invalid/x"]
    answers = fetch(urls, deadline=0.5)
    assert causes(answers) == ["timeout", "connect", "blocked_address", "dns"]
    assert all(str(answer.error_message).startswith("robots.txt could not be read: the ") for answer in answers[1:])
    assert answers[0].error_message == "robots.txt could not be read: no whole answer in time"
    assert "/x" not in place.hits


def test_a_robots_txt_out_of_reach_is_asked_for_again_later(place: Any) -> None:
    """Once for all that wait at the time; what was allowed or not is known from then on."""
    fetcher = Fetcher(NetworkSettings(allow_addresses=("127.0.0.1",), deadline=5, retries=0, robots_txt=True), 1000)
    url = place.add("private/x", b"x")
    came = []
    for status in (503, 200, 200):
        place.add("robots.txt", DISALLOW, status)
        for ticket in range(3):
            fetcher.start(ticket, url)
        while fetcher.pending:
            came += [answer.error_class for _, answer in fetcher.poll(1)]
    fetcher.close()
    assert came == ["http_503"] * 3 + ["robots_txt"] * 6
    assert place.hits == {"/robots.txt": 2}


def test_waiting_for_another_robots_txt_takes_nothing_off_the_deadline(place: Any, other: Any) -> None:
    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        place.closing.wait(1.2)
        handler.send_response(404)
        handler.end_headers()

    def moved(handler: http.server.BaseHTTPRequestHandler) -> None:
        place.closing.wait(0.4)
        handler.send_response(302)
        handler.send_header("Location", place.url("x"))
        handler.end_headers()

    place.add_answer("robots.txt", slow)
    place.add("x", b"x")
    # Together they take longer than the deadline, the site that is asked much less.
    (answer,) = fetch([other.add_answer("moved", moved)], deadline=1.5)
    assert (answer.error_class, answer.seconds >= 0.4) == (None, True)


def test_one_over_the_cap_of_images_is_read_and_a_huge_one_cut(place: Any) -> None:
    start = DISALLOW + b"#" * 5000 + b"\n"
    for body in (start, start + b"#" * 2_000_000):
        place.add("robots.txt", body)
        assert causes(fetch([place.add("private/x", b"x"), place.add("y", b"x")])) == ["robots_txt", None]


def test_of_an_endless_one_the_beginning_counts(place: Any) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(DISALLOW)
        while not place.closing.is_set():
            handler.wfile.write(b"#" * 10_000)

    place.add_answer("robots.txt", answer)
    began = time.monotonic()
    assert causes(fetch([place.add("private/x", b"x"), place.add("y", b"x")])) == ["robots_txt", None]
    assert time.monotonic() - began < SOON


def test_a_redirects_target_has_its_own(place: Any, other: Any) -> None:
    place.add("robots.txt", DISALLOW)
    private = place.add("private/x", b"x")
    # Robots.txt itself may have moved.
    other.add("robots.txt", status=301, Location=other.add("rules", b"User-agent: *\nDisallow: /secret\n"))
    urls = [other.add("moved", status=302, Location=private), other.add("secret", b"x"), other.add("open", b"x")]
    assert causes(fetch(urls)) == ["robots_txt", "robots_txt", None]
    assert "/secret" not in other.hits
    assert "/private/x" not in place.hits


def certificate(names: Sequence[x509.GeneralName], days: int = 1) -> bytes:
    """A key and its certificate, signed by itself, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret + made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("names", "days", "trusted", "cause"),
    [
        ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], 1, True, None),
        ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], 1, False, "tls"),
        ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], -1, True, "tls"),
        ([x509.DNSName("other.example")], 1, True, "tls"),
    ],
    ids=["ours", "unknown", "expired", "another's"],
)
def test_certificates_are_checked(
    site_class: type[Any],
    start_site: Any,
    tmp_path: Path,
    names: Sequence[x509.GeneralName],
    days: int,
    *,
    trusted: bool,
    cause: str | None,
) -> None:
    (tmp_path / "both.pem").write_bytes(certificate(names, days))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    site = site_class()
    site.scheme = "https"
    site.socket = context.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    for _ in start_site(site):
        ca_file = str(tmp_path / "both.pem") if trusted else None
        (answer,) = fetch([site.add("x", b"body")], ca_file=ca_file, robots_txt=False, retries=2)
    assert (answer.error_class, answer.attempts) == (cause, 1)


def test_tls_with_something_else_is_a_tls_error(place: Any) -> None:
    (answer,) = fetch([place.url("x").replace("http:", "https:")], robots_txt=False)
    assert answer.error_class == "tls"


def test_the_passing_of_plain_http_to_https(site_class: type[Any], start_site: Any, tmp_path: Path, place: Any) -> None:
    """The most frequent redirect of all."""
    pem = tmp_path / "both.pem"
    pem.write_bytes(certificate([x509.DNSName("localhost")]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    site = site_class()
    site.scheme = "https"
    site.socket = context.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    for _ in start_site(site):
        target = site.add("x", b"body").replace("127.0.0.1", "localhost")
        (got,) = fetch([place.add("x", status=301, Location=target)], ca_file=str(pem), robots_txt=False)
    assert got.read() == b"body"
