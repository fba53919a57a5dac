"""Ray itself: started on this machine, or a running cluster joined by its address; its failures as one line each.

A Ray that is started here has a folder of its own for sockets and logs, which is removed at the end, and a token that
no other user's processes know. It prints nothing.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.errors import UserError, one_line
from shards.ray_machines import Machine
from shards.scratch import end_processes_of, scratch_in, short_root

log = logging.getLogger(__name__)

_STORE_BYTES = 80 * 2**20
"""Room for objects: near the least that Ray accepts, and far more than specs and records take."""
_LONGEST = 43
"""Bytes of a folder's path that leave enough of the 107 of a socket's for what Ray puts behind it."""
_PATIENCE_S = 20.0
"""So long a cluster's server may be silent; it may be on its way up again."""
_TOKEN = secrets.token_hex(32)


class RayLostError(Exception):
    """A process died without which a Ray that was started here cannot go on; the message names it."""


class RaySession:
    """One start of Ray here (`address` None), which may be renewed, or one connection to a cluster."""

    def __init__(self, cpus: int, address: str | None) -> None:
        self.address = address
        self._cpus = cpus
        self._held = contextlib.ExitStack()
        self._folder: Path | None = None
        self._machines: list[Machine] = []
        self._server: tuple[str, int] | None = None
        self._silent_since = 0.0

    def begin(self) -> None:
        """Start or join. Raises `UserError` with the cause."""
        import ray  # noqa: PLC0415 - slow to import, and not needed to read shards

        # Ray's auto-configuration of `uv run` rebuilds the environment in every worker.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        # Actors are numbered anew in each session: a handle of the last one that is collected later, in some cycle,
        # would let go of another actor.
        gc.collect()
        with contextlib.ExitStack() as held:
            held.enter_context(_silent())
            if self.address is None:
                self._folder = held.enter_context(scratch_in(short_root(_LONGEST)))
                options |= self._local(self._folder, held)
            else:
                _check_listening(self.address)
                options["address"] = self.address
                # One try of half a minute, not twenty: something answers there, so a retry will not mend it.
                os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
            try:
                with _own_signals(), _quiet():
                    ray.init(**options)
            except Exception as error:  # noqa: BLE001 - Ray raises anything, plain `Exception` too
                self._stop()
                raise self._told(error) from None
            except BaseException:
                self._stop()
                raise
            self._held = held.pop_all()
        if self.address is not None and not self.address.startswith("ray://"):
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            self._server = host.strip("[]"), int(port)

    def _local(self, folder: Path, held: contextlib.ExitStack) -> dict[str, Any]:
        if "RAY_AUTH_MODE" not in os.environ:
            # Ray would write one into the home folder, and from then on ask for it whoever starts a cluster.
            held.enter_context(_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN))
            held.enter_context(_fresh_token())
        # Ray puts the working directory on its workers' path. A folder there that is called `shards`, as a dataset well
        # may be, would hide the package of that name if that is installed by a hook rather than found on the path.
        home = str(Path(__file__).parents[1])
        path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != home]
        os.environ["PYTHONPATH"] = os.pathsep.join([*path, home])
        options: dict[str, Any] = {
            # A cluster address in the environment must not turn a local run into a remote one.
            "address": "local",
            "include_dashboard": False,
            "num_cpus": self._cpus,
            "object_store_memory": _STORE_BYTES,
            "_temp_dir": str(folder),
        }
        try:
            shared = shutil.disk_usage("/dev/shm").free
        except OSError:
            shared = 0
        if shared < 2 * _STORE_BYTES:
            # Containers have 64 MB there. What we keep in it is small enough for any disk.
            options["_plasma_directory"] = str(folder)
        return options

    def machines(self) -> list[Machine]:
        """The machines that are alive.

        Raises:
            RayLostError: what was started here has died; `renew` it.
            UserError: the cluster that was joined is gone.
        """
        import ray  # noqa: PLC0415

        if self.address is None:
            # Asked first: without its server every other question hangs, and after a minute Ray ends this process.
            node = ray._private.worker._global_node
            dead = [str(kind) for kind, _ in node.dead_processes() if kind in {"raylet", "gcs_server"}]
            if dead:
                raise RayLostError(" and ".join(dead))
        elif not self._answers():
            return self._machines
        leaving = _leaving()
        try:
            nodes = ray.nodes()
        except ConnectionError:  # of a client (`ray://`), which has no server to be asked before
            raise self._gone("answers no more") from None
        self._machines = [
            Machine(node["NodeID"], dict(node["Resources"]), node["NodeID"] in leaving)
            for node in nodes
            if node["Alive"]
        ]
        if not self._machines:
            if self.address is None:
                raise RayLostError("raylet")
            raise self._gone("has no machine left")
        return self._machines

    @property
    def is_silent(self) -> bool:
        """Whether the cluster did not answer when its machines were last asked for."""
        return self._silent_since > 0

    def _answers(self) -> bool:
        """Whether the cluster's server does; raises `UserError` when it has not for a while."""
        if self._server is not None:
            try:
                socket.create_connection(self._server, timeout=_PATIENCE_S / 2).close()
            except OSError:
                self._silent_since = self._silent_since or time.monotonic()
                if time.monotonic() - self._silent_since < _PATIENCE_S:
                    return False
                raise self._gone("answers no more") from None
        self._silent_since = 0.0
        return True

    def _gone(self, how: str) -> UserError:
        return UserError(
            f"the Ray cluster at {self.address!r} {how}",
            do="What was published stays: run the same command again once it is there, or without it",
        )

    def renew(self) -> None:
        """Start Ray here again, after a `RayLostError`, or leave the cluster and join it again.

        What is somebody else's to start is left as it is.
        """
        if self not in _sessions:
            return
        if self._folder is not None:
            end_processes_of(self._folder)
        self.end()
        self.begin()

    def end(self) -> None:
        """Leave the cluster, or end what was started here."""
        self._stop()
        self._held.close()

    def _stop(self) -> None:
        import ray  # noqa: PLC0415

        try:
            with _silent():
                ray.shutdown()
        finally:
            if self._folder is not None:
                end_processes_of(self._folder, patience=2.0)
                self._folder = None

    def _told(self, error: Exception) -> UserError:
        where = repr(self.address or "this machine")
        text = one_line(str(error)) or type(error).__name__
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
                return UserError(
                    f"the disk is full ({cause})",
                    where=f"Ray at {where}",
                    do="Make room, or set $TMPDIR to another disk",
                )
            text = f"{text} {cause}"
            cause = cause.__cause__ or cause.__context__
        shown = one_line(str(error))[:300]
        if "uthenticat" in text:
            return _told_of_token(text, where)
        if "ersion mismatch" in text:
            return UserError(
                f"the Ray cluster at {where} has other versions than this machine ({shown})",
                do="Use the same versions of Ray and Python on both",
            )
        if self.address is None:
            return UserError(
                f"cannot start Ray on this machine ({shown})",
                do="See that there is room in $TMPDIR and in memory, or use --in-process",
            )
        if "Failed to connect" in text or "timeout" in text:
            return UserError(
                f"something listens at {where}, but does not answer as a Ray cluster ({shown})",
                do="Check the address; `ray start --head` shows it",
            )
        return UserError(
            f"cannot join Ray at {where} ({shown})", do="Check the address, or leave it out to start Ray here"
        )


