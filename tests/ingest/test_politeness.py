"""What a host is asked for is the run's, however many workers there are."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ingest import IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import UserError
from shards.ray_executor import RayExecutor
from shards.ray_session import ray_session

ROWS, SHARD, WORKERS = 36, 3, 3


class Host(http.server.ThreadingHTTPServer):
    """A slow host that counts how many requests it has at once, and when each came."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.lock = threading.Lock()
        self.came: list[float] = []
        self.now = self.most = 0
        self.slowness = 0.0


class Answer(http.server.BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host = self.server
        with host.lock:
            host.came.append(time.monotonic())
            host.now += 1
            host.most = max(host.most, host.now)
        time.sleep(host.slowness)
        sink = io.BytesIO()
        Image.new("RGB", (32, 32)).save(sink, "PNG")
        with host.lock:
            host.now -= 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sink.getvalue())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def three_cores() -> Iterator[None]:
    with ray_session(cpus=WORKERS):
        yield


@pytest.fixture
def host() -> Iterator[Host]:
    server = Host()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run(host: Host, tmp_path: Path, **network: float) -> None:
    listing = tmp_path / "list.tsv"
    listing.write_text("".join(f"a\thttp://127.0.0.1:{host.server_port}/{row}.png\n" for row in range(ROWS)))
    settings = IngestSettings(
        source=SourceSettings(paths=(str(listing),), format="cc3m"),
        out=str(tmp_path / "out"),
        name="set",
        shard_size=SHARD,
        network=NetworkSettings(allow_addresses=("127.0.0.1",), **network),
    )
    assert ingest(settings, RayExecutor(WORKERS)).samples == ROWS


def test_connections_to_a_host_are_counted_over_all_workers(host: Host, tmp_path: Path) -> None:
    host.slowness = 0.3
    run(host, tmp_path, per_host=WORKERS + 1, per_host_rate=0)
    # Whoever has shards open has far more rows to ask for than that.
    assert 1 < host.most <= WORKERS + 1


def test_requests_a_second_are_counted_over_all_workers(host: Host, tmp_path: Path) -> None:
    rate = 12
    run(host, tmp_path, per_host_rate=rate)
    # Each worker may begin with one request, or a quarter of a second's.
    spread = (ROWS - WORKERS * max(1, rate / WORKERS / 4)) / rate
    assert max(host.came) - min(host.came) >= 0.99 * spread


def test_a_workers_part() -> None:
    network = NetworkSettings(per_host=10, per_host_rate=6)
    part = network.shared_by(4)
    assert (part.per_host, part.per_host_rate) == (2, 1.5)
    # Nobody has chosen: one for each is the least.
    assert [NetworkSettings().shared_by(workers).per_host for workers in (1, 2, 5, 200)] == [32, 16, 6, 1]
    assert NetworkSettings(per_host_rate=0).shared_by(3).per_host_rate == 0
    with pytest.raises(UserError, match="--per-host: 11 workers cannot share 10 connections to a host"):
        network.shared_by(11)
    with pytest.raises(UserError, match=r"4 workers cannot share 0\.002 requests a second to a host"):
        NetworkSettings(per_host_rate=0.002).shared_by(4)
