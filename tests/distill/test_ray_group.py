"""Whom a group of processes on Ray waits for when the run was told to end."""

from __future__ import annotations

import signal
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from distill.training import ray_launcher
from distill.training.interrupt import Interrupted
from shards.ray_machines import Machine, Needs


def wait_beside(machines: list[Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of a run that got SIGTERM, which end after the machines were looked at twice."""
    monkeypatch.setattr(ray_launcher, "_LOOK_EVERY_S", 0.01)
    end, looks = Future[object](), iter([False, True])

    def look() -> list[Machine]:
        if next(looks):
            end.set_result(None)
        return machines

    group = object.__new__(ray_launcher._Group)
    monkeypatch.setattr(group, "_session", SimpleNamespace(machines=look), raising=False)
    monkeypatch.setattr(group, "_signals", SimpleNamespace(number=signal.SIGTERM), raising=False)
    group._wait_for(end, 2, Needs(cpus=1))


def test_those_on_a_machine_that_is_to_leave_may_write_their_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_beside([Machine("a", {"CPU": 1}, leaves=True), Machine("b", {"CPU": 1})], monkeypatch)


def test_nobody_waits_for_processes_that_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted, match="no machine had joined"):
        wait_beside([Machine("b", {"CPU": 1})], monkeypatch)
