"""The lists of URLs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.ingest.crawl import crawl
from benchmarks.ingest.server import HOSTS

_REFUSED = "http://127.0.0.1:1"
"""A port where nobody listens."""
_NAMES = 400
"""Good hosts in a network of our own."""


@dataclass(frozen=True)
class Urls:
    """A list in a file, Parquet with `url` and `caption`; `good` of its `rows` lead to a picture."""

    path: Path
    rows: int
    good: int


@dataclass(frozen=True)
class Lists:
    """Writes lists into a folder for a server's ports; each call overwrites the last list."""

    folder: Path
    ports: dict[str, int]

    def photos(self, count: int, scheme: str = "http", *, group: str = "photo", query: str = "", dead: int = 0) -> Urls:
        """`count` URLs, all different, dealt over the hosts; `dead` of them, always the same, are refused."""
        urls = [self._url(scheme, number, f"{group}/{number}.jpg{query}") for number in range(count)]
        for place in random.Random("dead").sample(range(count), dead):
            urls[place] = f"{_REFUSED}/{place}.jpg"
        return _write(self.folder, urls, count - dead)

    def mixed(self, count: int, groups: Sequence[str]) -> Urls:
        """`count` URLs dealt over the hosts, their groups in turns."""
        urls = [self._url("http", number, f"{groups[number % len(groups)]}/{number}") for number in range(count)]
        return _write(self.folder, urls, count)

    def hostile(self, count: int) -> Urls:
        """Two photos of 5 MB for each of the bodies made to cost memory."""
        groups = ("heavy", "heavy", "hostile")
        urls = [self._url("http", number, f"{groups[number % 3]}/{number // 3}?{number}") for number in range(count)]
        return _write(self.folder, urls, count)

    def _url(self, scheme: str, number: int, path: str) -> str:
        return f"{scheme}://{HOSTS[number % len(HOSTS)]}:{self.ports[scheme]}/{path}"


def dead(folder: Path, count: int) -> Urls:
    """Photos in a network of our own: 1 % at hosts that never answer, 3 % at names that no one answers."""
    urls = _photos(count)
    for place in _places("silent", count, 0.04):
        urls[place] = f"http://silent{place}.example/photo/{place}.jpg"
    for place in _places("silent", count, 0.01):
        urls[place] = f"http://5.5.{place // 250 % 250}.{6 + place % 240}/photo/{place}.jpg"
    return _write(folder, urls, count - len(_places("silent", count, 0.04)))


def slow(folder: Path, count: int) -> Urls:
    """Photos there, of which 5 % take 2 to 6 seconds to begin and 2 % drip for 5; all are good."""
    urls = _photos(count)
    for place in _places("slow", count, 0.07):
        urls[place] += f"?after={2 + place % 5}"
    for place in _places("slow", count, 0.02):
        urls[place] = urls[place].partition("?")[0] + "?drip=5"
    return _write(folder, urls, count)


def crawled(folder: Path, count: int) -> Urls:
    """What a published crawl found, in a network of our own (`crawl.py`)."""
    urls, good = crawl(count, _NAMES)
    return _write(folder, urls, good)


def _photos(count: int) -> list[str]:
    return [f"http://h{number % _NAMES}.example/photo/{number}.jpg" for number in range(count)]


def _places(name: str, count: int, share: float) -> list[int]:
    """This share of the places, ever the same; a smaller share's are among a larger one's."""
    return random.Random(name).sample(range(count), count)[: round(share * count)]


def _write(folder: Path, urls: list[str], good: int) -> Urls:
    path = folder / "list.parquet"
    captions = [f"photo {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    return Urls(path, len(urls), good)
