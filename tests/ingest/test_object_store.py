"""A dataset ingested straight to an object store: the same bytes as on a disk, read back and verified there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from ingest import ImageSettings, IngestSettings, SourceSettings, ingest
from shards import Dataset, Folder, InProcess, UserError, verify_dataset


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("ingested")
    yield "s3://ingested"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_ingested_to_a_store_and_read_from_there(
    bucket: str,
    site: Any,
    picture: Callable[..., bytes],
    tmp_path: Path,
    snapshot: Callable[[Path], dict[str, bytes]],
) -> None:
    urls = [site.add(f"{number}.jpg", picture(40 + 2 * number, 40)) for number in range(5)]
    text = "".join(f"caption {number}\t{url}\n" for number, url in enumerate([*urls, site.url("nothing")]))
    store = s3fs.S3FileSystem()
    store.pipe_file("ingested/list.tsv", text.encode())
    (tmp_path / "list.tsv").write_text(text)

    def settings(source: str, out: str) -> IngestSettings:
        chosen = SourceSettings(paths=(source,), format="cc3m")
        return IngestSettings(source=chosen, out=out, name="set", shard_size=4, image=ImageSettings(size=32))

    there = settings(f"{bucket}/list.tsv", f"{bucket}/data/set")
    report = ingest(there, InProcess())
    assert (report.rows, report.samples, report.failed) == (6, 5, {"http_404": 1})
    ingest(settings(str(tmp_path / "list.tsv"), str(tmp_path / "here")), InProcess())
    stored = {path.removeprefix("ingested/data/set/"): store.cat_file(path) for path in store.find("ingested/data/set")}
    assert stored == snapshot(tmp_path / "here")

    dataset = Dataset.open(there.out)
    assert [shard.caption(row) for shard in dataset.shards for row in range(shard.count)] == [
        f"caption {number}" for number in range(5)
    ]
    assert verify_dataset(there.out).problems == ()

    # A second run finds everything done; one that lost a shard makes it again.
    assert ingest(there, InProcess()).summary.skipped == 2
    (record,) = Folder(there.out).child("_records").names("00001.")
    Folder(there.out).child("_records").delete(record)
    with pytest.raises(UserError, match="1 of 2 shards are missing"):
        Dataset.open(there.out)
    assert ingest(there, InProcess()).summary.finished == 1
    assert {
        path.removeprefix("ingested/data/set/"): store.cat_file(path) for path in store.find("ingested/data/set")
    } == stored
