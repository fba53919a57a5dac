"""Pictures on a web site that can hold some of them back, and processes that are looked at from outside."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

DEADLINE = 600.0


class Pictures(http.server.ThreadingHTTPServer):
    """`/N.jpg` is picture N; those from `held_from` on, but the `spared`, are answered once `release` is set. After the
    one that is `fatal` comes that word.
    """

    # The usual backlog of five makes clients wait a second before they try again.
    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.held_from: float = float("inf")
        self.spared: Container[int] = ()
        self.release = threading.Event()
        self.fatal: int | None = None
        self.waiting = 0
        self.answers = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""

    def write_list(self, path: Path, count: int) -> Path:
        """A CC3M file of the first `count` pictures."""
        root = f"http://127.0.0.1:{self.server_port}"
        path.write_text("".join(f"picture {number}\t{root}/{number}.jpg\n" for number in range(count)))
        return path


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Pictures

    def do_GET(self) -> None:
        number = int(self.path[1:].removesuffix(".jpg"))
        held = number >= self.server.held_from and number not in self.server.spared
        if held and not self.server.release.is_set():
            self.server.waiting += 1
            self.server.release.wait()
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "JPEG")
        if number == self.server.fatal:
            sink.write(b"fatal")
        self.send_response(200)
        self.send_header("Content-Length", str(sink.tell()))
        self.end_headers()
        self.wfile.write(sink.getvalue())
        self.server.answers += 1

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    site = Pictures()
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    site.release.set()
    site.shutdown()
    site.server_close()
    thread.join()


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds; fails if it does not within ten minutes."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.02)

    return wait


def stat_of(process: int) -> tuple[int, int, str] | None:
    """Parent, session and state of a process, None if there is none; zombies count as none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[3]), fields[0])


def descendants(root: int) -> set[int]:
    """Every process below `root`."""
    parents = {
        int(path.name): stat
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and (stat := stat_of(int(path.name)))
    }
    found = {root}
    while more := {process for process, (parent, *_) in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


class Run:
    """`clipstill` in a process group of its own, as a shell starts it, with its output kept.

    `processes`: that many, started by torchrun.
    """

    def __init__(self, *arguments: str | Path, processes: int = 0) -> None:
        torchrun = ["torchrun", "--standalone", f"--nproc-per-node={processes}", "-m", "clipstill"]
        program, *more = torchrun if processes else ["clipstill"]
        command = [str(Path(sys.executable).with_name(program)), *more, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.seen: set[int] = set()

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """What Ctrl-C does: every process of the foreground group gets the signal."""
        os.killpg(self.process.pid, number)

    def read_until(self, words: str) -> list[str]:
        """The lines of standard error up to the one with these words; fails if there is none."""
        lines: list[str] = []
        for line in self.process.stderr or ():
            lines.append(line)
            if words in line:
                return lines
        raise AssertionError(f"no line has {words!r}: {lines}")

    def kill(self) -> None:
        """`kill -9` of the one process that the user started."""
        self.process.kill()

    def look(self) -> dict[int, bytes]:
        """The processes below this one now, with their command lines; they are ended with the test at the latest."""
        self.seen |= descendants(self.process.pid)
        lines = {}
        for process in self.seen:
            with contextlib.suppress(FileNotFoundError):
                lines[process] = Path(f"/proc/{process}/cmdline").read_bytes()
        return lines

    def abandon(self) -> None:
        """Wait for the end of a killed run; its children may hold its output open for longer."""
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def finish(self) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """`start("ingest", ...)` begins a run; what still runs at the end of the test is ended."""
    runs: list[Run] = []

    def begin(*arguments: str | Path, processes: int = 0) -> Run:
        runs.append(Run(*arguments, processes=processes))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.look()
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.communicate()
        for process in run.seen:
            if stat_of(process) is not None:
                os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="session")
def alive() -> Callable[[Iterable[int]], set[int]]:
    """Those of some processes that still run."""
    return lambda processes: {process for process in processes if stat_of(process) is not None}


@pytest.fixture(scope="session")
def in_own_mounts() -> Callable[[str], str]:
    """Runs a program that may mount what it likes; what it prints."""
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*enter, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine gives no mount namespaces ({error})")

    def run(program: str) -> str:
        done = subprocess.run([*enter, sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cluster of several raylets: a head without cores; `add_node(num_cpus=1)` adds a machine.

    A parameter holds more about the head.
    """
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    # No token: whoever joins is started with this environment.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    head = {"num_cpus": 0, "include_dashboard": False, **getattr(request, "param", {})}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()
