"""A worker with several shards open at once: the bytes of one after the other, and rows that hang hold up nobody."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings
from ingest.ledger import MEASURED, read_ledger
from ingest.plan import make_plan
from ingest.task import IngestTask
from shards import Folder, ShardRecord, Spec

Picture = Callable[..., bytes]


def plan(folder: Path, urls: list[str], shard_size: int, **network: Any) -> IngestTask:
    folder.mkdir()
    listed = folder / "list.txt"
    listed.write_text("\n".join(urls))
    settings = IngestSettings(
        source=SourceSettings(paths=(str(listed),)),
        out=str(folder / "out"),
        name="x",
        shard_size=shard_size,
        image=ImageSettings(size=32),
        network=NetworkSettings(**{"allow_addresses": ("127.0.0.1",), "retries": 0, **network}),
    )
    return IngestTask(settings, make_plan(settings))


def run(task: IngestTask, at_once: int) -> list[ShardRecord]:
    worker = task.open()
    with ThreadPoolExecutor(at_once) as pool:
        records = list(pool.map(worker.run, task.specs()))
    worker.close()
    return records


def test_the_bytes_do_not_depend_on_how_many_are_open(site: Any, picture: Picture, tmp_path: Path) -> None:
    urls = [site.add(f"bytes/{n}", picture(40 + 2 * (n % 9), 60) if n % 7 else b"no image") for n in range(90)]
    urls[40:45] = urls[10:15]
    tasks = {at_once: plan(tmp_path / str(at_once), urls, 10) for at_once in (1, 8)}
    records = {at_once: run(task, at_once) for at_once, task in tasks.items()}
    assert [record.content for record in records[1]] == [record.content for record in records[8]]
    for shard in range(9):
        one, other = (
            read_ledger(Folder(tmp_path / str(at_once) / "out"), shard).drop_columns(list(MEASURED))
            for at_once in (1, 8)
        )
        assert one.equals(other)
    assert sum(record.count for record in records[8]) == 90 - 13 - 4


def test_a_row_that_hangs_holds_up_its_own_shard_alone(site: Any, picture: Picture, tmp_path: Path) -> None:
    """The first row of each of two shards hangs until the last row of all was asked for."""
    last = threading.Event()

    def hang(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200 if last.wait(20) else 500)
        handler.end_headers()
        handler.wfile.write(picture())

    def end(handler: http.server.BaseHTTPRequestHandler) -> None:
        last.set()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(picture())

    urls = [site.add(f"hold/{n}", picture()) for n in range(30)]
    urls[0], urls[10] = (site.add_answer(f"hold/{n}", hang) for n in (0, 10))
    urls[29] = site.add_answer("hold/29", end)
    records = run(plan(tmp_path / "set", urls, 10, connections=4), 3)
    assert [record.count for record in records] == [10, 10, 10]


@pytest.mark.parametrize(("size", "overlap"), [(1000, 8), (4000, 2), (50_000, 2), (10, 8)])
def test_larger_shards_are_fewer(tmp_path: Path, size: int, overlap: int) -> None:
    assert plan(tmp_path / "set", ["http://127.0.0.1/x"], size).overlap == overlap


def test_a_shard_that_may_have_killed_its_worker_is_decoded_elsewhere(
    site: Any, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the decoder dies of an image, that row alone is lost."""
    pytest.importorskip("ingest.images.isolated")
    urls = [site.add(f"careful/{n}", picture()) for n in range(3)]
    task = plan(tmp_path / "set", urls, 10)
    worker = task.open()
    monkeypatch.setattr("ingest.images.ImageProcessor.process", lambda *_: pytest.fail("decoded here"))
    (spec,) = task.specs()
    record = worker.run(Spec(spec.shard, spec.folder, spec.fingerprint, careful=True))
    worker.close()
    assert record.count == 3


def test_what_was_planned_is_what_is_in_the_ledger(site: Any, picture: Picture, tmp_path: Path) -> None:
    """Rows of eight open shards, answered in any order, stay with their own keys and hashes."""
    bodies = [picture(40 + 2 * (n % 16), 40 + 2 * (n // 16)) for n in range(64)]
    urls = [site.add(f"own/{n}", body) for n, body in enumerate(bodies)]
    run(plan(tmp_path / "set", urls, 8), 8)
    ledgers = [pq.read_table(path) for path in sorted((tmp_path / "set" / "out").glob("0*.parquet"))]
    found = {row["url"]: row["sha256"] for ledger in ledgers for row in ledger.to_pylist()}
    assert found == {url: hashlib.sha256(body).hexdigest() for url, body in zip(urls, bodies, strict=True)}
