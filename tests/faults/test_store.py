"""A store that fails, is away, cuts answers short or has two runs at work: a disk's bytes, or an error that says so."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from distill.settings import OptimiserSettings, RunSettings
from distill.training.train import train
from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import Folder, InProcess, UserError, lease, verify_dataset
from shards.ranges import open_file, read_range
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.verify import verify_cache
from tests.faults.faulty_store import FaultyStore

ROWS, SHARD = 12, 4


@pytest.fixture
def store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """What the environment has for the S3 server: faults on the way to the real one."""
    with FaultyStore(s3_endpoint, seed=16) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        # Of botocore's own tries fewer, so that ours are needed.
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        s3fs.S3FileSystem.clear_instance_cache()
        yield faulty
    s3fs.S3FileSystem.clear_instance_cache()


def settings(listing: Path, out: str) -> IngestSettings:
    return IngestSettings(
        source=SourceSettings(paths=(str(listing),), format="cc3m"),
        out=out,
        name="set",
        shard_size=SHARD,
        image=ImageSettings(size=32),
        network=NetworkSettings(allow_addresses=("127.0.0.1",)),
    )


def command(listing: Path, out: str) -> list[str | Path]:
    options = f"--format cc3m --name set --shard-size {SHARD} --image-size 32 --allow-address 127.0.0.1 --in-process"
    return ["ingest", listing, "--out", out, *options.split()]


def downloaded(url: str, to: Path) -> Path:
    s3fs.S3FileSystem().get(url, str(to), recursive=True)
    return to


def plain(files: dict[str, bytes]) -> dict[str, bytes]:
    """But for the index of URLs, which a store's dataset has elsewhere."""
    return {name: data for name, data in files.items() if "_seen/" not in name}


