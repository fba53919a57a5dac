"""The demo's web server, over real sockets: good rows, every fault, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from PIL import Image

from demo.scenes import render, scene
from demo.server import FAULT_PERIOD, FAULTS, HOST, SceneServer, fault, free_port, list_rows
from shards import UserError

FIRST = {kind: index for index, kind in reversed(FAULTS.items())}
ENDLESS = 1_000_000


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with SceneServer(stall=120, endless_bytes=ENDLESS) as url:
        yield url


def url_of(base_url: str, index: int) -> str:
    return list(list_rows(base_url, "train", index + 1))[index][1]


def get(url: str, timeout: float = 20) -> tuple[http.client.HTTPMessage, bytes]:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.headers, answer.read()


def get_fault(base_url: str, kind: str, timeout: float = 20) -> tuple[http.client.HTTPMessage, bytes]:
    return get(url_of(base_url, FIRST[kind]), timeout)


def test_rows_are_the_same_but_for_the_port() -> None:
    here, there = (list(list_rows(url, "held_out", 200)) for url in ("http://h:1234", "http://h:99"))
    assert [(c, u.replace(":1234/", ":99/"), label) for c, u, label in here] == there
    assert len({url for _, url, _ in here}) == 200
    assert [(caption, label) for caption, _, label in here] == [
        (shown.caption, shown.label) for shown in (scene(index, "held_out") for index in range(200))
    ]


def test_a_few_percent_go_wrong_and_few_of_them_slowly() -> None:
    kinds = Counter(fault(index) for index in range(FAULT_PERIOD))
    assert 0.03 <= 1 - kinds[None] / FAULT_PERIOD <= 0.04
    assert kinds["slow"] <= 0.002 * FAULT_PERIOD
    assert set(FAULTS.values()) == {fault(index) for index in range(FAULT_PERIOD // 2)} - {None}
    assert fault(FIRST["slow"] + FAULT_PERIOD) == "slow"


def test_good_rows_are_the_scenes(base_url: str) -> None:
    kinds = set()
    for index, (_, url, _) in enumerate(list_rows(base_url, "held_out", 20)):
        if fault(index) is None:
            headers, body = get(url)
            image = Image.open(io.BytesIO(body))
            kinds.add(image.format)
            assert headers["Content-Type"] == f"image/{str(image.format).lower()}"
            assert headers["X-Robots-Tag"] is None
            assert image.size == (80, 80)
            if image.format == "PNG":
                assert image.tobytes() == render(scene(index, "held_out"), 80).tobytes()
    assert kinds == {"JPEG", "PNG"}


def test_many_at_once_on_kept_connections(base_url: str) -> None:
    address = urlsplit(base_url)
    good = [index for index in range(320) if fault(index) is None]

    def read(start: int) -> int:
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        with contextlib.closing(connection):
            for index in good[start::32]:
                connection.request("GET", f"/train/{index:06d}.jpg")
                answer = connection.getresponse()
                assert answer.status == 200
                assert answer.read()
                assert connection.sock is not None  # HTTP/1.1: the server has kept it open
        return len(good[start::32])

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(read, range(32))) == len(good)


@pytest.mark.parametrize(("kind", "status"), [("not_found", 404), ("server_error", 500), ("unavailable", 503)])
def test_error_statuses(base_url: str, kind: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get_fault(base_url, kind)
    with caught.value:
        assert caught.value.code == status


@pytest.mark.parametrize(
    "path", ["/", "/train/1.jpg", "/train/../000001.jpg", "/other/000001.jpg", "/train/000001.gif"]
)
def test_other_paths_are_not_found(base_url: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(base_url + path)
    with caught.value:
        assert caught.value.code == 404


def test_slow(base_url: str) -> None:
    with pytest.raises(TimeoutError):
        get_fault(base_url, "slow", timeout=0.3)


def test_truncated(base_url: str) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        get_fault(base_url, "truncated")
    assert caught.value.partial
    assert caught.value.expected


def test_cut_image(base_url: str) -> None:
    headers, body = get_fault(base_url, "cut_image")
    assert len(body) == int(headers["Content-Length"])
    image = Image.open(io.BytesIO(body))
    with pytest.raises(OSError, match="truncated"):
        image.load()


def test_wrong_type(base_url: str) -> None:
    headers, body = get_fault(base_url, "wrong_type")
    assert headers["Content-Type"] == "text/html"
    assert body.startswith(b"<!doctype html>")


def test_opt_out(base_url: str) -> None:
    headers, body = get_fault(base_url, "opt_out")
    assert headers["X-Robots-Tag"] == "noai"
    Image.open(io.BytesIO(body)).load()


def test_too_many_pixels(base_url: str) -> None:
    _, body = get_fault(base_url, "too_many_pixels")
    assert Image.open(io.BytesIO(body)).size == (6000, 6000)
    assert len(body) < 500_000


def test_too_many_bytes(base_url: str) -> None:
    headers, body = get_fault(base_url, "too_many_bytes")
    assert headers["Content-Length"] is None
    assert len(body) > ENDLESS


def test_a_client_that_hangs_up_is_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    with SceneServer(endless_bytes=50_000_000) as base_url:
        with urllib.request.urlopen(url_of(base_url, FIRST["too_many_bytes"]), timeout=20) as answer:
            assert answer.read(1000)
        assert get(url_of(base_url, 0))
    assert capfd.readouterr() == ("", "")


def test_refused(base_url: str) -> None:
    with pytest.raises(urllib.error.URLError) as caught:
        get_fault(base_url, "refused")
    assert isinstance(caught.value.reason, ConnectionRefusedError)


def test_bad_host(base_url: str) -> None:
    with pytest.raises(urllib.error.URLError) as caught:
        get_fault(base_url, "bad_host")
    assert isinstance(caught.value.reason, socket.gaierror)


def test_the_port_can_be_used_again() -> None:
    port = free_port()
    for _ in range(2):
        with SceneServer(port) as base_url:
            assert base_url == f"http://{HOST}:{port}"
            assert get(url_of(base_url, 0))


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used"), SceneServer(port):
            pass


def test_it_ends_with_its_block() -> None:
    with SceneServer() as base_url:
        address = urlsplit(base_url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=5)


PARENT = """
import os, sys
from demo.server import SceneServer
if __name__ == "__main__":
    with SceneServer() as base_url:
        if sys.argv[1] == "fork" and os.fork() == 0:
            sys.stdin.read()
            os._exit(0)
        print(base_url, flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("kin", ["alone", "fork"])
def test_it_ends_with_a_parent_that_is_killed(kin: str) -> None:
    """With `fork` a sibling survives that holds every pipe of the parent's open."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, kin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        address = urlsplit(parent.stdout.readline().strip())
        with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=60) as connection:
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
            # The end of the server's process ends the connection; until then this waits.
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=5)
