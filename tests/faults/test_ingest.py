"""Runs that are killed or interrupted at bad moments: nothing half-made, nothing left running, the same bytes after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import InProcess, published_records, verify_dataset
from shards.storage import Folder

ROWS, SHARD = 24, 4

Snapshot = Callable[[str | Path], dict[str, bytes]]


def settings(listing: Path, out: Path) -> IngestSettings:
    source = SourceSettings(paths=(str(listing),), format="cc3m")
    return IngestSettings(
        source=source,
        out=str(out),
        name="set",
        shard_size=SHARD,
        image=ImageSettings(size=16),
        network=NetworkSettings(connections=ROWS, deadline=60, allow_addresses=("127.0.0.1",)),
    )


def command(listing: Path, out: Path, *more: str) -> list[str | Path]:
    options = f"--format cc3m --name set --shard-size {SHARD} --image-size 16 --connections {ROWS} --deadline 60"
    return ["ingest", listing, "--out", out, *options.split(), "--allow-address", "127.0.0.1", *more]


@pytest.fixture
def listing(pictures: Any, tmp_path: Path) -> Path:
    return pictures.write_list(tmp_path / "list.tsv", ROWS)


@pytest.fixture
def expected(listing: Path, tmp_path: Path, snapshot: Snapshot) -> dict[str, bytes]:
    """What a run that nobody disturbs leaves."""
    ingest(settings(listing, tmp_path / "undisturbed"), InProcess())
    return snapshot(tmp_path / "undisturbed")


def records(out: Path) -> int:
    return len(list((out / "_records").glob("0*.json")))


@pytest.mark.parametrize(
    "how",
    [
        ("--in-process", signal.SIGINT),
        ("--in-process", signal.SIGTERM),
        ("--workers=2", signal.SIGTERM),
        pytest.param(("--workers=2", signal.SIGINT), marks=pytest.mark.long),
    ],
)
def test_an_interrupt_ends_in_one_line_and_the_same_command_goes_on(
    pictures: Any, listing: Path, expected: dict[str, bytes], how: tuple[str, int], request: pytest.FixtureRequest
) -> None:
    """Ctrl-C, and SIGTERM to the whole group, as `timeout` sends it; under a $TMPDIR too long for Ray's sockets."""
    start, wait_until, alive, snapshot = map(request.getfixturevalue, ("start", "wait_until", "alive", "snapshot"))
    where, number = how
    scratch = listing.parent / "slurm" / ("job-scratch-space-of-somebody-" * 3)
    scratch.mkdir(parents=True)
    request.getfixturevalue("monkeypatch").setenv("TMPDIR", str(scratch))
    out = listing.parent / "out"
    # Half of the shards can be made; the others wait for pictures that do not come.
    pictures.held_from = ROWS // 2
    run = start(*command(listing, out, where))
    wait_until(lambda: records(out) and pictures.waiting)
    below = run.look()
    assert bool(below) == (where != "--in-process")
    assert list(scratch.iterdir())
    run.interrupt(number)
    status, stdout, stderr = run.finish()
    assert (status, stdout) == (128 + number, "")
    *progress, last = stderr.splitlines()
    assert last == "clipstill: interrupted. What was published stays; the same command goes on from there"
    # The signal is the whole group's: on a busy machine a worker's end, or Ray's, may be seen before it.
    assert all(line.startswith(("ingest: ", "out/", "Ray has died here")) for line in progress)
    # All that was started is gone with it, and whatever it kept in files.
    assert not alive(below)
    assert list(scratch.iterdir()) == []
    finished = len(published_records(Folder(out)))
    assert 0 < finished <= ROWS // SHARD // 2
    pictures.release.set()
    report = ingest(settings(listing, out), InProcess())
    assert (report.summary.skipped, report.summary.finished) == (finished, ROWS // SHARD - finished)
    assert snapshot(out) == expected


def test_a_killed_driver_leaves_no_worker_and_no_half_shard(
    pictures: Any, listing: Path, expected: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    start, wait_until, alive, snapshot = map(request.getfixturevalue, ("start", "wait_until", "alive", "snapshot"))
    out = listing.parent / "out"
    pictures.held_from = ROWS // 2
    run = start(*command(listing, out, "--workers=2"))
    wait_until(lambda: records(out) and pictures.waiting == ROWS // 2)
    below = run.look()
    workers = [process for process, line in below.items() if line.startswith(b"ray::RayWorker")]
    servers = [process for process, line in below.items() if b"raylet/raylet" in line or b"gcs_server" in line]
    assert (len(workers), len(servers)) == (2, 2)
    run.kill()
    assert run.finish()[0] == -9
    # The pictures are still held back: the workers go because their driver went, not because they are done.
    # (Ray's idle agents stay for a minute longer, trying to report to the server that is gone.)
    wait_until(lambda: not alive([*workers, *servers]))
    finished = len(published_records(Folder(out)))
    assert 0 < finished <= ROWS // SHARD // 2
    pictures.release.set()
    report = ingest(settings(listing, out), InProcess())
    assert (report.summary.skipped, report.summary.finished) == (finished, ROWS // SHARD - finished)
    assert snapshot(out) == expected


def test_a_kill_at_any_moment_is_mended_by_running_again(
    listing: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    kill_often: Callable[[str, int], list[int]],
    snapshot: Snapshot,
) -> None:
    """From the first file of the plan to the last of the records, also with half a tar written, in one process."""
    program = f"""
import ingest.engines.clipstill_engine
from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import InProcess, ShardWriter

add = ShardWriter.add

def add_or_die(*sample):
    tick()
    add(*sample)

ShardWriter.add = add_or_die

def work(number):
    out = {str(tmp_path)!r} + f"/killed-{{number}}"
    tick_at_files(out)
    source = SourceSettings(paths=({str(listing)!r},), format="cc3m")
    image = ImageSettings(size=16)
    network = NetworkSettings(connections=2, allow_addresses=("127.0.0.1",))
    ingest(
        IngestSettings(source=source, out=out, name="set", shard_size={SHARD}, image=image, network=network),
        InProcess(),
    )
"""
    kills = 10
    kill_often(program, kills)
    found = []
    for number in range(1, kills + 1):
        out = tmp_path / f"killed-{number}"
        found.append(records(out))
        # Whatever has its final name is whole, with a record or without.
        for name, content in snapshot(out).items():
            if name.startswith("0"):
                assert content == expected[name]
        report = ingest(settings(listing, out), InProcess())
        assert report.summary.skipped == found[-1]
        assert snapshot(out) == expected
    # Kills fell before the first record and after many.
    assert min(found) == 0
    assert max(found) >= ROWS // SHARD - 1
    assert verify_dataset(str(tmp_path / "killed-1")).problems == ()


def test_a_second_run_sees_what_is_gone_and_makes_it_again(
    listing: Path, expected: dict[str, bytes], tmp_path: Path, start: Callable[..., Any], snapshot: Snapshot
) -> None:
    out = tmp_path / "undisturbed"
    (out / "00001.tar").unlink()
    (out / "00002.index.arrow").write_bytes(b"")
    (out / "00004.parquet").unlink()
    status, said, err = start(*command(listing, out, "--in-process")).finish()
    assert status == 0, err
    assert said.splitlines()[1:] == [
        f"3 shards made, 3 were there already, in {out}",
        "3 of them made again: 00001.tar is missing; 00002.index.arrow has 0 bytes instead of "
        f"{len(expected['00002.index.arrow'])}; 00004.parquet is missing",
    ]
    assert snapshot(out) == expected
    assert verify_dataset(str(out)).problems == ()


FRAGILE = """
import os, signal
from ingest.images.processor import ImageProcessor
process = ImageProcessor.process

def fragile(self, body, *more):
    if body.endswith(b"fatal"):
        os.kill(os.getpid(), signal.SIGKILL)
    return process(self, body, *more)

ImageProcessor.process = fragile
"""


def test_an_image_that_kills_the_whole_process_costs_its_row_in_the_next_run(
    pictures: Any, listing: Path, expected: dict[str, bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In process, nobody is left to tell of it but a file."""
    start, snapshot = map(request.getfixturevalue, ("start", "snapshot"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sitecustomize.py").write_text(FRAGILE)
    path = os.pathsep.join([str(tmp_path / "code"), *filter(None, [os.environ.get("PYTHONPATH")])])
    request.getfixturevalue("monkeypatch").setenv("PYTHONPATH", path)
    out = tmp_path / "out"
    pictures.fatal = SHARD + 1
    assert start(*command(listing, out, "--in-process")).finish()[0] == -9
    assert (out / "_failures" / "00001.json").exists()
    assert not list((out / "_records").glob("00001.*"))
    status, said, err = start(*command(listing, out, "--in-process")).finish()
    assert status == 0, err
    assert said.splitlines()[0] == f"{ROWS} rows: {ROWS - 1} samples, 1 failed"
    ledger = pq.read_table(out / "00001.parquet").to_pylist()
    causes = [row["error_class"] for row in ledger]
    assert causes == [None, "killed_worker", *[None] * (SHARD - 2)]
    assert list((out / "_failures").iterdir()) == []
    got = snapshot(out)
    assert all(got[name] == expected[name] for name in got if name.startswith("0") and not name.startswith("00001"))
    assert verify_dataset(str(out)).problems == ()


def test_two_runs_into_the_same_folder_at_once_agree(
    listing: Path, expected: dict[str, bytes], tmp_path: Path, start: Callable[..., Any], snapshot: Snapshot
) -> None:
    out = tmp_path / "out"
    runs = [start(*command(listing, out, "--in-process")) for _ in range(2)]
    results = [run.finish() for run in runs]
    assert [status for status, *_ in results] == [0, 0], results
    assert snapshot(out) == expected


def test_a_full_disk_is_a_failure_like_any_other(
    listing: Path, expected: dict[str, bytes], tmp_path: Path, snapshot: Snapshot
) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the write."""
    out = tmp_path / "out"
    program = f"""
import resource, signal, sys
from clipstill.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (11_000, 11_000))
sys.exit(main({[str(word) for word in command(listing, out, "--in-process")]!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "6 of 6 shards are missing" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert records(out) == 0
    assert not list(out.glob("*.tar"))
    ingest(settings(listing, out), InProcess())
    assert snapshot(out) == expected


def test_a_disk_without_room_stops_the_run_at_once(
    listing: Path, tmp_path: Path, in_own_mounts: Callable[[str], str]
) -> None:
    """Six shards, and room for less than one: not one more than the first is fetched."""
    program = f"""
import subprocess, sys
from pathlib import Path
from clipstill.main import main
out = Path({str(tmp_path / "small")!r})
out.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(out)], check=True)
sys.stderr = sys.stdout
print("status", main({[str(word) for word in command(listing, tmp_path / "small" / "out", "--in-process")]!r}))
"""
    *_, said, status = in_own_mounts(program).splitlines()
    assert status == "status 2"
    assert "the disk is full" in said
    assert "Make room there and in $TMPDIR" in said


@pytest.mark.parametrize(("size", "full"), [("60k", "/_seen: the disk is full"), ("500k", "/_plan: the disk is full")])
def test_a_disk_without_room_for_the_plan_is_named(
    tmp_path: Path, in_own_mounts: Callable[[str], str], size: str, full: str
) -> None:
    path = tmp_path / "list.tsv"
    path.write_text(
        "".join(f"caption {row * 7919:x}\thttp://a.invalid/{row * 104729:x}.jpg\n" for row in range(20_000))
    )
    program = f"""
import subprocess, sys
from pathlib import Path
from clipstill.main import main
out = Path({str(tmp_path / "small")!r})
out.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={size}", "none", str(out)], check=True)
sys.stderr = sys.stdout
print("status", main({[str(word) for word in command(path, tmp_path / "small" / "out", "--in-process")]!r}))
print(len(list(out.rglob("*.tmp"))), "left")
"""
    *_, said, status, left = in_own_mounts(program).splitlines()
    assert (status, left) == ("status 2", "0 left")
    assert full in said
    assert "Make room there and in $TMPDIR, then run the same command again" in said
