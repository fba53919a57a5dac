"""Every stage on a store that fails, killed at drawn moments: the bytes of an undisturbed run on a disk."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import s3fs

from clipstill.main import main
from shards import Folder, verify_dataset
from teacher_cache.verify import verify_cache
from tests.faults.faulty_store import FaultyStore

ROWS, SHARD, STEPS = 48, 4, 24
PIECES, KILLS = 6, 30
"""Seeds, and kills for each: together with those on Ray more than two hundred."""
ON_RAY = 3
"""Seeds of rounds in which Ray's workers make the shards."""

log = logging.getLogger(__name__)

pytestmark = pytest.mark.long

FORKS = """
import json, os, sys
import torch, fsspec, s3fs, pyarrow.parquet, open_clip
import ingest.run, teacher_cache.building.build, distill.training.train
from clipstill.main import main
for line in sys.stdin:
    words, log = json.loads(line)
    process = os.fork()
    if process == 0:
        os.setsid()
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0); os.dup2(said, 1); os.dup2(said, 2)
        try:
            status = main(words)
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 70
        sys.stdout.flush()
        os._exit(status)
    print(process, flush=True)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Imports once what every command needs, then is the parent of each: a kill costs a second, not ten."""


class Forks:
    """Commands in processes of their own, one after the other."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._server = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, *words: str) -> int:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([words, str(self.log)]) + "\n")
        self._server.stdin.flush()
        return int(self._out.readline())

    @property
    def _out(self) -> IO[str]:
        assert self._server.stdout is not None
        return self._server.stdout

    def ended(self) -> int:
        """Wait for the end; its exit status."""
        return int(self._out.readline())

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Callable[[], Forks]]:
    made: list[Forks] = []

    def make() -> Forks:
        made.append(Forks(tmp_path / "said.log"))
        return made[-1]

    yield make
    for server in made:
        server.close()


def commands(base: str, out: Path, how: str, listing: Path, models: tuple[str, str]) -> dict[str, list[str]]:
    """The three stages, in order; `models`: teacher and student."""
    teacher, student = models
    ingest = f"--format cc3m --name set --shard-size {SHARD} --image-size 32 --allow-address 127.0.0.1 --connections 4"
    build = "--views 2 --batch-size 16"
    train = f"--steps {STEPS} --batch-size 8 --lr 1e-3 --warmup 2 --checkpoint-every 3 --log-every 1"
    return {
        "ingest": ["ingest", str(listing), "--out", f"{base}/set", *ingest.split(), *how.split()],
        "cache": [
            "cache",
            "build",
            f"{base}/set",
            "--teacher",
            teacher,
            "--out",
            f"{base}/cache",
            *build.split(),
            *how.split(),
        ],
        "distill": [
            "distill",
            f"{base}/set",
            "--cache",
            f"{base}/cache",
            "--student",
            student,
            "--out",
            str(out),
            *train.split(),
        ],
    }


def remains(base: str, out: Path, snapshot: Any, copy: Path) -> dict[str, bytes]:
    """Everything that the stages left, but for where the index of URLs lies and what says how long things took."""
    if "://" in base:
        s3fs.S3FileSystem().get(base, str(copy), recursive=True)
    files = {name: data for name, data in snapshot(copy).items() if "_seen/" not in name}
    facts = json.loads(files["set/dataset.json"])
    files["set/dataset.json"] = json.dumps({**facts, "command": ""}).encode()
    return files | {"model": (out / "model" / "open_clip_model.safetensors").read_bytes()}


_BUCKETS = itertools.count()


class Campaign:
    """Kills at moments drawn from a seed, counted by what was killed."""

    def __init__(self, store: FaultyStore, seed: int, request: pytest.FixtureRequest) -> None:
        self.store, self.draw = store, random.Random(seed)
        self.killed: Counter[str] = Counter()
        self._start, self._wait_until = map(request.getfixturevalue, ("start", "wait_until"))

    def in_forks(self, server: Forks, stage: str, words: list[str]) -> None:
        """A stage to its end: its process killed up to six times, its store gone now and then."""
        left = 6
        while True:
            # Up to a whole undisturbed stage, and more often early in it than late.
            done = partial(_steps, words) if stage == "distill" else self.store.requests.total
            after = done() + int(self.draw.random() ** 2 * (STEPS if stage == "distill" else 160))
            process = server.start(*words)
            if self.draw.random() < 0.15:
                # Once it has answered this process: one that never did is not waited for.
                self.store.leave_at, self.store.stay_away = (
                    self.store.requests.total() + self.draw.randrange(10, 60),
                    20,
                )
                self.killed["store"] += 1
            if left and self.draw.random() < 0.9:
                self._wait_until(partial(_is_time, done, after, partial(_is_gone, process)))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            status = server.ended()
            self.store.stay_away = 0
            assert status in {0, -signal.SIGKILL}, (stage, status, server.log.read_text()[-3000:])
            if status == 0:
                return
            left -= 1
            self.killed[f"driver of {stage}"] += 1

    def by_ray(self, stage: str, words: list[str]) -> None:
        """A stage to its end by Ray's workers: they, Ray itself and the driver are killed."""
        for whats in (("worker", "raylet", "driver"), ("worker", "driver"), ("raylet", "worker"), ()):
            run = self._start(*words)
            for what in whats:
                done = self.store.requests.total
                after, ready = done() + self.draw.randrange(30), partial(_below, run, "worker")
                self._wait_until(partial(_is_time, done, after, partial(_has_ended, run), ready))
                if _has_ended(run):
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(
                        run.process.pid if what == "driver" else self.draw.choice(_below(run, what)), signal.SIGKILL
                    )
                    self.killed[f"{what} of {stage} on Ray"] += 1
            if whats[-1:] == ("driver",) and run.process.wait() == -signal.SIGKILL:
                run.abandon()
                continue
            status, _, err = run.finish()
            assert status == 0, (stage, err)


