"""The runner's contract, on both executors, with real small tasks that fail as told."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from shards import (
    Folder,
    IncompleteError,
    InProcess,
    ShardError,
    ShardRecord,
    Spec,
    UserError,
    published_records,
    run_shards,
)
from shards.executor import Outcome
from shards.publication import Publication
from shards.ray_executor import RayExecutor
from shards.ray_machines import Needs
from tests.conftest import encoded, picture

# Ray's workers do not have the folder of the tests on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

DEADLINE = 300.0

Start = Callable[[], Any]


@dataclass(frozen=True)
class Task:
    """Shards whose attempts end as told: `fates[shard]` names the outcome of each attempt, `ok` after the last."""

    out: Folder
    count: int
    fates: dict[int, list[str]] = field(default_factory=dict)
    setting: str = "a"
    meet: int = 1
    overlap: int = 1

    name = "letters"

    def specs(self) -> Iterator[Spec]:
        for shard in range(self.count):
            yield Spec(shard, self.out, f"{self.setting}{shard:015d}")

    def open(self) -> Worker:
        (self.diary / "opened").mkdir(parents=True, exist_ok=True)
        (self.diary / "opened" / str(os.getpid())).touch()
        fate = self.fates.get(-1, [])
        if fate:
            fail(fate[0])
        return Worker(self)

    @property
    def diary(self) -> Path:
        """Where attempts leave their traces, beside the output."""
        return self.out.path.parent / f"{self.out.path.name}-diary"


@dataclass(frozen=True)
class Worker:
    task: Task

    def close(self) -> None:
        pass

    def run(self, spec: Spec) -> ShardRecord:
        diary = self.task.diary
        tries, running = diary / f"tries-{spec.shard}", diary / "running"
        running.mkdir(parents=True, exist_ok=True)
        (running / str(spec.shard)).touch()
        (diary / f"at-once-{spec.shard}").write_text(str(len(list(running.iterdir()))))
        tries.mkdir(exist_ok=True)
        attempt = len(list(tries.iterdir()))
        (tries / str(attempt)).write_text(str(os.getpid()))
        wait_for(lambda: list(diary.glob("tries-*")), lambda begun: len(begun) >= self.task.meet)
        try:
            fates = self.task.fates.get(spec.shard, [])
            publication = Publication(spec)
            with publication.file(".txt") as path:
                path.write_text(self.task.setting * spec.shard)
                if attempt < len(fates):
                    fail(fates[attempt])
            return publication.finish(spec.shard, {"letters": spec.shard, "shards": 1})
        finally:
            (running / str(spec.shard)).unlink()


def fail(fate: str) -> None:
    if fate == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "exit":
        sys.exit(3)
    errors: dict[str, Exception] = {
        "transient": OSError("the network\nwent away"),
        "permanent": ShardError("damaged for good"),
        "user": UserError("7 is too many", where="--letters", do="Use 6"),
    }
    if fate in errors:
        raise errors[fate]


def wait_for(look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    """What `look` gives as soon as it is enough."""
    deadline = time.monotonic() + DEADLINE
    while not enough(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.005)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


@pytest.fixture(params=["in process", "ray"])
def start(request: pytest.FixtureRequest) -> Start:
    """Makes an executor of each kind."""
    if request.param == "in process":
        return InProcess
    request.getfixturevalue("ray_here")
    return lambda: RayExecutor(2)


def tries(task: Task, shard: int) -> int:
    folder = task.diary / f"tries-{shard}"
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def payload(task: Task) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(task.out.path.glob("*.txt"))}


def test_every_shard_is_made_once_and_a_second_run_makes_none(start: Start, out: Folder) -> None:
    task = Task(out, 5)
    first = run_shards(task, start())
    assert (first.finished, first.skipped, first.samples) == (5, 0, 0 + 1 + 2 + 3 + 4)
    assert first.stats == {"letters": 10, "shards": 5}
    assert payload(task) == {f"{shard:05d}.txt": "a" * shard for shard in range(5)}
    second = run_shards(task, start())
    assert (second.finished, second.skipped, second.samples, second.stats) == (0, 5, 10, first.stats)
    assert [tries(task, shard) for shard in range(5)] == [1] * 5


def test_only_what_is_missing_or_was_made_otherwise_is_made(start: Start, out: Folder) -> None:
    run_shards(Task(out, 4), start())
    changed = out.child("_records").path
    for path in changed.glob("00002.*"):
        path.unlink()
    for path in changed.glob("00003.*"):
        path.write_text(path.read_text().replace("a000000000000003", "b000000000000003"))
        path.rename(path.with_name(path.name.replace(".a", ".b")))
    task = Task(out, 4)
    summary = run_shards(task, start())
    assert (summary.finished, summary.skipped) == (2, 2)
    assert [tries(task, shard) for shard in range(4)] == [1, 1, 2, 2]
    other = run_shards(Task(out, 4, setting="b"), start())
    assert (other.finished, other.skipped, other.samples) == (4, 0, 6)
    assert payload(task) == {f"{shard:05d}.txt": "b" * shard for shard in range(4)}


def test_a_shard_whose_files_are_gone_or_of_another_size_is_made_again(out: Folder) -> None:
    task = Task(out, 5)
    run_shards(task, InProcess())
    before = payload(task)
    (out.path / "00001.txt").unlink()
    (out.path / "00003.txt").write_text("aaaa")
    (out.path / "00004.txt").write_text("bbbb")
    summary = run_shards(task, InProcess())
    assert (summary.finished, summary.skipped) == (2, 3)
    assert sorted(summary.remade) == ["00001.txt is missing", "00003.txt has 4 bytes instead of 3"]
    # Bytes are `verify`'s: what was changed within its size stays.
    assert payload(task) == {**before, "00004.txt": "bbbb"}
    # Where it cannot be made again, no record says that it is there.
    (out.path / "00002.txt").unlink()
    with pytest.raises(IncompleteError):
        run_shards(Task(out, 5, {2: ["transient"] * 9}), InProcess())
    assert 2 not in published_records(out)


def test_what_may_pass_is_tried_again(start: Start, out: Folder) -> None:
    task = Task(out, 3, {1: ["transient", "transient"]})
    assert run_shards(task, start()).finished == 3
    assert [tries(task, shard) for shard in range(3)] == [1, 3, 1]
    assert out.child("_failures").names() == []


def test_after_three_tries_a_shard_is_quarantined_and_the_others_are_made(start: Start, out: Folder) -> None:
    task = Task(out, 4, {2: ["transient"] * 3})
    with pytest.raises(IncompleteError) as raised:
        run_shards(task, start())
    assert "letters: 1 of 4 shards are missing" in str(raised.value)
    assert "out/00002: OSError: the network went away" in str(raised.value)
    assert [tries(task, shard) for shard in range(4)] == [1, 1, 3, 1]
    assert sorted(payload(task)) == ["00000.txt", "00001.txt", "00003.txt"]
    report = json.loads(out.child("_failures").read("00002.json"))
    assert (report["shard"], report["attempts"]) == (2, 3)
    assert report["cause"] == "OSError: the network went away"
    assert "in fail" in report["trace"]
    # The next run tries only that one, adds up both runs and takes the report away.
    summary = run_shards(task, start())
    assert (summary.finished, summary.skipped, summary.samples) == (1, 3, 6)
    assert summary.stats == {"letters": 6, "shards": 4}
    assert out.child("_failures").names() == []
    assert [tries(task, shard) for shard in range(4)] == [1, 1, 4, 1]


def test_what_cannot_pass_is_quarantined_at_once(start: Start, out: Folder) -> None:
    task = Task(out, 3, {0: ["permanent"], 2: ["permanent"]})
    with pytest.raises(IncompleteError, match=r"2 of 3 shards are missing \(.*damaged for good") as raised:
        run_shards(task, start())
    assert "out/00000" in str(raised.value)
    assert "out/00002" in str(raised.value)
    assert [tries(task, shard) for shard in range(3)] == [1, 1, 1]
    assert out.child("_failures").names() == ["00000.json", "00002.json"]


def test_what_the_user_must_mend_stops_the_run_as_it_was_raised(start: Start, out: Folder) -> None:
    # Each of the two workers meets it first: neither can finish all the others while one is slow to start.
    task = Task(out, 30, {0: ["user"] * 9, 1: ["user"] * 9})
    with pytest.raises(UserError) as raised:
        run_shards(task, start())
    error = raised.value
    assert (error.problem, error.where, error.do) == ("7 is too many", "--letters", "Use 6")
    assert str(error) == "--letters: 7 is too many. Use 6"
    assert sum(tries(task, shard) for shard in range(30)) < 30
    # Whoever met it first did so once: it is not tried again.
    assert {tries(task, shard) for shard in (0, 1)} in ({1}, {0, 1})


def test_a_worker_that_cannot_open_is_an_outcome_like_any_other(start: Start, out: Folder) -> None:
    with pytest.raises(UserError, match="Use 6"):
        run_shards(Task(out, 3, {-1: ["user"]}), start())
    with pytest.raises(IncompleteError, match=r"3 of 3 shards are missing .*the network went away"):
        run_shards(Task(out, 3, {-1: ["transient"]}), start())
    assert run_shards(Task(out, 3), start()).finished == 3


def test_many_failures_are_counted_and_five_are_shown(out: Folder) -> None:
    with pytest.raises(IncompleteError) as raised:
        run_shards(Task(out, 8, {shard: ["permanent"] for shard in range(7)}), InProcess())
    text = str(raised.value)
    assert "7 of 8 shards" in text
    assert text.count("damaged for good") == 5
    assert "and 2 more" in text


class Recording(InProcess):
    """Remembers how many specs it held at once."""

    held = most = 0

    def submit(self, spec: Spec) -> None:
        self.held += 1
        self.most = max(self.most, self.held)
        super().submit(spec)

    def wait(self, most: float | None = None) -> Outcome | None:
        outcome = super().wait(most)
        self.held -= outcome is not None
        return outcome


def test_no_more_is_in_flight_than_there_are_slots(out: Folder) -> None:
    executor = Recording()
    run_shards(Task(out, 10, {4: ["transient", "transient"], 5: ["transient"]}, overlap=3), executor)
    assert (executor.most, executor.held) == (3, 0)


def test_a_worker_is_at_as_many_shards_at_once_as_its_task_says(start: Start, out: Folder) -> None:
    # The first shards to begin end when three have begun, in one process.
    task = Task(out, 9, {4: ["transient"]}, meet=3, overlap=3)
    assert run_shards(task, start()).finished == 9
    at_once = [int((task.diary / f"at-once-{shard}").read_text()) for shard in range(9)]
    workers = len(list((task.diary / "opened").iterdir()))
    assert 3 <= max(at_once) <= 3 * workers


@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_begins_first_leaves_the_others_their_share(out: Folder) -> None:
    # None of them ends before all have begun, and one worker could take them all.
    task = Task(out, 6, meet=6, overlap=6)
    assert run_shards(task, RayExecutor(2)).finished == 6
    workers = [(task.diary / f"tries-{shard}" / "0").read_text() for shard in range(6)]
    assert sorted(Counter(workers).values()) == [3, 3]


def test_a_run_that_finds_all_done_reads_nothing_twice(out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    run_shards(Task(out, 4), InProcess())
    asked: list[str] = []

    def watch(name: str) -> None:
        call = getattr(Folder, name)

        def watched(folder: Folder, *given: Any, **options: Any) -> Any:
            asked.append(f"{name} {given[0] if given else folder.path.name}")
            return call(folder, *given, **options)

        monkeypatch.setattr(Folder, name, watched)

    for name in ("names", "sizes", "read", "read_small", "publish"):
        watch(name)
    summary = run_shards(Task(out, 4), InProcess())
    assert (summary.skipped, summary.finished, summary.samples, summary.stats["letters"]) == (4, 0, 6, 6)
    folder = out.path.name
    assert sorted(asked) == sorted(["names _failures", "names _records", f"sizes {folder}", "read manifest.jsonl"])


def test_a_manifest_with_a_record_that_is_gone_is_written_again(out: Folder) -> None:
    run_shards(Task(out, 3), InProcess())
    (gone,) = out.child("_records").names("00002.")
    out.child("_records").delete(gone)
    run_shards(Task(out, 2), InProcess())
    assert len(out.child("_records").read("manifest.jsonl").splitlines()) == 2


@dataclass(frozen=True)
class Late(Task):
    """The first shard is refused while the others have still much to do."""

    begun: threading.Barrier = field(default_factory=lambda: threading.Barrier(3))
    overlap: int = 3

    def open(self) -> Worker:
        return LateWorker(self)


class LateWorker(Worker):
    def run(self, spec: Spec) -> ShardRecord:
        assert isinstance(self.task, Late)
        self.task.begun.wait(DEADLINE)
        if spec.shard == 0:
            raise UserError("7 is too many")
        for _ in range(20):
            hashlib.sha256(bytes(10_000_000)).digest()
        return super().run(spec)


def test_nothing_is_at_work_any_more_when_an_error_comes(out: Folder) -> None:
    with pytest.raises(UserError, match="7 is too many"):
        run_shards(Late(out, 3), InProcess())
    assert set(published_records(out)) == {1, 2}


@dataclass(frozen=True)
class Growing(Task):
    """Each shard becomes known when the one before has begun; without `ends` it stays open whether another comes."""

    overlap: int = 3
    ends: bool = True

    def specs(self) -> Iterator[Spec | None]:
        deadline = time.monotonic() + DEADLINE
        for spec in Task.specs(self):
            yield spec
            while not (self.diary / f"tries-{spec.shard}").exists():
                assert time.monotonic() < deadline, f"{spec.shard} has not begun"
                time.sleep(0.005)
                yield None
        while not self.ends:
            assert time.monotonic() < deadline, "nobody saw what ended"
            time.sleep(0.005)
            yield None

    def outlook(self) -> tuple[int, str]:
        return self.count, ""


def test_what_is_known_begins_while_the_next_is_long_in_coming(start: Start, out: Folder) -> None:
    # None of them ends before all have begun, and there is room for more.
    assert run_shards(Growing(out, 2, meet=2), start()).finished == 2


def test_what_ends_is_seen_while_the_next_is_long_in_coming(start: Start, out: Folder) -> None:
    with pytest.raises(UserError, match="7 is too many"):
        run_shards(Growing(out, 2, {1: ["user"]}, ends=False), start())


@pytest.mark.usefixtures("ray_here")
def test_ray_runs_as_many_at_once_as_there_are_workers(out: Folder) -> None:
    # The first shard to begin ends when another has begun beside it.
    task = Task(out, 6, meet=2)
    assert run_shards(task, RayExecutor(2)).finished == 6
    at_once = [int((task.diary / f"at-once-{shard}").read_text()) for shard in range(6)]
    assert max(at_once) == 2
    assert len(list((task.diary / "opened").iterdir())) == 2


@pytest.mark.usefixtures("ray_here")
def test_more_workers_than_the_cluster_has_room_for_do_not_hang(out: Folder) -> None:
    executor = RayExecutor(5)
    assert run_shards(Task(out, 8), executor).finished == 8


@pytest.mark.usefixtures("ray_here")
def test_workers_that_can_never_fit_are_refused(out: Folder) -> None:
    with pytest.raises(UserError, match="a worker needs 3 CPU on one machine"):
        run_shards(Task(out, 2), RayExecutor(1, Needs(cpus=3)))
    with pytest.raises(UserError, match="64 GPU on one machine"):
        run_shards(Task(out, 2), RayExecutor(1, Needs(gpus=64)))
    with pytest.raises(UserError, match="0 workers"):
        RayExecutor(0)


@pytest.mark.usefixtures("ray_here")
def test_both_executors_reach_the_same_bytes(
    tmp_path: Path, snapshot: Callable[[str | Path], dict[str, bytes]]
) -> None:
    fates = {1: ["transient"], 3: ["transient", "transient"]}
    here, there = Task(Folder(tmp_path / "here"), 6, fates), Task(Folder(tmp_path / "there"), 6, {**fates, 4: ["die"]})
    run_shards(here, InProcess())
    run_shards(there, RayExecutor(2))
    assert snapshot(here.out.path) == snapshot(there.out.path)
    assert len(snapshot(here.out.path)) == 6 + 6 + 1


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("fate", ["die", "exit"])
def test_a_worker_that_dies_is_replaced_and_its_shard_tried_again(out: Folder, fate: str) -> None:
    task = Task(out, 4, {0: [fate], 1: [fate, "transient"], 2: ["transient"]})
    assert run_shards(task, RayExecutor(2)).finished == 4
    assert [tries(task, shard) for shard in range(4)] == [2, 3, 2, 1]
    first, second = ((task.diary / "tries-0" / str(attempt)).read_text() for attempt in range(2))
    assert first != second
    # What the dead ones left half-written is gone.
    assert not list(out.path.glob(".*"))


@pytest.mark.usefixtures("ray_here")
def test_a_shard_that_kills_its_worker_each_time_is_quarantined(out: Folder) -> None:
    task = Task(out, 3, {1: ["die"] * 3})
    with pytest.raises(IncompleteError, match=r"out/00001: the worker process died") as raised:
        run_shards(task, RayExecutor(2))
    assert "\n" not in str(raised.value)
    assert payload(task).keys() == {"00000.txt", "00002.txt"}


class _Picture(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(encoded(picture(1, 64, 48)))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[str]:
    """The address of a server that has a picture at every path."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Picture)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("ray_here")
