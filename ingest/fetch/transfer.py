"""One answer to one request over curl.

A transfer follows no redirect: it says where to, so that the next request meets the same checks as the first.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import tempfile
from dataclasses import dataclass
from typing import IO, Literal

import certifi
import pycurl

from ingest.fetch.addresses import AddressRule
from ingest.fetch.encodings import EncodingError, decode, encodings
from ingest.fetch.limits import NO_ROOM, is_out_of_files
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
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED: int = pycurl.SOCKET_BAD
_HEADERS = frozenset({b"x-robots-tag", b"location", b"content-encoding", b"content-length", b"transfer-encoding"})
_SUPPRESS_CONNECT_HEADERS = 265
_TOO_MANY_HEADERS = 100
_PROXY = 97
"""An option of curl's and two of its errors (TOO_LARGE, PROXY), for which pycurl has no names."""

_FAILURES = {
    pycurl.E_URL_MALFORMAT: ("bad_url", "not a URL that can be asked for"),
    pycurl.E_COULDNT_RESOLVE_HOST: ("dns", "the host's name has no address"),
    pycurl.E_COULDNT_CONNECT: ("connect", "the host takes no connection"),
    pycurl.E_OPERATION_TIMEDOUT: ("timeout", "no whole answer in time"),
    pycurl.E_FILESIZE_EXCEEDED: ("too_large", "more bytes than allowed"),
    pycurl.E_PEER_FAILED_VERIFICATION: ("tls", "the certificate is not trusted"),
    pycurl.E_BAD_CONTENT_ENCODING: ("protocol", "the answer has an unknown transfer encoding"),
    _TOO_MANY_HEADERS: ("protocol", "the answer has too large headers"),
    **dict.fromkeys((pycurl.E_COULDNT_RESOLVE_PROXY, _PROXY), ("connect", "the proxy makes no connection to the host")),
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


Quirk = Literal["length", "coding"]
"""A `Content-Length` that is no number, or a `Transfer-Encoding` that is none of HTTP's. Curl refuses both."""


@dataclass(frozen=True)
class TransferResult:
    """What came of a transfer: a body (no `cause`), a redirect, or a cause, and whether it may pass by itself.

    `redirect` is as the server wrote it; `wait` is how many seconds the server asked us to wait. `silent`: no
    connection came about in time. `no_room`: this machine had no file, port or buffer left, so that nothing was asked.
    `quirk`: what would have to be overlooked to read the answer, as browsers do.
    """

    cause: str | None = None
    message: str | None = None
    redirect: bytes | None = None
    may_pass: bool = False
    wait: float = 0.0
    silent: bool = False
    no_room: bool = False
    quirk: Quirk | None = None


_SILENT = TransferResult("timeout", "no connection in time", silent=True)
_CRAMPED = TransferResult(no_room=True)


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
        self._rule, self._proxied = rule, settings.proxy is not None
        self._opt_outs, self._agent = frozenset(settings.opt_outs), agent_name(settings.user_agent)
        self.handle = handle = pycurl.Curl()
        handle.setopt(pycurl.USERAGENT, settings.user_agent)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        # Images gain nothing by a further compression.
        handle.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.8", "Accept-Encoding: identity"])
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(settings.connect_timeout * 1000)))
        handle.setopt(pycurl.NOSIGNAL, 1)
        # Through a proxy of the environment's, nobody would see which address is asked in the end.
        handle.setopt(pycurl.PROXY, _looking_up(settings.proxy or ""))
        handle.setopt(pycurl.NOPROXY, "")
        handle.setopt(_SUPPRESS_CONNECT_HEADERS, 1)
        handle.setopt(pycurl.BUFFERSIZE, _BUFFER)
        handle.setopt(pycurl.CAINFO, settings.ca_file or certifi.where())
        handle.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        handle.setopt(pycurl.HEADERFUNCTION, self._header)
        handle.setopt(pycurl.WRITEFUNCTION, self._write)

    def begin(
        self,
        url: str,
        seconds: float,
        max_bytes: int,
        *,
        image: bool,
        resolved: str | None = None,
        quirk: Quirk | None = None,
    ) -> None:
        """Make ready to ask for `url`, for at most `max_bytes` after decoding.

        An `image` may opt out, and is refused at once if it says that it is longer; of other things the beginning is
        wanted in any case. `resolved`: "host:port:address,address" of a name that was looked up.
        What `quirk` names is not looked at; the body then ends at a `Content-Length` that is one, or with the
        connection.
        """
        self.size = 0
        self._max_bytes, self._heed = max_bytes, image and bool(self._opt_outs)
        self._status = self._unwanted = 0
        self._location = self._encoding = self._length = b""
        self._opted_out = self._blocked = self._let_through = self._head_ended = False
        self._lenient, self._to_length = quirk is not None, quirk == "coding"
        self._complete = self._no_room = self._sixth = False
        self._trouble: Exception | None = None
        self.handle.setopt(pycurl.URL, url)
        self.handle.setopt(pycurl.TIMEOUT_MS, max(1, round(seconds * 1000)))
        self.handle.setopt(pycurl.MAXFILESIZE_LARGE, max_bytes if image else 0)
        self.handle.setopt(pycurl.IGNORE_CONTENT_LENGTH, quirk is not None)
        self.handle.setopt(pycurl.HTTP_TRANSFER_DECODING, quirk != "coding")
        # With the plus, curl keeps it no longer than what it looks up by itself.
        self.handle.setopt(pycurl.RESOLVE, [f"+{resolved}"] if resolved else [])

    def _open(self, _purpose: int, address: pycurl.CurlSockAddr) -> socket.socket | int:
        # Called with the very address that will be connected to, after every resolution.
        if not self._proxied and not self._rule.permits(address.addr[0]):
            self._blocked = True
            return _REFUSED
        self._let_through = True
        try:
            opened = _Socket(address.family, address.socktype, address.protocol)
            # As pycurl will do: should it fail there, nobody would know why.
            os.close(os.dup(opened.fileno()))
        except OSError as error:
            self._no_room |= error.errno in NO_ROOM
            return _REFUSED
        self._sixth |= address.family == socket.AF_INET6
        return opened

    def _header(self, line: bytes) -> int | None:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _HEADERS:
            return self._heed_header(name, value.strip())
        if name.startswith(b"http/"):
            status = line.split(None, 2)[1:2]
            self._status = int(status[0]) if status and status[0].isdigit() else 0
            self._head_ended = False
            self._encoding = self._length = b""
        elif line in {b"\r\n", b"\n"}:
            self._head_ended = True
        return None

    def _heed_header(self, name: bytes, value: bytes) -> int | None:
        if name == b"x-robots-tag":
            if self._heed and self._status < 400:
                self._opted_out = opts_out(value.decode("latin-1"), self._agent, self._opt_outs)
                return -1 if self._opted_out else None
        elif name == b"location":
            if self._status in _REDIRECTS:
                self._location = value
        elif name == b"content-encoding":
            self._encoding += b"," + value
        elif name == b"content-length":
            self._length = value
        else:
            # Nothing or not a word of HTTP's any more, and for curl a body that ends with the connection.
            self._to_length |= value.lower() in {b"identity", b""}
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
        if self._to_length and self._length == b"%d" % self.size:
            self._complete = True
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

    def result(self, code: int) -> TransferResult:
        """What came of it, by curl's `code`. Raises as `Fetcher.poll` does."""
        if self._trouble:
            return self._troubled(self._trouble)
        if code == pycurl.E_OUT_OF_MEMORY:
            raise MemoryError("none left for a transfer")
        if self._opted_out:
            return TransferResult("opt_out", "by X-Robots-Tag")
        status = int(self.handle.getinfo(pycurl.RESPONSE_CODE))
        if status >= 300:
            if self._location:
                return TransferResult(redirect=self._location)
            wait = float(self.handle.getinfo(pycurl.RETRY_AFTER))
            return TransferResult(f"http_{status:03d}", f"HTTP status {status}", may_pass=status in _AGAIN, wait=wait)
        if self._head_ended and (code == pycurl.E_OK or self._complete):
            return self._decoded()
        # A head that breaks off is for curl an answer without a body.
        return self._failed(code or pycurl.E_PARTIAL_FILE)

    def _failed(self, code: int) -> TransferResult:
        if self._blocked and not self._let_through:
            return TransferResult("blocked_address", "the host's address is not public")
        if code in {pycurl.E_COULDNT_CONNECT, pycurl.E_SSL_CACERT_BADFILE} and self._is_cramped():
            return _CRAMPED
        if code == pycurl.E_OPERATION_TIMEDOUT and not self.connected:
            return _SILENT
        if self.size > self._max_bytes:
            code = pycurl.E_FILESIZE_EXCEEDED
        elif self._proxied and (
            code == pycurl.E_COULDNT_CONNECT or self.handle.getinfo(pycurl.HTTP_CONNECTCODE) >= 300
        ):
            code = _PROXY
        elif code == pycurl.E_RECV_ERROR and "Too large" in self.handle.errstr():
            code = _TOO_MANY_HEADERS
        cause, message = _FAILURES.get(code, ("other", f"curl's error {code}"))
        return TransferResult(cause, message, may_pass=cause == "incomplete", quirk=self._quirk(code))

    def _quirk(self, code: int) -> Quirk | None:
        if self._lenient:
            return None
        if code == pycurl.E_BAD_CONTENT_ENCODING:
            return "coding"
        odd_length = code == pycurl.E_FTP_WEIRD_SERVER_REPLY and "Content-Length" in self.handle.errstr()
        return "length" if odd_length else None

    def _is_cramped(self) -> bool:
        number = self.handle.getinfo(pycurl.OS_ERRNO)
        # The last: no port to connect from. Where IPv6 is switched off, that is said of any of its addresses.
        return (
            self._no_room
            or number in NO_ROOM
            or (number == errno.EADDRNOTAVAIL and not self._sixth)
            or is_out_of_files()
        )

    @property
    def connected(self) -> bool:
        """Whether there was a connection, with TLS where there is to be any."""
        return bool(self.handle.getinfo(pycurl.REQUEST_SIZE))

    def _troubled(self, trouble: Exception) -> TransferResult:
        number = trouble.errno if isinstance(trouble, OSError) else None
        if number in _DISK_FULL:
            raise UserError(
                f"the disk of {tempfile.gettempdir()} is full", do="Free some space, or set TMPDIR to another disk"
            ) from trouble
        if number in NO_ROOM:
            return _CRAMPED
        raise trouble

    def _decoded(self) -> TransferResult:
        names = encodings(self._encoding.decode("latin-1"))
        packed = self.take() if names else None
        if packed is None:
            return TransferResult()
        self.size, self._to_length = 0, False
        with packed:
            try:
                decode(packed, names, lambda piece: self._write(piece) is None)
            except EncodingError:
                return TransferResult("protocol", "the body is not encoded as its headers say")
        if self._trouble:
            return self._troubled(self._trouble)
        if self.size > self._max_bytes:
            return TransferResult(*_FAILURES[pycurl.E_FILESIZE_EXCEEDED])
        return TransferResult()


def _looking_up(proxy: str) -> str:
    """The proxy by the scheme that has it look names up: with the plain ones of SOCKS, curl would do so here."""
    scheme, mark, place = proxy.partition("://")
    return {"socks4": "socks4a", "socks5": "socks5h"}.get(scheme, scheme) + mark + place
