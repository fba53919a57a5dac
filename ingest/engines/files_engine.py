"""Pictures that are there already: files by their paths, or bytes in a column of Parquet; no network.

A request's `url` is a path (or the URL of a file on a storage of fsspec's, but not of the web), or
`FILE.parquet#COLUMN/ROW`, the bytes in that row, counted from 0.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.engines.cores import cores
from ingest.fetched import Fetched, Request
from ingest.images import ImageProcessor
from ingest.images.isolated import IsolatedProcessor
from ingest.settings import IngestSettings
from shards.ranges import open_file

_IN_ROW = re.compile(r"(.+)#(.+)/(\d+)", re.DOTALL)
_AHEAD = 4
"""Pictures for each thread that are read and decoded before their caller takes them."""
_OPEN = 4
"""Row groups kept, of all threads together: rows come in order."""


class FilesEngine:
    """As many threads as this process has cores to itself, each reading and decoding."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings.image
        threads = cores()
        self._ahead = _AHEAD * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._images = ImageProcessor(settings.image)
        self._columns = _Columns()

    def fetch(self, requests: Sequence[Request], *, careful: bool = False) -> Generator[tuple[int, Fetched]]:
        """As in the protocol; in the order of the requests."""
        processor = self._isolated if careful else self._images
        flying: deque[tuple[int, Future[Fetched]]] = deque()
        try:
            for place, request in enumerate(requests):
                flying.append((place, self._pool.submit(self._one, request, processor)))
                if len(flying) > self._ahead:
                    done, future = flying.popleft()
                    yield done, future.result()
            while flying:
                done, future = flying.popleft()
                yield done, future.result()
        finally:
            for _, future in flying:
                future.cancel()

    def forget_failures(self) -> None:
        """There is nothing to forget."""

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._images.close()
        if "_isolated" in vars(self):
            self._isolated.close()

    @cached_property
    def _isolated(self) -> IsolatedProcessor:
        return IsolatedProcessor(self._settings)

    def _one(self, request: Request, processor: ImageProcessor | IsolatedProcessor) -> Fetched:
        started, clock = time.time(), time.monotonic()
        found = self._read(request.url)
        if isinstance(found, bytes):
            found = processor.process(found, request.digest, request.boxes)
        return replace(found, started=started, seconds=time.monotonic() - clock, attempts=1)

    def _read(self, url: str) -> bytes | Fetched:
        if url.lower().startswith(("http://", "https://")):
            # Here no address is refused, and nobody's wishes are asked for.
            return Fetched(error_class="bad_url", error_message="it is on the web: `clipstill ingest` fetches it")
        most = self._settings.max_bytes
        try:
            if (row := _IN_ROW.fullmatch(url)) is not None:
                body = self._columns.value(row[1], row[2], int(row[3]))
            else:
                with _opened(url) as file:
                    body = file.read(most + 1)
        except MemoryError:
            raise  # that is no fact about the file
        except Exception as error:  # noqa: BLE001 - storages and Parquet raise anything; it is this row's failure
            return Fetched(error_class="no_file", error_message=_reason(error))
        if body is None:
            return Fetched(error_class="no_file", error_message="the row has no bytes")
        return body


class _Columns:
    """Values of binary columns by row; a few row groups of them stay in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # In place of a row group that is damaged, what was raised: each of its rows would read all of it again.
        self._groups: OrderedDict[tuple[str, str, int], pa.ChunkedArray | Exception] = OrderedDict()
        self._firsts: dict[str, list[int]] = {}

    def value(self, path: str, column: str, row: int) -> bytes | None:
        with self._lock:
            firsts = self._firsts.get(path) or self._rows_of(path)
            group = next((n for n in range(len(firsts) - 1) if row < firsts[n + 1]), None)
            if group is None:
                raise IndexError(f"row {row} of {firsts[-1]}")
            if (path, column, group) not in self._groups:
                self._groups[path, column, group] = _row_group(path, column, group)
                if len(self._groups) > _OPEN:
                    self._groups.popitem(last=False)
            values = self._groups[path, column, group]
        if isinstance(values, Exception):
            raise values
        found = values[row - firsts[group]].as_py()
        # The hub's image columns are a structure of bytes and path.
        found = found.get("bytes") if isinstance(found, dict) else found
        return found if found is None else bytes(found)

    def _rows_of(self, path: str) -> list[int]:
        with _opened(path) as file:
            metadata = pq.ParquetFile(file).metadata
        firsts = [0]
        for group in range(metadata.num_row_groups):
            firsts.append(firsts[-1] + metadata.row_group(group).num_rows)
        self._firsts[path] = firsts
        return firsts


def _row_group(path: str, column: str, group: int) -> pa.ChunkedArray | Exception:
    """A column of a row group, or why it cannot be had: of that, what no second look would mend."""
    try:
        with _opened(path) as file:
            values = pq.ParquetFile(file).read_row_group(group, columns=[column])[column]
            values.validate(full=True)
            return values
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the storage; what Arrow finds damaged has no number
        return ValueError(f"damaged, or needs more memory than there is ({error})")


def _opened(url: str) -> IO[bytes]:
    if "://" not in url:
        # A pipe would keep whoever opens it.
        if Path(url).exists() and not Path(url).is_file():
            raise OSError(errno.EINVAL, "Not a regular file")
        if "\ufffd" in url and not Path(url).exists():
            raise OSError(errno.ENOENT, "No such file: a name that is not UTF-8 text must be renamed to be read")
        return Path(url).open("rb")
    return open_file(url)


def _reason(error: Exception) -> str:
    """In one line, without the path: the row has it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
