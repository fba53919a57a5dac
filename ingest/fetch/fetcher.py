"""Fetch many URLs at once: limits per host and overall, one deadline a URL, further tries for what may pass.

Everything about a single answer is in `transfer.py`. Here is the order of things: a URL waits for its site's
robots.txt (if that is asked for) and for a place at its host. Its clock runs from its first request on, except while it
waits for those, or for a caller who takes nothing more, again after a redirect or before a further try.
"""

from __future__ import annotations

import heapq
import itertools
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from typing import IO

from ingest.fetch.addresses import AddressRule, BadUrlError, Target, mend
from ingest.fetch.opt_out import ROBOTS_BYTES, Robots, RobotsCache, agent_name
from ingest.fetch.transfer import Outcome, Transfer, Transfers
from ingest.settings import NetworkSettings
from shards import UserError, seed64

_AHEAD = 8
"""So many times as many URLs as connections may wait, so that one slow host does not hold up the others."""


_LATE = Outcome("timeout", "no whole answer in time")


@dataclass(frozen=True)
class Answer:
    """A body, or why there is none: a cause of the ledger's with a message that is the same in every run.

    `host` is the URL's as given, `size` the body's in bytes after decoding, `started` in seconds since 1970,
    `seconds` what the clock showed at the end, `attempts` how many tries there were (redirects are part of a try).
    """

    error_class: str | None
    error_message: str | None
    host: str | None
    size: int | None
    started: float
    seconds: float
    attempts: int
    _body: IO[bytes] | None = field(default=None, repr=False, compare=False)

    def read(self) -> bytes:
        """The body, once; beyond 256 KiB it lay in a file until now. Only where there is no error."""
        assert self.error_class is None
        if self._body is None:
            return b""
        with self._body as body:
            body.seek(0)
            return body.read()


@dataclass(eq=False, slots=True)
class _Job:
    """A URL on its way. Those with `robots_of` fetch the robots.txt of that origin, on nobody's ticket."""

    ticket: int
    target: Target
    host: str
    robots_of: str | None = None
    clock: float | None = None
    queued: float = 0.0
    started: float = 0.0
    attempts: int = 0
    redirects: int = 0
    failure: Outcome = _LATE


@dataclass(eq=False, slots=True)
class _Host:
    waiting: deque[_Job] = field(default_factory=deque)
    active: int = 0


