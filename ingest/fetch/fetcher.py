"""Fetch many URLs at once: limits per host and overall, one deadline a URL, further tries for what may pass.

`transfer.py` handles a single answer; this file decides when each request begins. Before a request its URL waits for
the site's robots.txt (if that is asked for), for the address of its host, and for a free connection to its host. The
URL's clock starts with its first request. It is stopped during those waits, also after a redirect and before a further
try, and while the caller takes no results.
"""

from __future__ import annotations

import heapq
import itertools
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ingest.fetch.addresses import AddressRule, BadUrlError, Target, mend, needs_no_lookup
from ingest.fetch.answer import Answer
from ingest.fetch.circuit_breaker import CircuitBreakers
from ingest.fetch.hosts import HostQueues
from ingest.fetch.limits import CRAMPED_S, CRAMPED_WAIT_S, check_patience, make_room
from ingest.fetch.names import Name, Names
from ingest.fetch.opt_out import ROBOTS_BYTES, agent_name
from ingest.fetch.robots_gates import RobotsGates
from ingest.fetch.transfer import Quirk, Transfer, TransferResult
from ingest.fetch.transfers import Transfers
from ingest.settings import PER_HOST, NetworkSettings
from shards import UserError, seed64

T = TypeVar("T")

_AHEAD = 16
"""So many times as many URLs as connections may wait, so that one slow host does not hold up the others, nor a slow
resolver."""
_LATE = TransferResult("timeout", "no whole answer in time")
_AVOIDED = TransferResult("timeout", "no connection in time, as so often before: not waited for again")


@dataclass(eq=False, slots=True)
class _Job(Generic[T]):
    """A URL on its way. Those with `robots_of` fetch the robots.txt of that origin, and have no ticket."""

    ticket: T | None
    target: Target
    host: str
    robots_of: str | None = None
    name: Name | None = None
    clock: float | None = None
    queued: float = 0.0
    began: float = 0.0
    started: float = 0.0
    attempts: int = 0
    redirects: int = 0
    quirk: Quirk | None = None
    failure: TransferResult = _LATE

    @property
    def place(self) -> str:
        """Where it connects to, whatever it is called."""
        where = ",".join(self.name.addresses) if self.name else self.target.name
        return f"{where} {self.target.port}"