def _told_of_token(text: str, where: str) -> UserError:
    """What `text`, which is about a token, says of the one that this process has, or has not."""
    token = "in ~/.ray/auth_token or $RAY_AUTH_TOKEN"
    if "no authentication token was found" in text:
        # Said here, before the cluster was asked anything.
        return UserError(
            f"RAY_AUTH_MODE=token has Ray use a token, and there is none {token}",
            do=f"Unset it if the Ray at {where} asks for none; else have its token there",
        )
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return UserError(
            f"the Ray cluster at {where} refuses the token that it was given", do=f"Have the cluster's own {token}"
        )
    return UserError(
        f"the Ray cluster at {where} asks for its token, and was given none",
        do=f"Set RAY_AUTH_MODE=token, and have the cluster's token {token}",
    )


def _leaving() -> set[str]:
    """The machines that Ray has been told to empty, because they are to go: a notice of preemption, say."""
    return set(_told_by_state("get_draining_nodes") or ())


def may_come(kind: str) -> bool:
    """Whether the cluster's autoscaler has said that it could bring machines with a resource, by Ray's name."""
    return bool((_told_by_state("get_max_resources_from_cluster_config") or {}).get(kind))


def _told_by_state(question: str) -> Any:
    """What the cluster's state says; None of an older Ray, or where this process is a client, which is not told."""
    import ray  # noqa: PLC0415
    from ray._private.state import state  # noqa: PLC0415

    if ray.util.client.ray.is_connected():
        return None
    try:
        return getattr(state, question)()
    except (AttributeError, RuntimeError):
        return None


_sessions: list[RaySession] = []
"""The one that this process has, if any."""


@contextlib.contextmanager
def ray_session(*, cpus: int, address: str | None = None) -> Iterator[RaySession]:
    """Ray for the length of the block: started here with `cpus` cores, or a cluster joined by `address`.

    Where Ray runs in this process already nothing happens, so executors inside a block share one start.
    Raises `UserError` if Ray cannot be started or joined.
    """
    import ray  # noqa: PLC0415

    if ray.is_initialized():
        # Somebody else's start is not ours to renew: it is taken for a cluster.
        yield _sessions[-1] if _sessions else RaySession(cpus, "here")
        return
    session = RaySession(cpus, address)
    session.begin()
    _sessions.append(session)
    try:
        yield session
    finally:
        _sessions.remove(session)
        session.end()


def cluster_machines(address: str) -> list[Machine]:
    """The machines of a running cluster. Raises `UserError` if it cannot be reached."""
    with ray_session(cpus=1, address=address) as session:
        return session.machines()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts: leave it with whom it was."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if ours is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While Ray starts, drop what its libraries write to standard error by themselves: errors are raised as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from printing what its processes tell the driver: the executor says what matters, in one line."""
    from ray._private import worker  # noqa: PLC0415

    prints = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = prints


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _fresh_token() -> Iterator[None]:
    """Ray reads token and mode once in a process; have it read them again, here and at the end."""
    _read_token_again()
    try:
        yield
    finally:
        _read_token_again()


def _read_token_again() -> None:
    with contextlib.suppress(AttributeError):  # an older Ray knows no tokens
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _check_listening(address: str) -> None:
    """Raise `UserError` if nothing listens at a `host:port`; Ray itself would go on trying for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or "://" in host:
        return  # `auto`, or something Ray judges by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address!r} ({error})",
            do="Check the address, or leave it out to start Ray here",
        ) from None
