"""The lists of URLs, and where everything is kept between runs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.ingest.server import HOSTS

_REFUSED = "http://127.0.0.1:1"
"""A port where nobody listens."""


@dataclass(frozen=True)
class Lists:
    """Writes lists into a folder for a server's ports; each call overwrites the last list."""

    folder: Path
    ports: dict[str, int]

    def photos(self, count: int, scheme: str = "http", *, group: str = "photo", query: str = "", dead: int = 0) -> Path:
        """`count` URLs, all different, dealt over the hosts; `dead` of them, always the same, are refused."""
        urls = [self._url(scheme, number, f"{group}/{number}.jpg{query}") for number in range(count)]
        for place in random.Random("dead").sample(range(count), dead):
            urls[place] = f"{_REFUSED}/{place}.jpg"
        return self._write(urls)

    def hostile(self, count: int) -> Path:
        """Two photos of 5 MB for each of the bodies made to cost memory."""
        groups = ("heavy", "heavy", "hostile")
        return self._write(
            [self._url("http", number, f"{groups[number % 3]}/{number // 3}?{number}") for number in range(count)]
        )

    def _url(self, scheme: str, number: int, path: str) -> str:
        return f"{scheme}://{HOSTS[number % len(HOSTS)]}:{self.ports[scheme]}/{path}"

    def _write(self, urls: list[str]) -> Path:
        path = self.folder / "list.parquet"
        captions = [f"photo {number}" for number in range(len(urls))]
        pq.write_table(pa.table({"url": urls, "caption": captions}), path)
        return path
