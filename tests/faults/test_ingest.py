"""Runs that are killed or interrupted at bad moments: nothing half-made, nothing left running, the same bytes after."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest import ImageSettings, IngestSettings, SourceSettings, ingest
from shards import InProcess, published_records, verify_dataset
from shards.storage import Folder

ROWS, SHARD = 24, 4

Snapshot = Callable[[str | Path], dict[str, bytes]]


def settings(listing: Path, out: Path) -> IngestSettings:
    source = SourceSettings(paths=(str(listing),), format="cc3m")
    return IngestSettings(
        source=source, out=str(out), name="set", shard_size=SHARD, image=ImageSettings(size=16), threads=2
    )


def command(listing: Path, out: Path, *more: str) -> list[str | Path]:
    options = f"--format cc3m --name set --shard-size {SHARD} --image-size 16 --threads 2".split()
    return ["ingest", listing, "--out", out, *options, *more]


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


@pytest.mark.parametrize("where", ["--in-process", "--workers=2"])
def test_an_interrupt_ends_in_one_line_and_the_same_command_goes_on(
    pictures: Any, listing: Path, expected: dict[str, bytes], where: str, request: pytest.FixtureRequest
) -> None:
    start, wait_until, alive, snapshot = map(request.getfixturevalue, ("start", "wait_until", "alive", "snapshot"))
    out = listing.parent / "out"
    # Half of the shards can be made; the others wait for pictures that do not come.
    pictures.held_from = ROWS // 2
    run = start(*command(listing, out, where))
    wait_until(lambda: records(out) and pictures.waiting)
    began = run.descendants()
    assert bool(began) == (where != "--in-process")
    run.interrupt()
    status, stdout, stderr = run.finish()
    assert (status, stdout) == (130, "")
    assert stderr.splitlines() == [
        "clipstill: interrupted. What was published stays; the same command goes on from there"
    ]
    wait_until(lambda: not alive(began))
    published = published_records(Folder(out))
    assert 0 < len(published) <= ROWS // SHARD // 2
    pictures.release.set()
    status, stdout, _ = start(*command(listing, out, "--in-process")).finish()
    assert status == 0
    assert f"{ROWS // SHARD - len(published)} shards made, {len(published)} were there already" in stdout
    assert snapshot(out) == expected


def test_an_interrupt_while_more_pictures_wait_than_threads_does_not_hang(
    pictures: Any, start: Callable[..., Any], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    listing = pictures.write_list(tmp_path / "list.tsv", 200)
    pictures.held_from = 0
    run = start("ingest", listing, *"--format cc3m --name set --threads 3 --in-process --out".split(), tmp_path / "out")
    wait_until(lambda: pictures.waiting == 3)
    run.interrupt()
    status, _, stderr = run.finish()
    assert (status, len(stderr.splitlines())) == (130, 1)


def test_a_killed_driver_leaves_no_process_and_no_half_shard(
    pictures: Any, listing: Path, expected: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    start, wait_until, alive, snapshot = map(request.getfixturevalue, ("start", "wait_until", "alive", "snapshot"))
    out = listing.parent / "out"
    pictures.held_from = ROWS // 2
    run = start(*command(listing, out, "--workers", "2"))
    wait_until(lambda: records(out) and pictures.waiting == 4)
    began = run.descendants()
    names = {Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0] for process in began}
    # Ray's own, and both workers.
    assert any(b"raylet" in name for name in names)
    assert len([process for process in began if b"ray::" in Path(f"/proc/{process}/cmdline").read_bytes()]) >= 2
    run.kill()
    assert run.finish()[0] == -9
    # The pictures are still held back: workers must go because their driver went, not because they are done.
    wait_until(lambda: not alive(began))
    finished = len(published_records(Folder(out)))
    assert 0 < finished <= ROWS // SHARD // 2
    pictures.release.set()
    status, stdout, _ = start(*command(listing, out, "--workers", "2")).finish()
    assert status == 0
    assert f"{ROWS // SHARD - finished} shards made, {finished} were there already" in stdout
    assert snapshot(out) == expected


def test_a_kill_at_any_moment_is_mended_by_running_again(
    listing: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    kill_often: Callable[[str, int], list[int]],
    snapshot: Snapshot,
) -> None:
    """From the first file of the plan to the last of the records, in one process."""
    program = f"""
import os
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import warnings
warnings.simplefilter("ignore")
import img2dataset.downloader
from ingest import ImageSettings, IngestSettings, SourceSettings, ingest
from shards import InProcess

def work(number):
    out = {str(tmp_path)!r} + f"/killed-{{number}}"
    tick_at_files(out)
    source = SourceSettings(paths=({str(listing)!r},), format="cc3m")
    image = ImageSettings(size=16)
    ingest(
        IngestSettings(source=source, out=out, name="set", shard_size={SHARD}, image=image, threads=2), InProcess()
    )
"""
    kills = 12
    kill_often(program, kills)
    found = []
    for number in range(1, kills + 1):
        out = tmp_path / f"killed-{number}"
        found.append(records(out))
        before = {path: path.read_bytes() for path in out.glob("0*")}
        for path in before:
            # Whatever has its final name is whole, record or not.
            assert expected[path.name] == before[path]
        report = ingest(settings(listing, out), InProcess())
        assert report.summary.skipped == found[-1]
        assert snapshot(out) == expected
    # Kills fell before the first record and after many.
    assert min(found) == 0
    assert max(found) >= ROWS // SHARD - 1
    assert verify_dataset(str(tmp_path / "killed-1")).problems == ()


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
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.exit(main({[str(word) for word in command(listing, out, "--in-process")]!r}))
"""
    import subprocess, sys

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "6 of 6 shards are missing" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert records(out) == 0
    assert not list(out.glob("*.tar"))
    ingest(settings(listing, out), InProcess())
    assert snapshot(out) == expected
