"""Many transfers under way at once, on one thread, over curl's multi interface."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time

import pycurl

from ingest.fetch.transfer import Transfer


class Transfers:
    """Transfers under way, on one thread; only `wake` may be called from others."""

    def __init__(self, connections: int) -> None:
        self._running: dict[pycurl.Curl, Transfer] = {}
        self._timer: float | None = None
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    def add(self, transfer: Transfer) -> None:
        """Start a transfer that is ready; its clock starts too."""
        self._running[transfer.handle] = transfer
        self._multi.add_handle(transfer.handle)

    def drop(self, transfer: Transfer) -> None:
        """End a transfer that nobody waits for any more."""
        self._multi.remove_handle(self._running.pop(transfer.handle).handle)
        transfer.discard()

    def drive(self, seconds: float) -> list[tuple[Transfer, int]]:
        """Wait for something to happen, or for `wake`: the transfers that ended, with curl's codes."""
        if self._timer is not None:
            seconds = min(seconds, self._timer - time.monotonic())
        for key, events in self._selector.select(max(0.0, seconds)):
            if key.fileobj is self._woken:
                self._woken.recv(4096)
                continue
            reading = pycurl.CSELECT_IN if events & selectors.EVENT_READ else 0
            writing = pycurl.CSELECT_OUT if events & selectors.EVENT_WRITE else 0
            self._multi.socket_action(key.fd, reading | writing)
        if self._timer is not None and time.monotonic() >= self._timer:
            self._timer = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        return self._ended()

    def _ended(self) -> list[tuple[Transfer, int]]:
        _, whole, failed = self._multi.info_read()
        codes = [(handle, pycurl.E_OK) for handle in whole] + [(handle, code) for handle, code, _ in failed]
        for handle, _ in codes:
            self._multi.remove_handle(handle)
        return [(self._running.pop(handle), code) for handle, code in codes]

    def _watch(self, what: int, fd: int, _multi: object, _data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
            return
        events = selectors.EVENT_READ if what & pycurl.POLL_IN else 0
        events |= selectors.EVENT_WRITE if what & pycurl.POLL_OUT else 0
        try:
            self._selector.modify(fd, events)
        except (KeyError, FileNotFoundError):
            self._selector.register(fd, events)

    def _set_timer(self, milliseconds: int) -> None:
        self._timer = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def wake(self) -> None:
        """End a wait early. Any thread may call it."""
        # Where there is no room for one more, there is enough to wake up from; after the end nobody sleeps.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        """Drop what is under way and close all connections."""
        for handle, transfer in self._running.items():
            self._multi.remove_handle(handle)
            transfer.discard()
        self._running.clear()
        self._multi.close()
        self._selector.close()
        self._waker.close()
        self._woken.close()
