"""A run's processes on a Ray cluster, through Ray Train: the same loop as under `torchrun`.

A worker that dies takes its group with it; the group is started again and goes on from the newest checkpoint, and so it
is where a Ray that was started here dies itself. A signal that asks the run to end comes to the process that started
them, which tells them by a file in the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.run_folder import Result, RunFiles, read_log
from distill.settings import RunSettings
from distill.training.interrupt import Interrupted, Signals
from distill.training.ranks import PATIENCE
from shards import UserError
from shards.errors import one_line
from shards.progress import Meter
from shards.ray_machines import Needs
from shards.ray_session import RayLostError, RaySession, may_come, ray_session
from shards.ray_worker import cause_of

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

log = logging.getLogger(__name__)

_STARTS = 3
"""How often the group is started without a step of progress in between."""
_LOOK_EVERY_S = 1.0
_ROOM_PATIENCE_S = 900
"""As that of `shards.ray_executor`."""


def train_on_ray(settings: RunSettings, processes: int | None = None, address: str | None = None) -> Result:
    """Train in `processes` workers, by default one a GPU of the cluster, or one; each has a GPU where there are any.

    `address` as in `shards.ray_session.ray_session`. `settings.out` is a folder that every node sees. Raises
    `UserError` as `train` does, or if the cluster is lost or has no room for that many; `Interrupted` likewise.
    """
    files = RunFiles(Path(settings.out).resolve())
    settings = replace(settings, out=str(files.path))
    # What Ray Train has to say is its log; what goes wrong comes as an exception.
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_LOGGING", "0")
    with ray_session(cpus=max(os.cpu_count() or 1, processes or 1), address=address) as session:
        files.asked.unlink(missing_ok=True)
        with _followed(files), Signals(speaks=True, then=lambda number: _ask(files, number)) as signals:
            _Group(session, settings, files, processes, signals).train()
    files.asked.unlink(missing_ok=True)
    done = files.ended()
    if done is None and signals.number:
        raise Interrupted(read_log(files.events)[-1]["text"], signals.number)
    assert done is not None, "a run that has ended says so"
    speeds = [line["measured"]["samples_per_second"] for line in read_log(files.log) if "measured" in line]
    return Result(str(files.model), done["steps"], done["loss"], speeds[-1] if speeds else None, done["best"])


class _Group:
    """The processes of a run, started again from the newest checkpoint whenever one of them is lost."""

    def __init__(
        self, session: RaySession, settings: RunSettings, files: RunFiles, processes: int | None, signals: Signals
    ) -> None:
        self._session, self._settings, self._files, self._signals = session, settings, files, signals
        self._processes = processes
        self._on_gpus: bool | None = None
        self._losses, self._reached = 0, _reached(files)
        self._no_room_since: float | None = None

    def train(self) -> None:
        """To the end of the run, or until it was asked to end. Raises as `train_on_ray` does."""
        while True:
            try:
                if self._start():
                    return
            except RayLostError as lost:
                self._count_loss(f"Ray has died here ({lost})")
                self._session.renew()

    def _start(self) -> bool:
        """Start the processes once; whether they came to their end, and were not lost."""
        from ray.exceptions import RayError  # noqa: PLC0415 - slow to import; the loop itself needs none of it
        from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError  # noqa: PLC0415

        wanted, needs = self._shape()
        try:
            self._wait_for(_apart(self._trainer(wanted, needs).fit), wanted, needs)
        except WorkerGroupError as error:
            failures = list(error.worker_failures.values())
            for failure in failures:
                if isinstance(cause := getattr(failure, "cause", failure), UserError):
                    raise cause from None
            deaths = [died for failure in failures if (died := getattr(failure, "health_check_failure", None))]
            reason = cause_of(deaths[0])[0] if deaths else one_line(str(failures[0]))
            self._count_loss(f"a worker was lost ({reason})", None if deaths else error)
        except ControllerError as error:
            if not type(error.controller_failure).__name__.startswith("WorkerGroupStartup"):
                raise
            # Others have the room, or a machine went at this moment.
            self._wait_for_room(wanted, needs)
        except RayError as error:
            self._session.machines()  # knows better
            self._count_loss(f"Ray Train was lost ({cause_of(error)[0]})")
            # What its controller had reserved is free once this process has left.
            self._session.renew()
        else:
            return True
        return False

    def _shape(self) -> tuple[int, Needs]:
        """How many processes, and what each needs: a GPU, or an even share of the cores, on a machine that stays.

        Where a cluster that was joined has no room for them its autoscaler shall see what they need.
        """
        machines = self._session.machines()
        if self._on_gpus is None:
            self._on_gpus = Needs(gpus=1).room(machines) > 0 or may_come("GPU")
        # Cores are not shared out where there are GPUs: those may stand on other machines.
        needs = Needs(gpus=int(self._on_gpus))
        room = needs.room(machines)
        wanted = self._processes or (max(1, room) if self._on_gpus else 1)
        if wanted > room:
            if self._session.address is None:
                raise _refusal(wanted, needs, room)
            self._wait_for_room(wanted, needs)
        elif not self._on_gpus:
            shares = (Needs(cpus=cpus) for cpus in range(room // wanted, 0, -1))
            needs = next(share for share in shares if share.room(machines) >= wanted)
        return wanted, needs

    def _trainer(self, wanted: int, needs: Needs) -> TorchTrainer:
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
        from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

        resources = {"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {})
        return TorchTrainer(
            _work,
            train_loop_config={"settings": self._settings},
            scaling_config=ScalingConfig(num_workers=wanted, use_gpu=needs.gpus > 0, resources_per_worker=resources),
            torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
            run_config=RunConfig(
                name=self._files.ray.name,
                storage_path=str(self._files.path),
                # Ray Train itself would try for ever to find room, and say nothing.
                failure_config=FailureConfig(controller_failure_limit=0),
            ),
        )

    def _wait_for(self, end: Future[object], wanted: int, needs: Needs) -> None:
        """Return or raise what came of a start. Raises by itself where Ray has died: nobody might ever answer."""
        while not wait([end], timeout=_LOOK_EVERY_S).done:
            # Those on a machine that is to leave are asked as well.
            machines = [replace(machine, leaves=False) for machine in self._session.machines()]
            if self._signals.number and needs.room(machines) < wanted:
                # There is nobody to be asked.
                raise _ended_without_room(self._signals.number)
        end.result()

    def _wait_for_room(self, wanted: int, needs: Needs) -> None:
        """Say once that there is none. Raises `UserError` where there was none for too long."""
        if self._signals.number:
            raise _ended_without_room(self._signals.number)
        now, room = time.monotonic(), needs.room(self._session.machines())
        if self._no_room_since is None:
            self._no_room_since = now
            told = _refusal(wanted, needs, room).problem
            log.warning("%s: waiting for a machine to join, %d minutes at most", told, _ROOM_PATIENCE_S // 60)
        elif now - self._no_room_since >= _ROOM_PATIENCE_S:
            raise _refusal(wanted, needs, room)

    def _count_loss(self, what: str, mistake: Exception | None = None) -> None:
        """Say it. The third time without a step in between raises the `mistake` that was made, else `UserError`."""
        reached = _reached(self._files)
        self._losses = 1 if reached > self._reached else self._losses + 1
        self._reached, self._no_room_since = reached, None
        if self._losses == _STARTS:
            raise mistake or UserError(
                f"{what} {_STARTS} times in a row after step {reached}",
                where=str(self._files.path),
                do="See what its machine says of it (out of memory?), then run the same command again",
            )
        log.warning("%s after step %d; starting again", what, reached)


def _refusal(wanted: int, needs: Needs, room: int) -> UserError:
    kind = "GPUs" if needs.gpus else "cores"
    used = "" if room < wanted else " that others use"
    return UserError(
        f"{wanted} processes were asked for, the cluster has {room} {kind}{used}",
        where="--processes",
        do="Ask for fewer, or join a larger cluster with --ray-address",
    )


def _ended_without_room(number: int) -> Interrupted:
    return Interrupted("no machine had joined; the same command goes on from the newest checkpoint", number)


def _work(config: dict[str, RunSettings]) -> None:
    # Not above: whoever starts the workers, and Ray's controller, would load open_clip only to look at this file.
    from distill.training.train import train  # noqa: PLC0415

    settings = config["settings"]
    # Ended early it is no failure of Ray's: whoever was asked to end it finds no `done.json`.
    with contextlib.suppress(Interrupted):
        train(settings, RunFiles(settings.out).asked)


def _ask(files: RunFiles, number: int) -> None:
    """Tell the workers, on whatever machines, through the folder that all of them see."""
    files.path.mkdir(parents=True, exist_ok=True)
    temporary = files.asked.with_suffix(".tmp")
    temporary.write_text(str(number))
    temporary.replace(files.asked)


def _apart(work: Callable[[], object]) -> Future[object]:
    """Call it in another thread: Ray Train takes Ctrl-C for itself in the main one, and ends the workers by it."""
    outcome: Future[object] = Future()

    def call() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return outcome


def _reached(files: RunFiles) -> int:
    return max((line["step"] for line in read_log(files.log)), default=0)


@contextlib.contextmanager
def _followed(files: RunFiles) -> Iterator[None]:
    """Draw the progress of a run in other processes, from its log."""
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(files, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def _follow(files: RunFiles, ended: threading.Event) -> None:
    while not files.settings.exists():
        if ended.wait(_LOOK_EVERY_S):
            return
    body = json.loads(files.settings.read_text())
    total, size = body["facts"]["steps"], body["settings"]["batch_size"]
    with Meter(f"distill {files.path.name}", total, unit="steps", done=min(_reached(files), total)) as meter:
        while not ended.wait(_LOOK_EVERY_S):
            lines = [line for line in read_log(files.log) if "loss" in line]
            if lines and lines[-1]["step"] > meter.done:
                steps = lines[-1]["step"] - meter.done
                meter.advance(steps, items=steps * size, note=f"loss {lines[-1]['loss']:.3f}")
