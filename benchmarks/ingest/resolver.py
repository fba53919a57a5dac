"""A resolver for `own_network.py`: any name has an address in 20 ms, but for some that have none.

    python -m benchmarks.ingest.resolver        on 127.0.0.1:53, until standard input ends

Names that begin with `silent` are never answered, as behind a lame delegation; those with `gone` do not exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import sys
from typing import cast

LATENCY = 0.02
"""Seconds."""
GOOD = "93.184"
"""The first half of every good host's address."""
_A = 1
_FOUND, _NO_SUCH_NAME = 0x8180, 0x8183


class _Resolver(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, query: bytes, client: tuple[str, int]) -> None:
        if not query[13:].startswith(b"silent"):
            asyncio.get_running_loop().call_later(LATENCY, self._transport.sendto, _answer(query), client)


def _answer(query: bytes) -> bytes:
    end = 12
    while query[end]:
        end += query[end] + 1
    name, question = query[12:end], query[12 : end + 5]
    exists = not name[1:].startswith(b"gone")
    has_address = exists and struct.unpack_from(">H", query, end + 1)[0] == _A
    head = query[:2] + struct.pack(">5H", _FOUND if exists else _NO_SUCH_NAME, 1, has_address, 0, 0)
    if not has_address:
        return head + question
    digest = hashlib.sha256(name.lower()).digest()
    address = socket.inet_aton(f"{GOOD}.{digest[0]}.{1 + digest[1] % 254}")
    return head + question + struct.pack(">HHHIH", 0xC00C, _A, 1, 1, 4) + address


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    # A burst of lookups must not overflow the kernel's buffer: a lost query looks like a dead name.
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.bind(("127.0.0.1", 53))
    await loop.create_datagram_endpoint(_Resolver, sock=sock)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
