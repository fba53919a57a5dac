"""`clipstill status`: what records alone tell, of folders whose makers are still at work, or gone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clipstill.main import main
from shards import Dataset, Folder
from shards.dataset import Stage, publish_planning
from shards.record import FileEntry, ShardRecord

MADE, WANTED, ROWS = 1000, 1200, 50


def unfinished(folder: Folder, made: int) -> None:
    """A dataset of 1,200 shards of 50 rows that is being made: a record every two seconds so far; two failures."""
    command = ("clipstill", "ingest", "/lists/a list.tsv", "--name", "set")
    stage = Stage(settings={}, name="set", fingerprint="f" * 16, shards=WANTED, rows=WANTED * ROWS, command=command)
    publish_planning(folder, stage)
    now = time.time()
    for shard in range(made):
        tar = FileEntry(f"{shard:05d}.tar", 1, f"{shard:064x}")
        stats = {"rows": ROWS, "failed.http_404": 9, "failed.dns": 1}
        record = ShardRecord(shard, "f" * 16, "", 40, (tar,), stats)
        records = folder.child("_records")
        if folder.is_local:
            records.path.mkdir(exist_ok=True)
            path = records.path / str(record.name)
            path.write_text(record.to_json())
            os.utime(path, (now - 2 * (made - shard), now - 2 * (made - shard)))
        else:
            records.publish(str(record.name), record.to_json().encode())
    for shard, cause in ((1005, "OSError: first"), (1007, "OSError: \x1b[31mred https://x/y?X-Amz-Signature=abcdef")):
        report = {"shard": shard, "cause": cause, "attempts": 3, "trace": "", "careful": False}
        folder.child("_failures").publish(f"{shard:05d}.json", json.dumps(report).encode())


def test_a_dataset_that_is_being_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path / "set")
    unfinished(folder, MADE)
    began = time.perf_counter()
    assert main(["status", folder.url]) == 0
    taken = time.perf_counter() - began
    first, shards, rate, failed, rows, goes_on = capsys.readouterr().out.splitlines()
    assert first == f"{folder}: the dataset set, its list is still being read"
    assert shards.split(maxsplit=1)[1] == "1,000 of 1,200 made, 200 missing (01000, 01001, 01002, 01003, 01004, ...)"
    assert rate.split(maxsplit=1)[1].startswith("30.0 shards a minute over the newest 50, the last ")
    assert rate.endswith("; 7 min left at this rate")
    assert failed.split(maxsplit=1)[1] == "2; the last, 01007, in 3 tries: OSError: red https://x/y?X-Amz-Signature=***"
    assert rows.split(maxsplit=1)[1] == (
        "50,000 of 60,000 ended as 40,000 samples (80.0%); others http_404 9,000, dns 1,000"
    )
    assert goes_on.split(maxsplit=2)[2] == f"clipstill ingest '/lists/a list.tsv' --name set --out {folder}"
    # A thousand records in under a second; ten here, for a busy machine.
    assert taken < 10
    # A record of the future: the clocks differ, and nothing else.
    ahead = time.time() + 3600
    os.utime(next(folder.child("_records").path.glob("00999.*")), (ahead, ahead))
    assert main(["status", folder.url]) == 0
    assert "60 min ahead of this clock" in capsys.readouterr().out
    assert main(["status", folder.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["stage"]["made"], told["stage"]["wanted"]) == ("dataset", MADE, WANTED)
    assert (told["whole"], told["stage"]["failure"]["shard"]) == (False, 1007)


def test_of_many_records_on_a_store_some_stand_for_all(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(f"{bucket}/set")
    unfinished(folder, 60)
    assert main(["status", folder.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split(maxsplit=1)[1].startswith("60 of 1,200 made, 1,140 missing")
    # Whether there is a rate before it is a matter of how long the records took to write.
    (rows,) = (line for line in lines if line.startswith("  rows "))
    assert "2,400 of 60,000 ended as 1,920 samples (80.0%), in 48 of the 60 shards" in rows


def test_a_run_that_was_evaluated_after_its_newest_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation is a line of the log, in which there is no loss and no rate."""
    (tmp_path / "settings.json").write_text(json.dumps({"identity": {"steps": 40, "settings": {"batch_size": 10}}}))
    lines = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.5, "measured": {"samples_per_second": 100.0}}]
    (tmp_path / "log.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in [*lines, {"step": 20, "eval/x": 1}])
    )
    assert main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["loss"], found["left"]) == (20, 2.5, 2.0)
    (tmp_path / "log.jsonl").write_text("")
    assert main(["status", str(tmp_path)]) == 0
    assert "nan" not in capsys.readouterr().out


def test_what_is_whole_and_what_is_none(
    tmp_path: Path, make_dataset: Callable[..., Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset(tmp_path / "set", (3, 4))
    assert main(["status", dataset.folder.url]) == 0
    first, shards, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(": the dataset tiny, whole")
    assert shards.split() == ["shards", "2", "of", "2", "made"]
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nothing", "set/00000.tar"):
        assert main(["status", str(tmp_path / place)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert str(tmp_path / place) in err
