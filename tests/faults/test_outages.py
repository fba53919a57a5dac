"""A store that is away for a while, or for good, while a run or its workers on Ray need it: said once, and bounded."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from shards import Folder
from tests.faults.faulty_store import FaultyStore

ROWS, SHARD, STEPS = 12, 4, 400

PATIENCE = """
import shards.outages
shards.outages.PATIENCE_S = {seconds}
"""


@pytest.fixture
def store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    with FaultyStore(s3_endpoint) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        s3fs.S3FileSystem.clear_instance_cache()
        yield faulty
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def with_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Every process that is started waits this many seconds for a store."""

    def shorten(seconds: float) -> None:
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "sitecustomize.py").write_text(PATIENCE.format(seconds=seconds))
        path = [str(tmp_path / "code"), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    return shorten


def command(listing: Path, out: str, how: str) -> list[str | Path]:
    options = f"--format cc3m --name set --shard-size {SHARD} --image-size 32 --allow-address 127.0.0.1"
    return ["ingest", listing, "--out", out, *options.split(), how]


def begun(store: FaultyStore, how: str, request: pytest.FixtureRequest) -> tuple[Any, list[str | Path]]:
    """A run whose first shard is made, and whose store has gone while it had the pictures of the others to wait for."""
    start, wait_until, bucket, pictures, tmp_path = map(
        request.getfixturevalue, ("start", "wait_until", "bucket", "pictures", "tmp_path")
    )
    pictures.held_from = SHARD
    words = command(pictures.write_list(tmp_path / "list.tsv", ROWS), f"{bucket}/set", how)
    run = start(*words)
    wait_until(lambda: pictures.waiting == ROWS - SHARD and Folder(f"{bucket}/set").child("_records").names("0"))
    run.look()
    store.gone.set()
    pictures.release.set()
    return run, words


@pytest.mark.parametrize("how", ["--in-process", pytest.param("--workers=1", marks=pytest.mark.long)])
def test_a_store_that_stays_away_ends_the_run_in_one_line(
    store: FaultyStore, bucket: str, how: str, with_patience: Any, request: pytest.FixtureRequest
) -> None:
    start = request.getfixturevalue("start")
    with_patience(3)
    run, words = begun(store, how, request)
    # The wait itself, botocore's own tries, and the end of Ray.
    run.process.wait(timeout=120)
    status, _, err = run.finish()
    assert status == 2, err
    assert err.splitlines()[-1].startswith(f"clipstill: error: {bucket}: the store has not answered for 3 s (")
    # In process the driver meets it, too.
    assert how == "--in-process" or "at shard set/0000" in err.splitlines()[-1]
    assert err.count("the store does not answer") == 1, err
    store.gone.clear()
    status, said, err = start(*words).finish()
    assert status == 0, err
    assert said.splitlines()[1].endswith(f" were there already, in {bucket}/set")


@pytest.mark.long
def test_what_a_worker_on_ray_meets_is_said_where_the_user_sees_it(
    store: FaultyStore, bucket: str, request: pytest.FixtureRequest
) -> None:
    run, _ = begun(store, "--workers=1", request)
    lines = run.read_until("the store does not answer")
    assert lines[-1].startswith(f"{bucket}: the store does not answer ("), lines
    store.gone.clear()
    status, said, err = run.finish()
    assert status == 0, err
    assert err.count("the store answers again, after") == 1, err
    assert "does not answer" not in err
    assert said.splitlines()[1].startswith(f"{ROWS // SHARD} shards made")


def test_one_interrupt_ends_training_that_waits_for_its_store_with_a_checkpoint(
    store: FaultyStore,
    bucket: str,
    make_dataset: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Shards are copied ahead of their need, the first 32 at once."""
    start, save_student, wait_until = map(request.getfixturevalue, ("start", "save_student", "wait_until"))
    make_dataset(tmp_path / "set", [4] * 64)
    s3fs.S3FileSystem().put(str(tmp_path / "set"), f"{bucket}/set", recursive=True)
    out = tmp_path / "run"
    options = f"--steps {STEPS} --batch-size 8 --lr 1e-3 --warmup 2 --checkpoint-every {STEPS} --log-every 1"
    words = ["distill", f"{bucket}/set", "--student", save_student(tmp_path / "s.json"), "--out", out, *options.split()]
    run = start(*words)
    wait_until(lambda: (out / "log.jsonl").exists() and (out / "log.jsonl").read_bytes())
    store.gone.set()
    run.read_until("the store does not answer")
    run.interrupt()
    status, _, err = run.finish()
    assert status == 128 + signal.SIGINT, err
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert f"stopped after step {steps[-1]} of {STEPS}, with a checkpoint" in err.splitlines()[-1], err
    assert [int(path.name) for path in (out / "checkpoints").iterdir()] == [steps[-1]]