def test_every_stage_on_a_store_that_fails_has_the_bytes_of_a_disk(
    store: FaultyStore, bucket: str, pictures: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    snapshot, save_teacher, save_student, caplog = map(
        request.getfixturevalue, ("snapshot", "save_teacher", "save_student", "caplog")
    )
    caplog.set_level(logging.WARNING, logger="shards")
    listing = pictures.write_list(tmp_path / "list.tsv", ROWS)
    teacher, student = save_teacher(tmp_path / "teacher"), save_student(tmp_path / "student.json")

    def run(base: str, out: str) -> bytes:
        report = ingest(settings(listing, f"{base}/set"), InProcess())
        assert (report.rows, report.samples) == (ROWS, ROWS)
        teachers = (TeacherSpec(teacher, "teach"),)
        built = BuildSettings(shards=f"{base}/set", cache=f"{base}/cache", teachers=teachers, views=1, batch_size=64)
        build_cache(built, InProcess())
        chosen = RunSettings(
            shards=f"{base}/set",
            cache=f"{base}/cache",
            out=str(tmp_path / out),
            student=student,
            steps=3,
            batch_size=4,
            optimiser=OptimiserSettings(lr=1e-3, warmup=2),
        )
        return (Path(train(chosen).model) / "open_clip_model.safetensors").read_bytes()

    near = run(str(tmp_path / "near"), "run-near")
    store.share = 0.06
    store.leave_at, store.stay_away = 60, 15
    far = run(bucket, "run-far")
    assert store.stay_away == 0
    assert len(store.faults) >= 3, store.faults
    store.share = 0.0
    assert far == near
    assert plain(snapshot(downloaded(bucket, tmp_path / "far"))) == plain(snapshot(tmp_path / "near"))
    assert verify_dataset(f"{bucket}/set").problems == ()
    assert verify_cache(f"{bucket}/set", f"{bucket}/cache", rows=4).problems == ()
    # The console heard of each outage once, and of its end.
    said = [record.getMessage() for record in caplog.records if record.name == "shards.outages"]
    assert [re.sub(r" \(.*| after .*", "", line) for line in said] == [
        f"{bucket}: the store does not answer",
        f"{bucket}: the store answers again,",
    ] * (len(said) // 2)
    assert said


def test_an_interrupt_ends_a_run_that_waits_for_its_store(
    store: FaultyStore, bucket: str, pictures: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    start, wait_until, snapshot = map(request.getfixturevalue, ("start", "wait_until", "snapshot"))
    listing = pictures.write_list(tmp_path / "list.tsv", ROWS)
    pictures.held_from = SHARD
    out = f"{bucket}/set"
    run = start(*command(listing, out))
    wait_until(lambda: pictures.waiting == ROWS - SHARD and Folder(out).child("_records").names())
    store.gone.set()
    pictures.release.set()
    run.read_until("the store does not answer")
    run.interrupt()
    status, _, err = run.finish()
    assert status == 128 + signal.SIGINT
    assert err.splitlines()[-1].startswith("clipstill: interrupted")
    store.gone.clear()
    # The lease of the run that could not give it up keeps nobody out: its process is no more.
    status, _, err = start(*command(listing, out)).finish()
    assert status == 0, err
    assert "waiting" not in err
    ingest(settings(listing, str(tmp_path / "near")), InProcess())
    assert plain(snapshot(downloaded(out, tmp_path / "far"))) == plain(snapshot(tmp_path / "near"))


def test_an_answer_that_stays_short_is_an_error_with_file_and_numbers(
    store: FaultyStore, bucket: str, tmp_path: Path
) -> None:
    folder = Folder(bucket)
    folder.publish("x.json", b"0123456789")
    store.share, store.kinds = 1.0, ("short",)
    url = f"{bucket}/x.json"

    def stream() -> bytes:
        with open_file(url) as file:
            return file.read()

    for read in (lambda: folder.read("x.json"), stream):
        with pytest.raises(OSError, match=f"{url}: 5 bytes came, 10 are there"):
            read()
    with pytest.raises(OSError, match=f"{url}: 2 bytes came from byte 3 on, 4 are there"):
        read_range(url, 3, 4)
    with pytest.raises(OSError, match=f"{url}: .*(5 bytes came, 10|checksum)"):
        folder.fetch("x.json", hashlib.sha256(b"0123456789").hexdigest())
    assert not [path for path in (tmp_path / "copies").iterdir() if not path.name.startswith(".")]
    store.share = 0.0
    assert folder.read("x.json") == stream() == b"0123456789"


def test_two_runs_into_one_folder_of_a_store_take_turns(
    bucket: str, pictures: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    start, wait_until, snapshot = map(request.getfixturevalue, ("start", "wait_until", "snapshot"))
    listing = pictures.write_list(tmp_path / "list.tsv", ROWS)
    pictures.held_from = SHARD
    out = f"{bucket}/set"
    first = start(*command(listing, out))
    wait_until(lambda: pictures.waiting == ROWS - SHARD)
    second = start(*command(listing, out))
    line = second.process.stderr.readline()
    assert line.startswith(f"{out}: another run is at work here (process {first.process.pid} on ")
    pictures.release.set()
    results = [run.finish() for run in (first, second)]
    assert [status for status, *_ in results] == [0, 0], results
    assert results[1][1].splitlines()[1] == f"0 shards made, {ROWS // SHARD} were there already, in {out}"
    ingest(settings(listing, str(tmp_path / "near")), InProcess())
    assert plain(snapshot(downloaded(out, tmp_path / "far"))) == plain(snapshot(tmp_path / "near"))


def lease_of(bucket: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(s3fs.S3FileSystem().cat_file(f"{bucket}/{lease.NAME}"))
    return found


def test_a_lease_of_another_machine_is_taken_over_when_it_is_renewed_no_more(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever that machine's clock says: nothing in the lease is a time."""
    monkeypatch.setattr(lease, "DEAD_S", 0.2)
    monkeypatch.setattr(lease, "_RENEW_S", 0.02)
    with Folder(bucket).alone():
        held = lease_of(bucket)
    assert Folder(bucket).names() == []
    left = json.dumps({**held, "machine": "another", "run": "another"}).encode()
    s3fs.S3FileSystem().pipe_file(f"{bucket}/{lease.NAME}", left)
    with Folder(bucket).alone():
        assert lease_of(bucket)["run"] not in {"another", held["run"]}
        # It is renewed, and stays this run's.
        first = lease_of(bucket)["renewals"]
        while lease_of(bucket)["renewals"] < first + 2:
            pass
    assert not s3fs.S3FileSystem().exists(f"{bucket}/{lease.NAME}")


def test_a_run_that_lost_its_lease_ends(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_S", 0.02)
    took = json.dumps({"run": "another", "machine": "another"}).encode()

    def work() -> None:
        with Folder(bucket).alone():
            s3fs.S3FileSystem().pipe_file(f"{bucket}/{lease.NAME}", took)
            threading.Event().wait(60)

    with pytest.raises(UserError, match="another run took over here"):
        work()
    assert lease_of(bucket)["run"] == "another"


def test_of_many_that_take_a_lease_from_the_dead_one_has_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.02)
    with Folder(bucket).alone():
        held = lease_of(bucket)
    # A process of this machine with this number began at another time, and is no more.
    s3fs.S3FileSystem().pipe_file(f"{bucket}/{lease.NAME}", json.dumps({**held, "began": "1"}).encode())
    inside: list[int] = []
    seen: list[int] = []

    def enter() -> None:
        with Folder(bucket).alone():
            inside.append(1)
            seen.append(len(inside))
            Folder(bucket).publish("x", b"something to do")
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 4
    assert not s3fs.S3FileSystem().exists(f"{bucket}/{lease.NAME}")


def test_a_short_answer_about_a_lease_loses_none(store: FaultyStore, bucket: str) -> None:
    folder = Folder(f"{bucket}/set")
    with folder.alone():
        store.share, store.kinds = 1.0, ("short",)
        with pytest.raises(OSError, match=r"\.run\.json: .* bytes came, .* are there"):
            folder.child("x").refuse_lost()
        store.share = 0.0
        assert folder.child("x").refuse_lost()
