"""Names that point inside: at once, the second time they are asked for, or behind a redirect from a public host."""

from __future__ import annotations

from collections.abc import Callable

PROGRAM = """
from own_network import Resolver, begin, serve
from ingest import NetworkSettings
from ingest.fetch import Fetcher

begin("93.184.216.34")
names = {
    "public.example": ["93.184.216.34"],
    "inside.example": ["127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "rebound.example": ["93.184.216.34", "127.0.0.1"],
}
resolver = Resolver(names)
secret = {"/x": (200, {}, b"secret")}
moves = {f"/to-{name}": (302, {"Location": f"http://{name}.example/x"}, b"") for name in ("inside", "metadata")}
serve("93.184.216.34", {"/x": (200, {"Connection": "close"}, b"public"), **moves})
inside = serve("127.0.0.1", secret)

def fetch(url):
    fetcher = Fetcher(NetworkSettings(deadline=5, retries=0), max_bytes=1000)
    fetcher.start(0, url)
    answers = []
    while not answers:
        answers = fetcher.poll(1)
    answer = answers[0][1]
    print(url, answer.error_class or answer.read().decode())
    fetcher.close()

for url in ("inside.example/x", "metadata.example/x", "public.example/x", "public.example/to-inside",
            "public.example/to-metadata", "rebound.example/x", "rebound.example/x"):
    fetch(f"http://{url}")
print("asked inside:", inside)
"""


def test_what_a_name_points_to_is_judged_at_every_connection(in_own_network: Callable[[str], str]) -> None:
    assert in_own_network(PROGRAM).splitlines() == [
        "http://inside.example/x blocked_address",
        "http://metadata.example/x blocked_address",
        "http://public.example/x public",
        "http://public.example/to-inside blocked_address",
        "http://public.example/to-metadata blocked_address",
        "http://rebound.example/x public",
        "http://rebound.example/x blocked_address",
        "asked inside: []",
    ]
