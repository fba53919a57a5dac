"""The child process of `isolated.py`: image after image from a pipe, each answered with what became of it."""

from __future__ import annotations

import json
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ingest.images.isolated import LENGTHS, MOST_BYTES, framed
from ingest.images.processor import ImageProcessor
from ingest.settings import ImageSettings


def _receive(source: IO[bytes]) -> tuple[Any, bytes] | None:
    """A described body; None at the end."""
    lengths = source.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    described, body = (source.read(size) for size in LENGTHS.unpack(lengths))
    return json.loads(described), body


def serve() -> None:
    """What a process does: image after image until its input ends."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    begin = _receive(source)
    if begin is None:
        return
    processor = ImageProcessor(ImageSettings(**begin[0]["settings"]), alone=True)
    _limit_memory()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    while (received := _receive(source)) is not None:
        request, body = received
        # When it is over, the signal's default is to end the process.
        signal.setitimer(signal.ITIMER_PROF, begin[0]["cpu_s"])
        answer: dict[str, Any] | None
        try:
            answer = vars(processor.process(body, request["digest"], request["boxes"])).copy()
        except MemoryError:
            answer = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        image = answer.pop("image") if answer is not None else None
        del received, body
        image = image or b""
        sink.write(framed(json.dumps(answer).encode(), image))
        sink.write(image)
        sink.flush()


def _limit_memory() -> None:
    """Let this process allocate `MOST_BYTES` more than it has, where the system counts that (Linux)."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        held = 1024 * int(next(line for line in lines if line.startswith("VmData")).split()[1])
        resource.setrlimit(resource.RLIMIT_DATA, (held + MOST_BYTES, held + MOST_BYTES))
