"""Pictures in processes of their own: the same bytes, and whatever ends a process costs one row."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest import ImageSettings
from ingest.images import ImageProcessor
from ingest.images.isolated import IsolatedProcessor

from .hostile import HOSTILE, encode, noise

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells what runs there")
SLOW = HOSTILE["ppm: numbers"]


def good() -> bytes:
    return encode(noise(400, 300), "JPEG")


_OTHERS: set[int] = set()
"""Those of tests that ran before in this process."""


@pytest.fixture(autouse=True)
def _only_own() -> None:
    _OTHERS.clear()
    _OTHERS.update(children_of(os.getpid()))


def children_of(pid: int) -> list[int]:
    """The interpreters that `pid` has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = stat.with_name("cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z" and b"isolated" in command and int(stat.parent.name) not in _OTHERS:
            found.append(int(stat.parent.name))
    return found


def cpu_of(pid: int) -> int:
    """Clock ticks so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 600
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


@pytest.fixture
def isolated() -> Iterator[IsolatedProcessor]:
    processor = IsolatedProcessor(ImageSettings())
    yield processor
    processor.close()
    assert children_of(os.getpid()) == []


def test_bytes_and_causes_are_those_of_this_process(isolated: IsolatedProcessor) -> None:
    here = ImageProcessor(ImageSettings(), alone=True)
    bodies = [good(), encode(noise(300, 200), "PNG"), encode(noise(300, 200), "TIFF"), good()[:-999], b"", b"<html>"]
    for body in bodies:
        assert isolated.process(body) == here.process(body)
        assert isolated.process(body, "0" * 64) == here.process(body, "0" * 64)
    assert len(children_of(os.getpid())) == 1


def test_several_threads_take_turns_at_one_process(isolated: IsolatedProcessor) -> None:
    bodies = [encode(noise(300 + number, 200), "JPEG") for number in range(12)]
    here = ImageProcessor(ImageSettings(), alone=True)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(isolated.process, bodies)) == [here.process(body) for body in bodies]
    # None has ended, so there was never another.
    assert len(children_of(os.getpid())) == 1


def test_a_picture_that_ends_its_process_costs_its_row(isolated: IsolatedProcessor) -> None:
    """Killed from outside while it decodes, each time that it is tried: as the kernel does when memory runs out."""
    isolated.process(good())
    stop = threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not stop.is_set():
            for pid in children_of(os.getpid()):
                try:
                    # It has begun: what a process needs to start is over after a second.
                    if pid not in killed and cpu_of(pid) > 150:
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
                except FileNotFoundError:
                    continue
            stop.wait(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    got = isolated.process(SLOW())
    stop.set()
    killer.join()
    assert len(killed) == 2
    assert (got.error_class, got.status, got.image) == ("killed_worker", "failed_to_resize", None)
    assert got.bytes == len(SLOW())
    assert isolated.process(good()).status == "success"


def test_a_process_that_was_ended_by_something_else_costs_nothing(isolated: IsolatedProcessor) -> None:
    before = isolated.process(good())
    (pid,) = children_of(os.getpid())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not children_of(os.getpid()))
    assert isolated.process(good()) == before


def test_a_process_that_is_stopped_holds_nobody_up(
    isolated: IsolatedProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no more of the body than fits into a pipe, 64 kB, and does not answer."""
    body = encode(noise(400, 300), "PNG")
    assert len(body) > 200_000
    before = isolated.process(body)
    (stopped,) = children_of(os.getpid())
    os.kill(stopped, signal.SIGSTOP)
    # Too short for a new one to start, too.
    monkeypatch.setattr("ingest.images.isolated._SILENT_S", 0.05)
    assert isolated.process(body).error_class == "killed_worker"
    assert children_of(os.getpid()) == []
    monkeypatch.undo()
    assert isolated.process(body) == before


def test_nothing_is_decoded_here_while_the_process_works() -> None:
    """Together they would hold twice what all threads may."""
    processor = ImageProcessor(ImageSettings())
    body = encode(noise(400, 300), "TIFF")
    assert processor.process(body).status == "success"
    (child,) = children_of(os.getpid())
    os.kill(child, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as threads:
        there = threads.submit(processor.process, body)
        try:
            wait_until(lambda: processor._room._free == 0)
            here = threads.submit(processor.process, good())
            with pytest.raises(TimeoutError):
                here.result(0.3)
        finally:
            os.kill(child, signal.SIGCONT)
        assert (there.result().status, here.result().status) == ("success", "success")
    processor.close()


def test_a_picture_that_takes_too_long_says_the_same_in_every_run() -> None:
    processor = IsolatedProcessor(ImageSettings(), cpu_s=0.2)
    body = SLOW()
    first, second = processor.process(body), processor.process(body)
    processor.close()
    assert first == second
    assert (first.error_class, first.bytes) == ("killed_worker", len(body))
    assert "0.2 CPU-seconds" in (first.error_message or "")


def test_a_picture_that_takes_too_much_memory_costs_its_row() -> None:
    """A TIFF whose six million strips Pillow keeps as as many tuples: over a gigabyte, in three seconds."""
    processor = IsolatedProcessor(ImageSettings(), cpu_s=60)
    got = processor.process(HOSTILE["tiff: many strips"]())
    assert got.error_class == "killed_worker"
    assert processor.process(good()).status == "success"
    processor.close()


def test_processes_end_with_their_parent_and_print_nothing() -> None:
    program = """
import os, sys
from ingest import ImageSettings
from ingest.images.isolated import IsolatedProcessor
processor = IsolatedProcessor(ImageSettings())
assert processor.process(sys.stdin.buffer.read()).status == "success"
print("ready", flush=True)
os.kill(os.getpid(), 19)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(good())
    parent.stdin.close()
    assert parent.stdout.readline() == b"ready\n"
    (child,) = children_of(parent.pid)
    parent.kill()
    assert (parent.wait(), parent.stdout.read(), parent.stderr and parent.stderr.read()) == (-9, b"", b"")
    parent.stdout.close()
    if parent.stderr:
        parent.stderr.close()

    def gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(gone)


def test_a_processor_that_is_let_go_takes_its_processes_along() -> None:
    processor = IsolatedProcessor(ImageSettings())
    sink = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(sink, "TIFF")
    assert processor.process(sink.getvalue()).width == 9
    del processor
    assert children_of(os.getpid()) == []
