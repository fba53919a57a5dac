"""A network of our own, for programs that run in a namespace made by `unshare --user --map-root-user --mount --net`.

Nothing but this process is in it, so it may have a resolver that lies and machines at public addresses.
"""

from __future__ import annotations

import fcntl
import http.server
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence

_SIOCSIFFLAGS, _SIOCSIFADDR, _IFF_UP = 0x8914, 0x8916, 0x1


def begin(*public: str) -> None:
    """Bring the loopback up, give it further addresses, and make 127.0.0.1 the resolver."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        for number, address in enumerate(public):
            name = f"lo:{number}".encode()
            where = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("16s16s", name, where))
    wait_for_answers(4)


def wait_for_answers(seconds: int) -> None:
    """How long this machine waits for its resolver, which is 127.0.0.1."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
        file.write(f"nameserver 127.0.0.1\noptions timeout:{seconds} attempts:1\n")
    subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)


def swallow(network: str = "5.5.0.0/16") -> None:
    """A network that every route leads to and nobody answers in: connections there get neither yes nor no."""
    gateway = network.replace(".0.0/", ".255.254/")
    for command in (
        "link add swallow type veth peer name swallowed",
        f"addr add {gateway} dev swallow",
        "link set swallow arp off up",
        "link set swallowed up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


class Resolver:
    """Answers for names: each query takes the next of its addresses, the last one for ever; others do not exist.

    `seconds` is what each answer takes; queries are answered one after the other, as by a poor router. Those that are
    `silent` get none.
    """

    def __init__(
        self,
        names: Mapping[str, Sequence[str]] | Callable[[str], Sequence[str]],
        seconds: float = 0,
        silent: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._names = names if callable(names) else lambda name: names.get(name, ())
        self._seconds, self._silent = seconds, silent
        self.asked: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            time.sleep(self._seconds)
            answer = self._answer(query)
            if answer is not None:
                self._socket.sendto(answer, client)

    def _answer(self, query: bytes) -> bytes | None:
        labels, place = [], 12
        while size := query[place]:
            labels.append(query[place + 1 : place + 1 + size].decode())
            place += size + 1
        question, kind = query[12 : place + 5], struct.unpack(">H", query[place + 1 : place + 3])[0]
        name = ".".join(labels).lower()
        if self._silent(name):
            self.asked[name] = self.asked.get(name, 0) + (kind == 1)
            return None
        addresses = self._names(name)
        if kind != 1:
            return query[:2] + struct.pack(">5H", 0x8180 if addresses else 0x8183, 1, 0, 0, 0) + question
        at = self.asked.get(name, 0)
        self.asked[name] = at + 1
        if not addresses:
            return query[:2] + struct.pack(">5H", 0x8183, 1, 0, 0, 0) + question
        address = socket.inet_aton(addresses[min(at, len(addresses) - 1)])
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + address
        return query[:2] + struct.pack(">5H", 0x8180, 1, 1, 0, 0) + question + record


def serve(address: str, pages: Mapping[str, tuple[int, Mapping[str, str], bytes]], port: int = 80) -> list[str]:
    """A web server: path → status, headers, body; the list it returns fills with `Host path` of what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Host']} {self.path}")
            status, headers, body = pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    threading.Thread(target=Server((address, port), Handler).serve_forever, daemon=True).start()
    return asked
