"""An outage says nothing of the rows: the shard is missing, not full of failures."""

from __future__ import annotations

import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ingest import IngestSettings, SourceSettings, ingest
from shards import IncompleteError, InProcess, published_records
from shards.storage import Folder


def settings(folder: Path, rows: int) -> IngestSettings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
    (folder / "list.tsv").write_text("".join(f"a cat\thttp://127.0.0.1:{nobody}/{row}.jpg\n" for row in range(rows)))
    source = SourceSettings(paths=(str(folder / "list.tsv"),), format="cc3m")
    return IngestSettings(source=source, out=str(folder / "out"), name="cats", retries=0, timeout=2)


def test_a_shard_of_which_no_host_answers_is_missing_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match="none of 60 URLs could be reached; is the network down"):
        ingest(settings(tmp_path, 60), InProcess())
    assert not published_records(Folder(tmp_path / "out"))
    assert (tmp_path / "out" / "_failures" / "00000.json").exists()


def test_a_few_dead_links_are_accounted_for_as_such(tmp_path: Path) -> None:
    report = ingest(settings(tmp_path, 40), InProcess())
    assert (report.samples, report.failed) == (0, {"connect": 40})
    assert pq.read_table(tmp_path / "out" / "00000.parquet")["error_class"].to_pylist() == ["connect"] * 40
