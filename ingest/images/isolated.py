"""Decode images in child processes: one that needs too much, or crashes its decoder, costs its row and nothing else.

A child is a fresh interpreter, started when it is first needed and used for many images. It reads bodies from a pipe
and answers with what `ImageProcessor` makes of each. Its CPU time for each image and its memory are limited. When the
machine runs out of memory it is the first to be killed. It prints nothing, and it ends when its pipe is closed, however
its parent ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ingest.faces import Boxes
from ingest.fetched import Fetched
from ingest.settings import ImageSettings

MOST_BYTES = 460_000_000
"""What a process may allocate beyond what it begins with; its `ImageProcessor` plans with less."""
_SILENT_S = 600.0
"""Nothing answers that late: the process is stopped, or waits for ever."""
_TRIES = 2
"""Something else may have ended the process; an image that ends two is to blame."""
_LAST_S = 1.0
"""How long a process that was told to end may take to do so."""
LENGTHS = struct.Struct("<IQ")
"""Before each description and body in a pipe: their sizes in bytes."""


class IsolatedProcessor:
    """Like `ImageProcessor`, in another process: threads take turns, so that memory does not grow with their number.

    `cpu_s`: the CPU-seconds for one image.
    """

    def __init__(self, settings: ImageSettings, *, cpu_s: float = 10.0) -> None:
        self._begin = json.dumps({"settings": asdict(settings), "cpu_s": cpu_s}).encode()
        self._killed = Fetched(
            error_class="killed_worker",
            error_message=f"decoding it takes over {cpu_s:g} CPU-seconds or {MOST_BYTES // 10**6} MB, or crashes",
        )
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._idle: list[_Child] = []
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def process(self, body: bytes, digest: str | None = None, boxes: Boxes = ()) -> Fetched:
        """What `ImageProcessor.process` returns, or the cause `killed_worker`."""
        with self._turn:
            return self._process(body, digest, boxes)

    def _process(self, body: bytes, digest: str | None, boxes: Boxes) -> Fetched:
        for _ in range(_TRIES):
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None:
                child = _Child(self._begin)
            try:
                answer = child.ask({"digest": digest, "boxes": boxes}, body)
            except _DeadError as error:
                if error.out_of_time:
                    break
                continue
            with self._lock:
                self._idle.append(child)
            if answer is None:
                break
            return answer
        return Fetched(**{**vars(self._killed), "bytes": len(body)})

    def close(self) -> None:
        """End the processes that are idle; whoever is in `process` still gets its answer."""
        with self._lock:
            _end_all(self._idle)


def _end_all(children: list[_Child]) -> None:
    while children:
        children.pop().end()


class _DeadError(Exception):
    """The process ended without an answer; `out_of_time` if that was for the time it took."""

    def __init__(self, *, out_of_time: bool) -> None:
        super().__init__()
        self.out_of_time = out_of_time


class _Child:
    def __init__(self, begin: bytes) -> None:
        path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from ingest.images.isolated_child import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
            # What a terminal sends to all of a group is for the parent to answer.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        # One that is stopped takes nothing more than fits into the pipe.
        os.set_blocking(self._to.fileno(), False)
        with suppress(BrokenPipeError):
            self._write(framed(begin, b""), time.monotonic() + _SILENT_S)

    def ask(self, request: dict[str, Any], body: bytes) -> Fetched | None:
        """The image processed; None if it needed too much memory. Raises `_DeadError`."""
        deadline = time.monotonic() + _SILENT_S
        try:
            self._write(framed(json.dumps(request).encode(), body), deadline)
            self._write(body, deadline)
            described, image = self._answer(deadline)
        except (BrokenPipeError, EOFError, TimeoutError):
            raise _DeadError(out_of_time=self.end() == -signal.SIGPROF) from None
        except BaseException:
            self.end()
            raise
        answer = json.loads(described)
        return None if answer is None else Fetched(**answer, image=image or None)

    def end(self) -> int:
        """End it now; its exit status, negative for a signal."""
        with suppress(OSError):
            self._to.close()
        # One that is ending by itself is not killed, so that its own status tells why.
        if self._process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_S)
            self._process.kill()
        self._from.close()
        return self._process.wait()

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            _wait_for(self._to, select.POLLOUT, deadline)
            rest = rest[os.write(self._to.fileno(), rest) :]

    def _answer(self, deadline: float) -> tuple[bytes, bytes]:
        sizes = LENGTHS.unpack(self._read(LENGTHS.size, deadline))
        described, image = (self._read(size, deadline) for size in sizes)
        return described, image

    def _read(self, size: int, deadline: float) -> bytes:
        """Exactly `size` bytes. Raises `EOFError` when they do not come."""
        data = bytearray()
        while len(data) < size:
            _wait_for(self._from, select.POLLIN, deadline)
            some = os.read(self._from.fileno(), size - len(data))
            if not some:
                raise EOFError
            data += some
        return bytes(data)


def _wait_for(pipe: IO[bytes], event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
        raise TimeoutError


def framed(described: bytes, body: bytes) -> bytes:
    """What goes before a body in a pipe."""
    return LENGTHS.pack(len(described), len(body)) + described
