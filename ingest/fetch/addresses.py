"""What may be fetched: URLs, mended where their meaning is plain, and network addresses, public unless allowed."""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin

import idna

from shards import UserError

MAX_URL = 16_384
"""Characters of a URL; no server takes more in a request."""

_MAX_HOST = 255
_START = re.compile(r"(https?)://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"[a-z0-9._~-]+|\[[0-9a-f:.]+\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SAFE = "!$%&'()*+,/:;=?@[\\]^|~"
"""What a path and query may hold as it is, besides letters, digits and `_.-`; browsers do alike."""
_CLEAN = re.compile(rf"[A-Za-z0-9_.\-{re.escape(_SAFE.replace('%', ''))}]*", re.ASCII)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
# IANA's special-purpose registries, spelled out because Python's own list differs from release to release.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16",  # Azure's hosts speak to their guests here, in spite of the public number
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo and other protocols'
        "2001:db8::/32",
        "2002::/16",  # 6to4, which may hold any IPv4 address
        "3fff::/20",
    )
)


class BadUrlError(ValueError):
    """Nothing that can be fetched over HTTP. The message is a fixed text."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in ASCII, as it will be sent.

    `name` is the host as it is looked up, lower-case, and `host` the same without a last dot, as hosts are told apart;
    `origin` is scheme, host and port.
    """

    url: str
    name: str
    port: int
    origin: str

    @property
    def host(self) -> str:
        return self.name.rstrip(".")

    def follow(self, location: bytes) -> Target:
        """Where a redirect to `location` leads from here. Raises `BadUrlError`."""
        try:
            text = location.decode()
        except UnicodeDecodeError:
            text = location.decode("latin-1")
        try:
            return mend(urljoin(self.url, text))
        except BadUrlError:
            raise
        except ValueError:
            raise BadUrlError("not a URL of http or https") from None


def mend(url: str) -> Target:
    """The URL that the writer of `url` meant: `//host` is http, spaces and other letters are escaped.

    What is escaped already stays; a fragment goes. Raises `BadUrlError` for what is no URL of http or https.
    """
    text = url.strip().partition("#")[0]
    if text.startswith("//"):
        text = f"http:{text}"
    if len(text) > MAX_URL:
        raise BadUrlError("the URL is too long")
    if _CONTROL.search(text):
        raise BadUrlError("the URL has a control character")
    path, mark, query = text.partition("?")
    found = _START.fullmatch(path.replace("\\", "/") + mark + query)
    if not found:
        raise BadUrlError("not a URL of http or https")
    scheme, authority, rest = found.groups()
    user, at, place = authority.rpartition("@")
    host, port = _host_and_port(place)
    origin = f"{scheme.lower()}://{host}{port}"
    rest = rest if rest.startswith("/") else f"/{rest}"
    sent = f"{scheme.lower()}://{_escaped(user)}{at}{host}{port}{_escaped(rest)}"
    usual = 443 if scheme.lower() == "https" else 80
    return Target(sent, host, int(port[1:]) if port else usual, origin)


def _host_and_port(place: str) -> tuple[str, str]:
    host, port = place, ""
    if ":" in place and not place.endswith("]"):
        host, _, port = place.rpartition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
        raise BadUrlError("the URL's port is not a number from 1 to 65535")
    # As curl does; whatever the name turns out to be, its address is looked at before anything is sent.
    host = unquote(host).lower()
    if len(host) > _MAX_HOST:
        raise BadUrlError("the URL's host is not a name")
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except (idna.IDNAError, UnicodeError):
            raise BadUrlError("the URL's host is not a name") from None
    if not _HOST.fullmatch(host):
        raise BadUrlError("the URL's host is not a name" if host else "the URL has no host")
    return host, f":{port}" if port else ""


def _escaped(text: str) -> str:
    if _CLEAN.fullmatch(text):
        return text
    try:
        return quote(_LONE_PERCENT.sub("%25", text), safe=_SAFE)
    except UnicodeError:
        raise BadUrlError("the URL is not text") from None


class AddressRule:
    """Which network addresses may be connected to: public unicast ones, and those in `allow`.

    `allow` holds addresses and networks ("127.0.0.1", "10.0.0.0/8", "::1"). Raises `UserError` for anything else.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self._allowed: list[_Network] = []
        for text in allow:
            try:
                self._allowed.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise UserError(
                    f"allowed address {text!r} is neither an address nor a network ({error})",
                    do="Write it like 127.0.0.1, 10.0.0.0/8 or ::1",
                ) from None
        self.permits = functools.lru_cache(4096)(self._permits)

    def _permits(self, text: str) -> bool:
        """Whether `text`, an address as numbers, may be connected to."""
        address: _Address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if any(address in network for network in self._allowed):
            return True
        if isinstance(address, ipaddress.IPv6Address):
            if address in _NAT64:
                return self._permits(str(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)))
            if address not in _PUBLIC_6:
                return False
        return not any(address in network for network in _SPECIAL)


def needs_no_lookup(name: str) -> bool:
    """Whether curl needs nobody to find a URL's host: an address (127.1 and 0x7f000001 are ones too), or localhost."""
    host = name.rstrip(".")
    if host.startswith("[") or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True