class Fetcher(Generic[T]):
    """Fetches URLs on the caller's thread, while it is in `poll`. Only `wake` may be called from other threads.

    `max_bytes` is the most that a body may have after decoding. Raises `UserError` for settings that cannot be used.
    Where this machine allows fewer open files than the settings need, there are fewer connections.
    """

    def __init__(self, settings: NetworkSettings, max_bytes: int) -> None:
        self._settings, self._max_bytes = settings, max_bytes
        self._rule = AddressRule(settings.allow_addresses)
        if settings.ca_file is not None:
            _check_certificates(settings.ca_file)
        room = make_room(settings)
        self._most = self._connections = room.connections
        self._transfers = Transfers(room.connections)
        self._names = Names(self._tell, settings.deadline, room.lookups)
        # One at once: what it reads is not to be looked for when there may be no file left.
        self._idle = [Transfer(settings, self._rule)]
        self._jobs: dict[Transfer, _Job[T]] = {}
        self._hosts: HostQueues[_Job[T]] = HostQueues(settings.per_host or PER_HOST, settings.per_host_rate)
        self._breakers = CircuitBreakers(settings.connect_timeout)
        self._unnamed: dict[str, list[_Job[T]]] = {}
        self._later: list[tuple[float, int, _Job[T]]] = []
        self._count = itertools.count()
        self._gates: RobotsGates[_Job[T]] = RobotsGates(agent_name(settings.user_agent))
        self._answers: list[tuple[T, Answer]] = []
        # Since when nothing came through for want of room, and when that was last noticed.
        self._cramped: tuple[float, float] | None = None
        self._woken = False
        self.pending = 0
        """URLs that have been started and not yet returned."""

    @property
    def room(self) -> int:
        """How many more URLs it makes sense to start now. More may be; they wait."""
        return max(0, min(self._connections - len(self._jobs), _AHEAD * self._settings.connections - self.pending))

    def start(self, ticket: T, url: str) -> None:
        """Have `url` fetched, whatever it is; its answer will come with `ticket`."""
        self.pending += 1
        try:
            target = mend(url)
        except BadUrlError as error:
            self._answers.append((ticket, Answer("bad_url", str(error), None, None, time.time(), 0.0, 0)))
            return
        self._admit(_Job(ticket, target, target.host))

    def drop(self, matches: Callable[[T], bool]) -> None:
        """Have no answers any more for the tickets that match."""

        def dropped(job: _Job[T]) -> bool:
            return job.ticket is not None and matches(job.ticket)

        count, now = 0, time.monotonic()
        for ticket, answer in [entry for entry in self._answers if matches(entry[0])]:
            self._answers.remove((ticket, answer))
            answer.discard()
            count += 1
        for transfer, job in [(transfer, job) for transfer, job in self._jobs.items() if dropped(job)]:
            del self._jobs[transfer]
            self._transfers.drop(transfer)
            self._idle.append(transfer)
            self._hosts.ended(job.target.host, now)
            count += 1
        count += self._hosts.drop(dropped) + self._gates.drop(dropped)
        for jobs in self._unnamed.values():
            before = len(jobs)
            jobs[:] = [job for job in jobs if not dropped(job)]
            count += before - len(jobs)
        before = len(self._later)
        self._later = [entry for entry in self._later if not dropped(entry[2])]
        heapq.heapify(self._later)
        self.pending -= count + before - len(self._later)

    def forget_failures(self) -> None:
        """Ask again for names without an answer, and hosts that took no connection."""
        self._names.forget_failures()
        self._breakers.forget()

    def poll(self, seconds: float, *, launch: bool = True) -> list[tuple[T, Answer]]:
        """Drive the transfers until one is answered, `wake` is called, or `seconds` are over: tickets and answers.

        Without `launch` no request begins, not even a further try; what is under way goes on.

        Raises `OSError`, `MemoryError` or `UserError` (the disk of temporary files is full, or this machine has had no
        file or port for any connection for a while); that says nothing about the URLs.
        """
        until = time.monotonic() + seconds
        while True:
            self._take_names()
            if launch:
                self._launch()
            dues = [until, self._names.due or until]
            if launch:
                dues.append(self._later[0][0] if self._later else until)
            if launch and len(self._jobs) < self._connections:
                dues.append(self._hosts.due or until)
            ended = self._transfers.drive(0.0 if self._answers else min(dues) - time.monotonic())
            for transfer, code in ended:
                self._conclude(transfer, code)
            if self._answers or self._woken or time.monotonic() >= until:
                break
        self._woken = False
        if launch:
            self._launch()
        answers, self._answers = self._answers, []
        self.pending -= len(answers)
        return answers

    def wake(self) -> None:
        """End a `poll` early. Any thread may call it."""
        self._woken = True
        self._tell()

    def _tell(self) -> None:
        self._transfers.wake()

    def close(self) -> None:
        """Drop what is under way and close all connections."""
        self._names.close()
        self._transfers.close()
        for transfer in [*self._idle, *self._jobs]:
            transfer.handle.close()
        for _, answer in self._answers:
            answer.discard()

    def _admit(self, job: _Job[T]) -> None:
        """Queue a job whose site's robots.txt allows it; where that is not known yet, the job waits for it."""
        origin = job.target.origin
        asks = self._settings.robots_txt and job.robots_of is None
        allowed = self._gates.allows(origin, job.target.url) if asks else True
        if allowed:
            self._find(job)
        elif allowed is not None:
            self._finish(job, TransferResult("robots_txt", "not allowed by robots.txt"))
        elif self._gates.wait(origin, job):
            target = mend(f"{origin}/robots.txt")
            self._find(_Job(None, target, target.host, robots_of=origin))

    def _find(self, job: _Job[T]) -> None:
        """Queue a job at its host once the name is looked up; a proxy does that by itself."""
        job.name = None
        name = job.target.name
        if self._settings.proxy is not None or needs_no_lookup(name):
            self._hosts.add(job.target.host, job, time.monotonic())
        elif name in self._unnamed:
            self._unnamed[name].append(job)
        elif (known := self._names.get(name)) is not None:
            self._named(job, known)
        else:
            self._unnamed[name] = [job]
            self._names.ask(name)

    def _named(self, job: _Job[T], name: Name) -> None:
        if name.failure is not None:
            job.attempts = max(1, job.attempts)
            self._finish(job, TransferResult("dns", name.failure))
            return
        job.name = name
        self._hosts.add(job.target.host, job, time.monotonic())

    def _take_names(self) -> None:
        for name, known in self._names.answered():
            for job in self._unnamed.pop(name, ()):
                self._named(job, known)

    def _launch(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            due, _, job = heapq.heappop(self._later)
            job.queued = due
            self._admit(job)
        while len(self._jobs) < self._connections and (next_one := self._hosts.next(now)) is not None:
            self._begin(next_one, now)

    def _begin(self, job: _Job[T], now: float) -> None:
        if job.clock is None:
            job.clock, job.started, job.attempts = now, time.time(), 1
        else:
            job.clock += now - job.queued
        left = job.clock + self._settings.deadline - now
        avoided = self._breakers.refuses(job.place, now)
        if left <= 0 or avoided:
            self._hosts.ended(job.target.host, now)
            self._finish(job, _AVOIDED if avoided else job.failure)
            return
        job.began = now
        transfer = self._idle.pop() if self._idle else Transfer(self._settings, self._rule)
        image = job.robots_of is None
        resolved = f"{job.target.name}:{job.target.port}:{','.join(job.name.addresses)}" if job.name else None
        transfer.begin(
            job.target.url,
            left,
            self._max_bytes if image else 2 * ROBOTS_BYTES,
            image=image,
            resolved=resolved,
            quirk=job.quirk,
        )
        self._jobs[transfer] = job
        self._transfers.add(transfer)

    def _conclude(self, transfer: Transfer, code: int) -> None:
        job = self._jobs.pop(transfer)
        self._idle.append(transfer)
        now = time.monotonic()
        self._hosts.ended(job.target.host, now)
        result = transfer.result(code)
        if result.no_room:
            transfer.discard()
            self._wait_for_room(job, now)
            return
        if self._cramped:
            self._relax(now)
        if result.silent:
            self._breakers.timed_out(job.place, job.began, now)
        elif transfer.connected:
            self._breakers.connected(job.place, now)
        if result.redirect is not None:
            self._redirect(job, result.redirect)
        elif result.quirk is not None:
            job.quirk, job.queued = result.quirk, now
            self._admit(job)
        elif not (result.may_pass and self._again(job, result)):
            self._finish(job, result, transfer)
        transfer.discard()

    def _wait_for_room(self, job: _Job[T], now: float) -> None:
        """This machine is full: fewer connections from now on, and the same try again once others have ended."""
        self._connections = max(1, min(self._connections, len(self._jobs)))
        first, _ = self._cramped or (now, now)
        self._cramped = first, now
        check_patience(now - first)
        if not self._jobs:
            # What is left are connections that nobody uses.
            self._transfers.close()
            self._transfers = Transfers(self._connections)
        assert job.clock is not None
        # Its clock stands still until then.
        due = now + CRAMPED_WAIT_S
        job.clock += due - job.began
        heapq.heappush(self._later, (due, next(self._count), job))

    def _relax(self, now: float) -> None:
        """Something came through: one connection more, if it is a while that there was no room."""
        assert self._cramped is not None
        _, last = self._cramped
        self._cramped = now, last
        if now - last > CRAMPED_S:
            self._connections += 1
            if self._connections >= self._most:
                self._connections, self._cramped = self._most, None

    def _redirect(self, job: _Job[T], location: bytes) -> None:
        if job.redirects == self._settings.max_redirects:
            self._finish(job, TransferResult("protocol", "too many redirects"))
            return
        try:
            job.target = job.target.follow(location)
        except BadUrlError as error:
            self._finish(job, TransferResult("protocol", f"a redirect elsewhere: {error}"))
            return
        job.redirects += 1
        job.quirk = None
        job.queued = time.monotonic()
        self._admit(job)

    def _again(self, job: _Job[T], result: TransferResult) -> bool:
        """Try later, if the settings and the time allow it."""
        assert job.clock is not None
        if job.attempts > self._settings.retries:
            return False
        # From a quarter to three quarters of a second, then twice as long each time; the same in every run.
        wait = 0.5 * 2 ** (job.attempts - 1) * (0.5 + seed64(job.target.url, job.attempts) / 2**64)
        due = time.monotonic() + max(wait, result.wait)
        if due >= job.clock + self._settings.deadline:
            return False
        job.attempts += 1
        job.failure = result
        heapq.heappush(self._later, (due, next(self._count), job))
        return True

    def _finish(self, job: _Job[T], result: TransferResult, transfer: Transfer | None = None) -> None:
        if job.robots_of is not None:
            waiting, cause = self._gates.open(job.robots_of, result, transfer)
            for other in waiting:
                if cause is None:
                    self._admit(other)
                else:
                    self._finish(other, TransferResult(cause, f"robots.txt could not be read: {result.message}"))
            return
        now = time.monotonic()
        whole = transfer if result.cause is None else None
        answer = Answer(
            error_class=result.cause,
            error_message=result.message,
            host=job.host,
            size=whole.size if whole else None,
            started=job.started or time.time(),
            seconds=now - (job.clock or now),
            attempts=job.attempts,
            _body=whole.take() if whole else None,
        )
        assert job.ticket is not None
        self._answers.append((job.ticket, answer))


def _check_certificates(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"no certificates can be read ({error})", where=path, do="Name a file of certificates in PEM"
        ) from None
