"""Compare the list at hand with the one that a plan was made of: the same, grown since, or another, which is refused.

A stage's fingerprint holds the files' names and sizes, so it is known before anything is read. Their SHA-256 is
computed while the list is read, and again only for files whose size or time of change differs since.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from typing import Any

from ingest.formats import KINDS
from ingest.plan.ahead import StoppedError
from ingest.plan.parts import read_rows
from ingest.settings import IngestSettings
from ingest.sources import Source, hash_input
from ingest.sources.quoted import UNCLOSED
from shards import Folder, UserError, fingerprint
from shards.dataset import InputFile, Stage
from shards.fingerprint import first_difference
from shards.ranges import open_file

_HASHED_AT_ONCE = 2
_POLL_S = 0.02


class Hashing:
    """SHA-256 of input files, worked out by threads."""

    def __init__(self, paths: Sequence[str], inputs: Sequence[InputFile]) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_HASHED_AT_ONCE, thread_name_prefix="hash")
        self._inputs = list(inputs)
        self._found: list[Future[tuple[int, str]] | None] = [
            None if known.sha256 else self._pool.submit(hash_input, path, self._stop)
            for path, known in zip(paths, inputs, strict=True)
        ]

    def so_far(self) -> tuple[InputFile, ...]:
        """The inputs, with the hashes that are known by now."""
        return tuple(self._with_hash(place, wait=False) for place in range(len(self._inputs)))

    def all(self, stop: threading.Event) -> tuple[InputFile, ...]:
        """The inputs with all hashes. Raises `UserError` for a file that changed while it was read, and `StoppedError`
        once `stop` is set.
        """
        while not all(found is None or found.done() for found in self._found):
            if stop.wait(_POLL_S):
                raise StoppedError
        return tuple(self._with_hash(place, wait=True) for place in range(len(self._inputs)))

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _with_hash(self, place: int, *, wait: bool) -> InputFile:
        known, found = self._inputs[place], self._found[place]
        if found is None or not (wait or (found.done() and found.exception() is None)):
            return known
        size, digest = found.result()
        if known.bytes not in {None, size}:
            raise UserError(
                f"input {known.name} has changed while it was read ({known.bytes:,} bytes, now {size:,})",
                do="Ingest a copy of it that nobody writes to, into another folder",
            )
        return replace(known, sha256=digest)


def fingerprint_of(settings: dict[str, Any], inputs: Sequence[InputFile], before: str | None = None) -> str:
    """The fingerprint of a stage: of what decides the output, and of the stage `before`, if there is one."""
    files = [[known.name, known.bytes] for known in inputs]
    return fingerprint([settings, files, *([] if before is None else [before])])


def has_grown(out: Folder, stages: Sequence[Stage], source: Source, settings: IngestSettings) -> bool:
    """Whether the input may have rows beyond those of the `stages`.

    That is so if files come after those of then, or if rows were added to the last one of a list of lines.
    Raises `UserError` if anything else is not as it was.
    """
    last = stages[-1]
    if stages[0].settings is None:
        raise _another(out, "it was not made by `clipstill ingest`")
    difference = first_difference(dict(stages[0].settings), settings.identity())
    if difference is not None:
        raise _another(out, difference)
    before, now = last.inputs, source.looks
    grown = _check_names(out, before, now, source)
    checked = [(place, known) for place, known in enumerate(before) if _looks_touched(out, known, now[place])]
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        stop = threading.Event()
        found = pool.map(lambda one: hash_input(source.inputs[one[0]], stop, one[1].bytes), checked)
        for (_, known), (_, digest) in zip(checked, found, strict=True):
            if digest != known.sha256:
                change = f"sha256 {str(known.sha256)[:16]}..., now {digest[:16]}..."
                raise _another(out, f"input {known.name} has changed ({change})")
    if grown and not _ends_a_line(source.inputs[len(before) - 1], before[-1].bytes or 0):
        raise _another(out, f"input {before[-1].name} has grown, and its last row of then was not ended by a line feed")
    if grown and _ends_within_quotes(out, stages):
        raise _another(
            out, f"input {before[-1].name} has grown, and a quote was open at its end: rows of then may go on now"
        )
    more = grown or len(now) > len(before)
    if more and not last.whole:
        raise UserError(
            "the list has grown, but what it was before is not planned yet",
            where=str(out),
            do="Run `clipstill ingest` with the list of then until it is complete, then with this one",
        )
    return more


def _check_names(out: Folder, before: Sequence[InputFile], now: Sequence[InputFile], source: Source) -> bool:
    """Whether the last file of then has grown. Raises `UserError` if one is not there, new among them, or otherwise
    of another size."""
    may_grow = source.grows and len(source.inputs) == len(source.paths)
    known = now[: len(before)]
    if [one.name for one in known] != [one.name for one in before] or (len(now) > len(before) and not may_grow):
        difference = _difference(_by_name(before), _by_name(now)) or "the inputs come in another order"
        raise _another(out, difference)
    for place, (old, new) in enumerate(zip(before, known, strict=True)):
        if old.bytes != new.bytes:
            longer = old.bytes is not None and new.bytes is not None and new.bytes > old.bytes
            lines = KINDS[source.kind].lines and not source.inputs[place].lower().endswith((".gz", ".bz2", ".zst"))
            if longer and lines and may_grow and place == len(before) - 1:
                return True
            raise _another(out, str(_difference(_by_name(before), _by_name(now))))
    return False


def is_as_it_was(known: InputFile, now: InputFile) -> bool:
    """Whether a file is beyond doubt the one of then, by what the file system says of it."""
    return known.modified is not None and replace(known, sha256=None) == replace(now, sha256=None)


def _looks_touched(out: Folder, known: InputFile, now: InputFile) -> bool:
    """Whether a file's bytes must be compared with the hash of then; refuses one that cannot be."""
    if is_as_it_was(known, now):
        return False
    if known.sha256 is None:
        if known.modified == now.modified:
            return False
        raise _another(out, f"input {known.name} was written to or copied while it was being planned")
    return True


def _ends_a_line(path: str, size: int) -> bool:
    with open_file(path) as file:
        file.seek(size - 1)
        return bool(file.read(1) == b"\n")


def _ends_within_quotes(out: Folder, stages: Sequence[Stage]) -> bool:
    """Whether the last rows are faulty since a quote was never closed: what follows may close it."""
    last = next(stage for stage in reversed(stages) if stage.shards)
    try:
        faults = read_rows(out, last, last.numbers[-1])["fault"].to_pylist()
    except UserError:
        return False  # They are planned again, and refused if they are others now.
    return any(fault.endswith(UNCLOSED) for fault in takewhile(bool, reversed(faults)))


def _another(out: Folder, difference: str) -> UserError:
    return UserError(
        f"this folder holds another dataset: {difference}",
        where=str(out),
        do="Write to another folder, or restore what was changed",
    )


def _difference(before: dict[str, InputFile], after: dict[str, InputFile]) -> str | None:
    for name in [*before, *after]:
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            return f"input {name} {'is new' if old is None else 'is not among the inputs any more'}"
        if old.bytes != new.bytes:
            return f"input {name} has changed ({old.bytes:,} bytes, now {new.bytes:,})"
    return None


def _by_name(inputs: Sequence[InputFile]) -> dict[str, InputFile]:
    """Input files by their names; of those that share one (in several folders), by its later occurrences too."""
    named: dict[str, InputFile] = {}
    for entry in inputs:
        name, number = entry.name, 2
        while name in named:
            name, number = f"{entry.name} ({number})", number + 1
        named[name] = entry
    return named