class Fetcher:
    """Fetches URLs on the caller's thread, while it is in `poll`. Only `wake` may be called from other threads.

    `max_bytes` is the most that a body may have after decoding. Raises `UserError` for settings that cannot be used.
    """

    def __init__(self, settings: NetworkSettings, max_bytes: int) -> None:
        self._settings, self._max_bytes = settings, max_bytes
        self._agent = agent_name(settings.user_agent)
        self._rule = AddressRule(settings.allow_addresses)
        if settings.ca_file is not None:
            _check_certificates(settings.ca_file)
        self._transfers = Transfers(settings.connections)
        self._idle: list[Transfer] = []
        self._jobs: dict[Transfer, _Job] = {}
        self._hosts: dict[str, _Host] = {}
        # Those with something waiting and room for it, the next one first.
        self._ready: dict[str, None] = {}
        self._later: list[tuple[float, int, _Job]] = []
        self._count = itertools.count()
        self._robots = RobotsCache()
        self._gates: dict[str, list[_Job]] = {}
        self._answers: list[tuple[int, Answer]] = []
        self.pending = 0
        """URLs that have been started and not yet returned."""

    @property
    def room(self) -> int:
        """How many more URLs it makes sense to start now. More may be; they wait."""
        connections = self._settings.connections
        return max(0, min(connections - len(self._jobs), _AHEAD * connections - self.pending))

    def start(self, ticket: int, url: str) -> None:
        """Have `url` fetched, whatever it is; its answer will come with `ticket`."""
        self.pending += 1
        try:
            target = mend(url)
        except BadUrlError as error:
            self._answers.append((ticket, Answer("bad_url", str(error), None, None, time.time(), 0.0, 0)))
            return
        self._admit(_Job(ticket, target, target.host))

    def poll(self, seconds: float, *, launch: bool = True) -> list[tuple[int, Answer]]:
        """Drive the transfers until one is answered, `wake` is called, or `seconds` are over: tickets and answers.

        Without `launch` no request begins, not even a further try; what is under way goes on.

        Raises `OSError`, `MemoryError` or (the disk of temporary files is full) `UserError` if this machine has no
        room for files, sockets or bodies; that says nothing about the URLs.
        """
        until = time.monotonic() + seconds
        while True:
            if launch:
                self._launch()
            wake_at = min(until, self._later[0][0]) if launch and self._later else until
            ended, woken = self._transfers.drive(0.0 if self._answers else wake_at - time.monotonic())
            for transfer, code in ended:
                self._conclude(transfer, code)
            if self._answers or woken or time.monotonic() >= until:
                break
        if launch:
            self._launch()
        answers, self._answers = self._answers, []
        self.pending -= len(answers)
        return answers

    def wake(self) -> None:
        """End a `poll` early. Any thread may call it."""
        self._transfers.wake()

    def close(self) -> None:
        """Drop what is under way and close all connections."""
        self._transfers.close()
        for transfer in [*self._idle, *self._jobs]:
            transfer.handle.close()

    def _admit(self, job: _Job) -> None:
        """Queue a job whose site's robots.txt allows it; where that is not known yet, the job waits for it."""
        if not self._settings.robots_txt or job.robots_of is not None:
            self._queue(job)
            return
        origin = job.target.origin
        robots = self._robots.get(origin)
        if robots is None:
            if origin not in self._gates:
                target = mend(f"{origin}/robots.txt")
                self._queue(_Job(-1, target, target.host, robots_of=origin))
            self._gates.setdefault(origin, []).append(job)
        elif robots.allows(job.target.url):
            self._queue(job)
        else:
            self._finish(job, Outcome("robots_txt", "not allowed by robots.txt"))

    def _queue(self, job: _Job) -> None:
        name = job.target.host
        host = self._hosts.setdefault(name, _Host())
        host.waiting.append(job)
        if host.active < self._settings.per_host:
            self._ready[name] = None

    def _launch(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            due, _, job = heapq.heappop(self._later)
            job.queued = due
            self._admit(job)
        while self._ready and len(self._jobs) < self._settings.connections:
            name = next(iter(self._ready))
            del self._ready[name]
            host = self._hosts[name]
            self._begin(host.waiting.popleft(), host)
            self._settle(name, host)

    def _begin(self, job: _Job, host: _Host) -> None:
        now = time.monotonic()
        if job.clock is None:
            job.clock, job.started, job.attempts = now, time.time(), 1
        else:
            job.clock += now - job.queued
        left = job.clock + self._settings.deadline - now
        if left <= 0:
            self._finish(job, job.failure)
            return
        host.active += 1
        transfer = self._idle.pop() if self._idle else Transfer(self._settings, self._rule)
        image = job.robots_of is None
        transfer.begin(job.target.url, left, self._max_bytes if image else 2 * ROBOTS_BYTES, image=image)
        self._jobs[transfer] = job
        self._transfers.add(transfer)

    def _settle(self, name: str, host: _Host) -> None:
        """After a change: a host is ready, full, or forgotten."""
        if host.waiting:
            if host.active < self._settings.per_host:
                self._ready[name] = None
        elif not host.active:
            del self._hosts[name]

    def _conclude(self, transfer: Transfer, code: int) -> None:
        job = self._jobs.pop(transfer)
        self._idle.append(transfer)
        host = self._hosts[job.target.host]
        host.active -= 1
        self._settle(job.target.host, host)
        outcome = transfer.outcome(code)
        if outcome.redirect is not None:
            self._redirect(job, outcome.redirect)
        elif not (outcome.may_pass and self._again(job, outcome)):
            self._finish(job, outcome, transfer)
        transfer.discard()

    def _redirect(self, job: _Job, location: bytes) -> None:
        if job.redirects == self._settings.max_redirects:
            self._finish(job, Outcome("protocol", "too many redirects"))
            return
        try:
            job.target = job.target.follow(location)
        except BadUrlError as error:
            self._finish(job, Outcome("protocol", f"a redirect elsewhere: {error}"))
            return
        job.redirects += 1
        job.queued = time.monotonic()
        self._admit(job)

    def _again(self, job: _Job, outcome: Outcome) -> bool:
        """Try later, if the settings and the time allow it."""
        assert job.clock is not None
        if job.attempts > self._settings.retries:
            return False
        # From a quarter to three quarters of a second, then twice as long each time; the same in every run.
        wait = 0.5 * 2 ** (job.attempts - 1) * (0.5 + seed64(job.target.url, job.attempts) / 2**64)
        due = time.monotonic() + max(wait, outcome.wait)
        if due >= job.clock + self._settings.deadline:
            return False
        job.attempts += 1
        job.failure = outcome
        heapq.heappush(self._later, (due, next(self._count), job))
        return True

    def _finish(self, job: _Job, outcome: Outcome, transfer: Transfer | None = None) -> None:
        if job.robots_of is not None:
            self._open_gate(job.robots_of, outcome, transfer)
            return
        now = time.monotonic()
        whole = transfer if outcome.cause is None else None
        answer = Answer(
            error_class=outcome.cause,
            error_message=outcome.message,
            host=job.host,
            size=whole.size if whole else None,
            started=job.started or time.time(),
            seconds=now - (job.clock or now),
            attempts=job.attempts,
            _body=whole.take() if whole else None,
        )
        self._answers.append((job.ticket, answer))

    def _open_gate(self, origin: str, outcome: Outcome, transfer: Transfer | None) -> None:
        """As RFC 9309 has it: no robots.txt allows everything, a server in trouble nothing; a long one is cut.

        That one could not be read is nothing to remember: who comes later asks again.
        """
        text, cause = b"", outcome.cause
        if transfer and cause in {None, "too_large"}:
            body = transfer.take()
            if body is not None:
                with body:
                    body.seek(0)
                    text = body.read()
            cause = None
        if cause is not None and cause.startswith("http_") and not cause.startswith("http_5"):
            cause = None
        waiting = self._gates.pop(origin)
        if cause is None:
            self._robots.put(origin, Robots(text, self._agent))
            for job in waiting:
                self._admit(job)
            return
        for job in waiting:
            self._finish(job, Outcome(cause, f"robots.txt could not be read: {outcome.message}"))


def _check_certificates(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"no certificates can be read ({error})", where=path, do="Name a file of certificates in PEM"
        ) from None
