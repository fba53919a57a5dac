"""One answer to one request over curl: `Transfer`, and `Transfers`, which drives many of them at once.

A transfer follows no redirect: it says where to, so that the next request meets the same checks as the first.
"""

from __future__ import annotations

import contextlib
import errno
import io
import selectors
import socket
import tempfile
import time
from dataclasses import dataclass
from typing import IO

import certifi
import pycurl

from ingest.fetch.addresses import AddressRule
from ingest.fetch.opt_out import agent_name, opts_out
from ingest.settings import NetworkSettings
from shards import UserError

_IN_MEMORY = 256 * 1024
"""Bytes of a body beyond which it lies in a file: every connection may hold so much, and every answer that waits."""

_ERROR_BODY = 64 * 1024
"""So much of a body that nobody wants is read to keep the connection."""
_BUFFER = 128 * 1024
"""So that a usual image comes in one or two pieces."""

_AGAIN = frozenset({408, 425, 429, *range(500, 600)}) - {501, 505}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED: int = pycurl.SOCKET_BAD
_TOO_MANY_HEADERS = 100
"""CURLE_TOO_LARGE, for which pycurl has no name."""

_FAILURES = {
    pycurl.E_URL_MALFORMAT: ("bad_url", "not a URL that can be asked for"),
    pycurl.E_COULDNT_RESOLVE_HOST: ("dns", "the host's name has no address"),
    pycurl.E_COULDNT_CONNECT: ("connect", "the host takes no connection"),
    pycurl.E_OPERATION_TIMEDOUT: ("timeout", "no whole answer in time"),
    pycurl.E_FILESIZE_EXCEEDED: ("too_large", "more bytes than allowed"),
    pycurl.E_PEER_FAILED_VERIFICATION: ("tls", "the certificate is not trusted"),
    _TOO_MANY_HEADERS: ("protocol", "the answer has too large headers"),
    pycurl.E_BAD_CONTENT_ENCODING: ("protocol", "the body is not encoded as its headers say"),
    **dict.fromkeys(
        (pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_FTP_WEIRD_SERVER_REPLY, pycurl.E_HTTP2),
        ("protocol", "the answer is not HTTP"),
    ),
    **dict.fromkeys(
        (pycurl.E_PARTIAL_FILE, pycurl.E_GOT_NOTHING, pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR),
        ("incomplete", "the connection ended before the answer did"),
    ),
    **dict.fromkeys(
        (pycurl.E_SSL_CONNECT_ERROR, pycurl.E_SSL_CIPHER, pycurl.E_SSL_INVALIDCERTSTATUS),
        ("tls", "TLS could not be agreed on"),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a transfer: a body (no `cause`), a redirect, or a cause, and whether it may pass by itself.

    `redirect` is as the server wrote it; `wait` is how many seconds the server asked us to wait.
    """

    cause: str | None = None
    message: str | None = None
    redirect: bytes | None = None
    may_pass: bool = False
    wait: float = 0.0


class _Socket(socket.socket):
    def __del__(self) -> None:
        # pycurl hands libcurl a duplicate, and drops this one.
        if self.fileno() >= 0:
            self.close()


class Transfer:
    """A handle of curl's with all that does not change from request to request."""

    def __init__(self, settings: NetworkSettings, rule: AddressRule) -> None:
        self.size = 0
        self._body: IO[bytes] | None = None
        self._rule = rule
        self._opt_outs, self._agent = settings.opt_outs, agent_name(settings.user_agent)
        self.handle = handle = pycurl.Curl()
        handle.setopt(pycurl.USERAGENT, settings.user_agent)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.8"])
        # All that curl can decode; a body over the cap once decoded is cut like any other.
        handle.setopt(pycurl.ACCEPT_ENCODING, "")
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(settings.connect_timeout * 1000)))
        handle.setopt(pycurl.NOSIGNAL, 1)
        # Through a proxy of the environment's, nobody would see which address is asked in the end.
        handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.BUFFERSIZE, _BUFFER)
        handle.setopt(pycurl.CAINFO, settings.ca_file or certifi.where())
        handle.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        handle.setopt(pycurl.HEADERFUNCTION, self._header)
        handle.setopt(pycurl.WRITEFUNCTION, self._write)

    def begin(self, url: str, seconds: float, max_bytes: int, *, image: bool) -> None:
        """Make ready to ask for `url`, for at most `max_bytes` after decoding.

        An `image` may opt out, and is refused at once if it says that it is longer; of other things the beginning is
        wanted in any case.
        """
        self.size = 0
        self._max_bytes, self._heed = max_bytes, image and self._opt_outs
        self._status = self._unwanted = 0
        self._location = b""
        self._opted_out = self._blocked = self._let_through = self._head_ended = False
        self._trouble: Exception | None = None
        self.handle.setopt(pycurl.URL, url)
        self.handle.setopt(pycurl.TIMEOUT_MS, max(1, round(seconds * 1000)))
        self.handle.setopt(pycurl.MAXFILESIZE_LARGE, max_bytes if image else 0)

    def _open(self, _purpose: int, address: pycurl.CurlSockAddr) -> socket.socket | int:
        # Called with the very address that will be connected to, after every resolution.
        if not self._rule.permits(address.addr[0]):
            self._blocked = True
            return _REFUSED
        self._let_through = True
        try:
            return _Socket(address.family, address.socktype, address.protocol)
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._trouble = error
            return _REFUSED

    def _header(self, line: bytes) -> int | None:
        if line.startswith(b"HTTP/"):
            status = line.split(None, 2)[1:2]
            self._status = int(status[0]) if status and status[0].isdigit() else 0
            self._head_ended = False
        elif line in {b"\r\n", b"\n"}:
            self._head_ended = True
        elif self._status in _REDIRECTS and line[:9].lower() == b"location:":
            self._location = line[9:].strip()
        elif line[:13].lower() == b"x-robots-tag:" and self._heed and self._status < 400:
            self._opted_out = opts_out(line[13:].decode("latin-1"), self._agent)
            return -1 if self._opted_out else None
        return None

    def _write(self, chunk: bytes) -> int | None:
        if self._status >= 300:
            self._unwanted += len(chunk)
            return -1 if self._unwanted > _ERROR_BODY else None
        self.size += len(chunk)
        if self.size > self._max_bytes:
            return -1
        try:
            self._keep(chunk)
        except (OSError, MemoryError) as error:
            self._trouble = error
            return -1
        return None

    def _keep(self, chunk: bytes) -> None:
        if self._body is None:
            self._body = io.BytesIO()
        elif self.size > _IN_MEMORY and isinstance(self._body, io.BytesIO):
            beginning = self._body.getvalue()
            self._body = tempfile.TemporaryFile()  # noqa: SIM115 - who takes it closes it
            self._body.write(beginning)
        self._body.write(chunk)
        # A full disk must show here, not where the body is read.
        self._body.flush()

    def take(self) -> IO[bytes] | None:
        """The body, which is the caller's to close from now on; None where there were no bytes."""
        body, self._body = self._body, None
        return body

    def discard(self) -> None:
        """Let go of the body, unless it was taken."""
        if self._body is not None:
            self._body.close()
            self._body = None

    def outcome(self, code: int) -> Outcome:
        """What came of it, by curl's `code`. Raises as `Fetcher.poll` does."""
        if isinstance(self._trouble, OSError) and self._trouble.errno in _DISK_FULL:
            raise UserError(
                f"the disk of {tempfile.gettempdir()} is full", do="Free some space, or set TMPDIR to another disk"
            ) from self._trouble
        if self._trouble:
            raise self._trouble
        if code == pycurl.E_OUT_OF_MEMORY:
            raise MemoryError("none left for a transfer")
        status = int(self.handle.getinfo(pycurl.RESPONSE_CODE))
        if self._opted_out:
            return Outcome("opt_out", "by X-Robots-Tag")
        if status >= 300:
            if self._location:
                return Outcome(redirect=self._location)
            wait = float(self.handle.getinfo(pycurl.RETRY_AFTER))
            return Outcome(f"http_{status:03d}", f"HTTP status {status}", may_pass=status in _AGAIN, wait=wait)
        if code == pycurl.E_OK:
            if self._head_ended:
                return Outcome()
            # For curl that is an answer without a body.
            code = pycurl.E_PARTIAL_FILE
        if self._blocked and not self._let_through:
            return Outcome("blocked_address", "the host's address is not public")
        if self.size > self._max_bytes:
            code = pycurl.E_FILESIZE_EXCEEDED
        elif code == pycurl.E_RECV_ERROR and "Too large" in self.handle.errstr():
            code = _TOO_MANY_HEADERS
        cause, message = _FAILURES.get(code, ("other", f"curl's error {code}"))
        return Outcome(cause, message, may_pass=cause in {"timeout", "incomplete"})


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

    def drive(self, seconds: float) -> tuple[list[tuple[Transfer, int]], bool]:
        """Wait for something to happen: the transfers that ended, with curl's codes, and whether `wake` was called."""
        if self._timer is not None:
            seconds = min(seconds, self._timer - time.monotonic())
        woken = False
        for key, events in self._selector.select(max(0.0, seconds)):
            if key.fileobj is self._woken:
                woken = bool(self._woken.recv(4096))
                continue
            reading = pycurl.CSELECT_IN if events & selectors.EVENT_READ else 0
            writing = pycurl.CSELECT_OUT if events & selectors.EVENT_WRITE else 0
            self._multi.socket_action(key.fd, reading | writing)
        if self._timer is not None and time.monotonic() >= self._timer:
            self._timer = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        return self._ended(), woken

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
