"""A run's processes on a Ray cluster, through Ray Train: the same loop as under `torchrun`.

A worker that dies takes its group with it; the group is started again and goes on from the newest checkpoint. A signal
that asks the run to end comes to the process that started them, which tells them by a file in the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from distill.run_folder import Result, RunFiles, read_log
from distill.settings import RunSettings
from distill.training.interrupt import Interrupted, Signals
from distill.training.ranks import PATIENCE
from shards import UserError
from shards.progress import Meter
from shards.ray_session import RaySession, ray_session

log = logging.getLogger(__name__)

_STARTS = 3
"""How often the group is started without a step of progress in between."""
_LOOK_EVERY_S = 1.0
_ROOM_PATIENCE_S = 900
"""As that of `shards.ray_executor`."""


def train_on_ray(settings: RunSettings, processes: int | None = None, address: str | None = None) -> Result:
    """Train in `processes` workers, by default one a GPU of the cluster, or one; each has a GPU where there are any.

    `address` as in `shards.ray_session.ray_session`. `settings.out` is a folder that every node sees. Raises
    `UserError` as `train` does, or if the cluster has no room for that many; `Interrupted` likewise.
    """
    from ray.train import RunConfig, ScalingConfig  # noqa: PLC0415 - slow to import; the loop itself needs none of it
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415
    from ray.train.v2.api.exceptions import WorkerGroupError  # noqa: PLC0415

    files = RunFiles(Path(settings.out).resolve())
    settings = replace(settings, out=str(files.path))
    # What Ray Train has to say is its log; what goes wrong comes as an exception.
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_LOGGING", "0")
    with ray_session(cpus=max(os.cpu_count() or 1, processes or 1), address=address) as session:
        starts, reached = 0, _reached(files)
        files.asked.unlink(missing_ok=True)
        with _followed(files), Signals(speaks=True, then=lambda number: _ask(files, number)) as signals:
            while True:
                # Machines may have gone since the last start.
                gpus, cpus = _room(session)
                if starts and processes is not None:
                    gpus, cpus = _awaited(session, processes, signals)
                wanted = processes or gpus or 1
                room, kind = (gpus, "GPUs") if gpus else (cpus, "cores")
                if wanted > room:
                    raise UserError(
                        f"{wanted} processes were asked for, the cluster has {room} {kind}",
                        where="--processes",
                        do="Ask for fewer",
                    )
                trainer = TorchTrainer(
                    _work,
                    train_loop_config={"settings": settings},
                    scaling_config=ScalingConfig(
                        num_workers=wanted,
                        use_gpu=gpus > 0,
                        # Cores are not shared out where there are GPUs: those may stand on other machines.
                        resources_per_worker={"CPU": 1, "GPU": 1} if gpus else {"CPU": max(1, cpus // wanted)},
                    ),
                    torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
                    run_config=RunConfig(name=files.ray.name, storage_path=str(files.path)),
                )
                try:
                    _apart(trainer.fit)
                    break
                except WorkerGroupError as error:
                    for failure in error.worker_failures.values():
                        if isinstance(cause := getattr(failure, "cause", failure), UserError):
                            raise cause from None
                    starts = 1 if _reached(files) > reached else starts + 1
                    reached = _reached(files)
                    if starts == _STARTS:
                        raise
                    log.warning(
                        "a worker was lost after step %d; starting again (%s)", reached, str(error).splitlines()[0]
                    )
    files.asked.unlink(missing_ok=True)
    done = files.ended()
    if done is None and signals.number:
        raise Interrupted(read_log(files.events)[-1]["text"], signals.number)
    assert done is not None, "a run that has ended says so"
    speeds = [line["measured"]["samples_per_second"] for line in read_log(files.log) if "measured" in line]
    return Result(str(files.model), done["steps"], done["loss"], speeds[-1] if speeds else None, done["best"])


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


def _apart(work: Callable[[], object]) -> None:
    """Call it in another thread: Ray Train takes Ctrl-C for itself in the main one, and ends the workers by it."""
    outcome: Future[object] = Future()

    def call() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    outcome.result()


def _room(session: RaySession) -> tuple[int, int]:
    """GPUs and cores of the machines that are there, and stay."""
    machines = [machine.resources for machine in session.machines() if not machine.leaves]
    gpus, cpus = (int(sum(machine.get(kind, 0) for machine in machines)) for kind in ("GPU", "CPU"))
    return gpus, cpus


def _awaited(session: RaySession, processes: int, signals: Signals) -> tuple[int, int]:
    """The same, once it is room for as many processes as a run began with; or what there is after a while."""
    until = time.monotonic() + _ROOM_PATIENCE_S
    told = False
    while True:
        gpus, cpus = _room(session)
        if (gpus or cpus) >= processes or time.monotonic() >= until:
            return gpus, cpus
        if signals.number:
            raise Interrupted(
                "no machine had joined; the same command goes on from the newest checkpoint", signals.number
            )
        if not told:
            log.warning(
                "%d processes have no room now: waiting for a machine to join, %d minutes at most",
                processes,
                _ROOM_PATIENCE_S // 60,
            )
            told = True
        time.sleep(_LOOK_EVERY_S)


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
