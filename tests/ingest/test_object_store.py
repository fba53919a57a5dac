"""A dataset ingested straight to an object store: the same bytes as on a disk, read back and verified there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from ingest.sources import Source
from shards import Dataset, Folder, InProcess, UserError, verify_dataset

LOCAL = NetworkSettings(allow_addresses=("127.0.0.1",))


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
    store.pipe_file(f"{bucket}/list.tsv", text.encode())
    (tmp_path / "list.tsv").write_text(text)

    def settings(source: str, out: str) -> IngestSettings:
        chosen = SourceSettings(paths=(source,), format="cc3m")
        return IngestSettings(
            source=chosen, out=out, name="set", shard_size=4, image=ImageSettings(size=32), network=LOCAL
        )

    there = settings(f"{bucket}/list.tsv", f"{bucket}/data/set")
    report = ingest(there, InProcess())
    assert (report.rows, report.samples, report.failed) == (6, 5, {"http_404": 1})
    ingest(settings(str(tmp_path / "list.tsv"), str(tmp_path / "here")), InProcess())
    here = without_place(snapshot(tmp_path / "here"))
    assert without_place(snapshot(download(there.out, tmp_path / "first"))) == here

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
    assert without_place(snapshot(download(there.out, tmp_path / "second"))) == here


def without_place(files: dict[str, bytes]) -> dict[str, Any]:
    """All but the index, which a store's dataset has elsewhere, and when the list was written to."""
    facts = json.loads(files["dataset.json"])
    for known in facts["inputs"]:
        del known["modified"]
    return {name: data for name, data in files.items() if not name.startswith("_seen/")} | {"dataset.json": facts}


def test_a_list_on_a_store_without_credentials_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match=r"^s3://bucket/list\.csv: no usable credentials"):
            Source(SourceSettings(paths=("s3://bucket/list.csv",)))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def download(url: str, to: Path) -> Path:
    s3fs.S3FileSystem().get(url, str(to), recursive=True)
    return to