class Rounds(NamedTuple):
    """The kills, and `finish(number, how, work)`: one round, each of whose stages `work` brings to its end."""

    kills: Campaign
    finish: Callable[[int, str, Callable[[str, list[str]], None]], None]


@pytest.fixture
def campaign(
    s3_endpoint: str, pictures: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[int], AbstractContextManager[Rounds]]:
    """Rounds of all stages on a store that fails, each compared with what the stages leave on a disk."""
    snapshot, save_teacher, save_student, patch = map(
        request.getfixturevalue, ("snapshot", "save_teacher", "save_student", "monkeypatch")
    )
    listing = pictures.write_list(tmp_path / "list.tsv", ROWS)
    models = save_teacher(tmp_path / "teacher"), save_student(tmp_path / "student.json")

    @contextlib.contextmanager
    def begin(seed: int) -> Iterator[Rounds]:
        near = tmp_path / "near"
        for words in commands(str(near), tmp_path / "run-near", "--in-process", listing, models).values():
            assert main(words) == 0
        expected = remains(str(near), tmp_path / "run-near", snapshot, near)
        patch.setenv("AWS_MAX_ATTEMPTS", "3")
        patch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
        with FaultyStore(s3_endpoint, seed=seed) as store:
            patch.setenv("AWS_ENDPOINT_URL", store.url)
            s3fs.S3FileSystem.clear_instance_cache()
            kills = Campaign(store, seed, request)

            def finish(number: int, how: str, work: Callable[[str, list[str]], None]) -> None:
                base, out = f"s3://campaign-{next(_BUCKETS)}", tmp_path / f"run-{number}"
                s3fs.S3FileSystem().mkdir(base)
                store.share = 0.02
                for stage, words in commands(base, out, how, listing, models).items():
                    work(stage, words)
                store.share = 0.0
                assert remains(base, out, snapshot, tmp_path / f"copy-{number}") == expected
                assert verify_dataset(f"{base}/set").problems == ()
                assert verify_cache(f"{base}/set", f"{base}/cache", rows=2).problems == ()
                assert Folder(f"{base}/set").child("_failures").names() == []
                shutil.rmtree(tmp_path / f"copy-{number}")
                log.warning("round %d: %s, faults %s", number, dict(kills.killed), dict(store.faults))

            yield Rounds(kills, finish)
        s3fs.S3FileSystem.clear_instance_cache()

    return begin


@pytest.mark.parametrize("seed", range(PIECES))
def test_kills_lose_and_double_nothing(campaign: Any, forks: Any, seed: int) -> None:
    with campaign(seed) as (kills, finish):
        server = forks()
        for number in itertools.count():
            if kills.killed.total() >= KILLS:
                break
            finish(number, "--in-process", partial(kills.in_forks, server))
    assert min(kills.killed[f"driver of {stage}"] for stage in ("ingest", "cache", "distill")) >= 1


@pytest.mark.parametrize("seed", range(ON_RAY))
def test_kills_on_ray_lose_and_double_nothing(campaign: Any, forks: Any, seed: int) -> None:
    with campaign(100 + seed) as (kills, finish):
        server = forks()

        def work(stage: str, words: list[str]) -> None:
            kills.in_forks(server, stage, words) if stage == "distill" else kills.by_ray(stage, words)

        finish(0, "--workers 2", work)
    assert sum(count for what, count in kills.killed.items() if what.endswith("on Ray")) >= 6


def _is_time(
    done: Callable[[], int], after: int, over: Callable[[], object], ready: Callable[[], object] = lambda: True
) -> bool:
    return bool(over() or (done() >= after and ready()))


def _steps(words: list[str]) -> int:
    """How many steps a run has logged."""
    log = Path(words[words.index("--out") + 1]) / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _below(run: Any, what: str) -> list[int]:
    """The workers, or the raylet, of a run."""
    mark = {"worker": b"ray::RayWorker", "raylet": b"raylet/raylet"}[what]
    return [process for process, line in run.look().items() if mark in line]


def _has_ended(run: Any) -> bool:
    return run.process.poll() is not None


def _is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