def test_a_command_joins_a_cluster_by_its_address_and_leaves_it_running(tmp_path: Path, pictures: str) -> None:
    address = ray.get_runtime_context().gcs_address
    (tmp_path / "list.tsv").write_text("".join(f"a\t{pictures}/{number}.jpg\n" for number in range(3)))
    where = f"--out {tmp_path}/out --shard-size 1 --workers 8 --ray-address {address} --allow-address 127.0.0.1"
    command = f"ingest {tmp_path}/list.tsv --format cc3m --name set {where}".split()
    done = subprocess.run(
        [Path(sys.executable).with_name("clipstill"), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "3 shards made" in done.stdout
    # How many lines of progress there are, and what rate the last one gives, is the clock's business.
    *progress, last = done.stderr.splitlines()
    assert last.startswith("ingest: 3/3 shards"), done.stderr
    assert all(line.startswith("ingest: ") for line in progress), done.stderr
    assert run_shards(Task(Folder(tmp_path / "after"), 2), RayExecutor(2)).finished == 2


_JOIN = """
import sys
from shards.ray_session import cluster_machines
from shards.errors import UserError
try:
    cluster_machines(sys.argv[1])
except UserError as error:
    print(error)
"""


def joining(address: str, home: Path, **environment: str) -> str:
    """What somebody is told who joins a cluster with these variables of Ray's and no others."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", _JOIN, address],
        capture_output=True,
        text=True,
        check=True,
        env={**bare, "HOME": str(home), **environment},
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.usefixtures("ray_here")
def test_a_cluster_that_asks_for_its_token_is_called_so(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    told = joining(address, tmp_path)
    assert "asks for its token, and was given none" in told
    assert "Set RAY_AUTH_MODE=token" in told
    told = joining(address, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="not-the-clusters-token")
    assert "refuses the token that it was given" in told


def test_who_is_to_use_a_token_and_has_none_is_told_so_whatever_the_cluster_asks_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = joining(f"127.0.0.1:{server.getsockname()[1]}", tmp_path, RAY_AUTH_MODE="token")
    assert told.startswith("RAY_AUTH_MODE=token has Ray use a token, and there is none")
    assert "asks for its token" not in told
    assert "Unset it if the Ray at '127.0.0.1:" in told


@dataclass(frozen=True)
class Slow(Task):
    """Shards that wait until they are told to end."""

    def open(self) -> Worker:
        return Waiting(self)


class Waiting(Worker):
    def run(self, spec: Spec) -> ShardRecord:
        (self.task.diary / "opened").mkdir(parents=True, exist_ok=True)
        (self.task.diary / "opened" / str(os.getpid())).touch()
        wait_for((self.task.diary / "go").exists, bool)
        return super().run(spec)


@pytest.mark.long
def test_machines_may_leave_a_cluster_and_join_it(out: Folder, caplog: pytest.LogCaptureFixture) -> None:
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        task = Slow(out, 8)
        executor = RayExecutor(3, address=cluster.address)
        executor.patience = 3.0

        # Here in a thread, for machines can only be added by the main one.
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(run_shards, task, executor)
            wait_for(lambda: list(task.diary.glob("opened/*")), lambda begun: len(begun) == 2)
            cluster.remove_node(second, allow_graceful=False)
            wait_for(lambda: caplog.text, lambda text: "trying again" in text and "nothing has ended for" in text)
            cluster.add_node(num_cpus=1)
            wait_for(lambda: list(task.diary.glob("opened/*")), lambda begun: len(begun) == 3)
            (task.diary / "go").touch()
            assert run.result().finished == 8
        assert [tries(task, shard) for shard in range(8)] == [1] * 8
    finally:
        cluster.shutdown()


def test_a_user_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UserError("7 is too many", where="--letters", do="Use 6")))
    assert (str(error), error.do) == ("--letters: 7 is too many. Use 6", "Use 6")


ELSEWHERE = """
from shards.errors import UserError
from shards.ray_executor import RayExecutor
from shards.ray_machines import Needs
from teacher_cache.layout import slug

executor = RayExecutor(1)
assert executor.once(slug, "A B") == "a-b"
try:
    executor.once(RayExecutor, 0)
except UserError as error:
    assert error.problem == "0 workers cannot do any work", error
else:
    raise AssertionError("an error there is an error here")
executor.close()
"""


def test_folders_named_like_our_packages_do_not_hide_them_from_workers(tmp_path: Path) -> None:
    """`clipstill ingest --out shards` in an empty folder is what anyone would try first."""
    for name in ("shards", "ingest", "teacher_cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000.tar").write_bytes(b"")
    program = tmp_path / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text(ELSEWHERE)
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Noting(Task):
    """Leaves a note of which shards were to be made with care, and is interrupted at `stop`."""

    stop: int = -1

    def open(self) -> Worker:
        return NotingWorker(self)


class NotingWorker(Worker):
    def run(self, spec: Spec) -> ShardRecord:
        (name,) = self.task.out.child("_failures").names(f"{spec.shard:05d}")
        assert json.loads(self.task.out.child("_failures").read(name))["careful"]
        if isinstance(self.task, Noting) and spec.shard == self.task.stop:
            raise KeyboardInterrupt
        if spec.careful:
            (self.task.diary / f"careful-{spec.shard}").touch()
        return super().run(spec)


def test_a_shard_that_a_process_died_at_is_made_with_care(out: Folder) -> None:
    """Of each shard that is under way in this process a file says so; what a death has left there is heeded."""
    task = Noting(out, 4, {3: ["transient"]}, stop=2)
    task.diary.mkdir(parents=True)
    for shard in (1, 2):
        report = {"shard": shard, "cause": "the process ended", "attempts": 0, "trace": "", "careful": True}
        out.child("_failures").publish(f"{shard:05d}.json", json.dumps(report).encode())
    with pytest.raises(KeyboardInterrupt):
        run_shards(task, InProcess())
    # Shard 0 and 1 are made; what was suspected and is not made still is.
    assert out.child("_failures").names() == ["00002.json"]
    assert run_shards(replace(task, stop=-1), InProcess()).finished == 2
    assert sorted(path.name for path in task.diary.glob("careful-*")) == ["careful-1", "careful-2"]
    assert out.child("_failures").names() == []


def test_an_interrupt_is_no_death(out: Folder) -> None:
    task = Noting(out, 3, stop=1)
    task.diary.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        run_shards(task, InProcess())
    assert out.child("_failures").names() == []
