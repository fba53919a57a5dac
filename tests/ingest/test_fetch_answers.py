"""Answers that are against the rules, and that every browser takes for the image they hold."""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from ingest.fetch import Answer, Fetcher
from ingest.settings import NetworkSettings

BODY = b"\xff\xd8" + bytes(range(256)) * 40
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
OK = b"HTTP/1.1 200 OK\r\n"

LONG, SOON = 60.0, 20.0
"""A deadline that only what is waited for in vain reaches, and the seconds within which any answer is there."""

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(bytes)`: the URL of a server that says this to all; the connection stays open, unless it `hangs_up`."""
    ends: list[Callable[[], None]] = []

    def start(said: bytes, *, hangs_up: bool = False) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        open_: list[socket.socket] = []

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                open_.append(connection)
                connection.recv(65536)
                connection.sendall(said)
                if hangs_up:
                    connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=answer)
        thread.start()

        def end() -> None:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in [listening, *open_]:
                each.close()

        ends.append(end)
        return f"http://127.0.0.1:{listening.getsockname()[1]}/x"

    yield start
    for end in ends:
        end()


def fetch(url: str, max_bytes: int = 1_000_000) -> Answer:
    settings = NetworkSettings(allow_addresses=("127.0.0.1",), deadline=LONG, retries=0)
    fetcher: Fetcher[int] = Fetcher(settings, max_bytes)
    fetcher.start(0, url)
    answers: list[tuple[int, Answer]] = []
    while not answers:
        answers = fetcher.poll(1)
    fetcher.close()
    return answers[0][1]


@pytest.mark.parametrize(
    "word",
    [
        *(
            "utf-8",
            "UTF-8",
            "binary",
            "8bit",
            "aws-chunked",
            "image/jpeg",
            "base64",
            "null",
            "chunked",
            "none",
            "rot13",
        ),
        "",
    ],
)
def test_an_encoding_that_is_none_changes_nothing(serve: Serve, word: str) -> None:
    answer = fetch(serve(OK + LENGTH + b"Content-Encoding: " + word.encode() + b"\r\n\r\n" + BODY))
    assert (answer.error_class, answer.size, answer.attempts) == (None, len(BODY), 1)
    assert answer.read() == BODY


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODED = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "br": lambda data: pa.compress(data, "brotli", asbytes=True),
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
    "deflate, utf-8, gzip": lambda data: gzip.compress(zlib.compress(data)),
}


@pytest.mark.parametrize("names", ENCODED)
def test_what_is_encoded_is_decoded_within_the_limit(serve: Serve, names: str) -> None:
    packed = ENCODED[names](BODY)
    head = OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (names.encode(), len(packed))
    answer = fetch(serve(head + packed), max_bytes=len(BODY))
    assert (answer.size, answer.read()) == (len(BODY), BODY)
    answer = fetch(serve(head + packed), max_bytes=len(BODY) - 1)
    assert answer.error_class == "too_large"


@pytest.mark.parametrize("names", ["gzip", "deflate", "br", "zstd"])
def test_half_an_encoded_body_is_not_a_body(serve: Serve, names: str) -> None:
    half = ENCODED[names](BODY)[:-20]
    answer = fetch(serve(OK + b"Content-Encoding: %s\r\n\r\n" % names.encode() + half, hangs_up=True))
    assert (answer.error_class, answer.error_message) == ("protocol", "the body is not encoded as its headers say")


@pytest.mark.parametrize("names", ["gzip", "deflate", "br", "zstd"])
def test_a_plain_body_that_is_called_encoded_is_taken_as_it_is(serve: Serve, names: str) -> None:
    answer = fetch(serve(OK + LENGTH + b"Content-Encoding: %s\r\n\r\n" % names.encode() + BODY))
    assert answer.read() == BODY


@pytest.mark.parametrize("codec", ["gzip", "brotli", "zstd"])
def test_a_bomb_is_cut_off(serve: Serve, codec: str) -> None:
    bomb = pa.compress(bytes(300_000_000), codec, asbytes=True)
    name = {"brotli": b"br"}.get(codec, codec.encode())
    head = OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (name, len(bomb))
    answer = fetch(serve(head + bomb), max_bytes=1_000_000)
    assert (answer.error_class, answer.seconds < SOON) == ("too_large", True)


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + BODY, id="no reason"),
        pytest.param(b"HTTP/1.1 203 So\r\n" + LENGTH + b"\r\n" + BODY, id="203"),
        pytest.param(b"HTTP/1.1 206 So\r\n" + LENGTH + b"\r\n" + BODY, id="206"),
        pytest.param((OK + LENGTH + b"\r\n").replace(b"\r", b"") + BODY, id="bare line feeds"),
        pytest.param(OK + b"Content-Type : x\r\n: y\r\nX\xe9: \xe9\r\n" + LENGTH + b"\r\n" + BODY, id="odd headers"),
        pytest.param(OK + LENGTH + LENGTH + b"\r\n" + BODY, id="length twice"),
        pytest.param(OK + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + BODY, id="identity"),
        pytest.param(OK + LENGTH + b"Transfer-Encoding:\r\n\r\n" + BODY, id="no transfer encoding"),
        pytest.param(OK + LENGTH + b"Transfer-Encoding: binary\r\n\r\n" + BODY, id="unknown transfer encoding"),
        pytest.param(OK + LENGTH + CHUNKED, id="chunks and a length"),
        pytest.param(OK + b"Content-Length: none\r\n" + CHUNKED, id="chunks and an odd length"),
        pytest.param(b"HTTP/1.1 103 Hints\r\nContent-Encoding: gzip\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY, id="103"),
    ],
)
def test_a_connection_that_stays_open_holds_nobody_up(serve: Serve, said: bytes) -> None:
    answer = fetch(serve(said))
    assert (answer.read(), answer.seconds < SOON) == (BODY, True)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + BODY, id="1.0"),
        pytest.param(OK + b"\r\n" + BODY, id="no length"),
        *(
            pytest.param(OK + b"Content-Length: " + odd + b"\r\n\r\n" + BODY, id=f"length {odd.decode()}")
            for odd in (b"", b"none", b"-1", b"+5", b"1.5e3")
        ),
    ],
)
def test_without_a_length_that_is_one_the_connections_end_counts(serve: Serve, said: bytes) -> None:
    assert fetch(serve(said, hangs_up=True)).read() == BODY


def test_a_body_too_large_with_an_odd_length_is_cut_too(serve: Serve) -> None:
    answer = fetch(serve(OK + b"Content-Length: none\r\n\r\n" + BODY), max_bytes=1000)
    assert (answer.error_class, answer.seconds < SOON) == ("too_large", True)
