"""What the ledgers of a dataset add up to: counts, spreads and rates, shard by shard in constant memory.

A row's state is its key's row in the highest shard (`retry.py`), so shards are read from the last to the first. What
the network did - fetches by time of day and how long they took - counts every row, the superseded ones too.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.ledger import reading, result_fields
from shards import Folder, ShardRecord, UserError
from shards.arrow_files import read_arrow, refuse_other_columns

_HOSTS = 200_000
"""With more hosts than this, those with the fewest rows are forgotten."""

_COLUMNS = [
    *("key", "url", "status", "error_class", "error_message", "original_width", "original_height"),
    *("host", "bytes", "started", "seconds"),
]


_TYPES = {"key": pa.string(), "url": pa.string(), **{field.name: field.type for field in result_fields("sha256")}}
_LEDGER = pa.schema([pa.field(name, _TYPES[name], nullable=name not in {"key", "status"}) for name in _COLUMNS])
_SIZES = pa.schema([pa.field("image_size", pa.int64(), nullable=False)])


class Spread:
    """Positive numbers counted in bins of equal ratio: any percentile to 1 %, whatever their number."""

    _FINE = 240
    """Bins a decade."""
    _LOW, _DECADES = 1e-4, 17

    def __init__(self) -> None:
        self._counts = np.zeros(self._FINE * self._DECADES, np.int64)
        self.smallest, self.largest = np.inf, 0.0

    def add(self, values: np.ndarray) -> None:
        """Count `values`, any shape; what is smaller than 0.0001 counts as that."""
        if values.size:
            self.smallest, self.largest = min(self.smallest, values.min()), max(self.largest, values.max())
            places = np.floor(np.log10(np.maximum(values, self._LOW) / self._LOW) * self._FINE).astype(np.int64)
            self._counts += np.bincount(places.clip(0, self._counts.size - 1).ravel(), minlength=self._counts.size)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the numbers do not exceed, within 1 %; there must be numbers."""
        place = int(np.searchsorted(np.cumsum(self._counts), max(1, np.ceil(self.count * percent / 100))))
        middle = self._LOW * 10 ** ((place + 0.5) / self._FINE)
        return float(np.clip(middle, self.smallest, self.largest))

    def bars(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts in 20 bins a decade, from the first to the last that is not empty, and log10 of the bins' edges."""
        counts = self._counts.reshape(-1, self._FINE // 20).sum(axis=1)
        used = np.flatnonzero(counts)
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        return counts[first:last], np.log10(self._LOW) + np.arange(first, last + 1) / 20


class Timeline:
    """Fetches, images and bytes by the time they arrived, in bins that widen as the run gets longer."""

    _BINS = 4096
    PAUSE = 300.0
    """Seconds without any arrival that count as a pause, not as slowness."""

    def __init__(self) -> None:
        self.width = 1.0
        self._bins: dict[int, np.ndarray] = {}

    def add(self, when: np.ndarray, images: np.ndarray, size: np.ndarray) -> None:
        """Count fetches: `when` float64 seconds since 1970, `images` 1 or 0, `size` bytes; all of shape (n,)."""
        slots, inverse = np.unique(np.floor(when / self.width).astype(np.int64), return_inverse=True)
        sums = np.stack([np.bincount(inverse, weights, slots.size) for weights in (None, images, size)], axis=1)
        self._merge(zip(slots.tolist(), sums, strict=True))
        while len(self._bins) > self._BINS:
            self.width *= 2
            halves, self._bins = self._bins, {}
            self._merge((slot // 2, row) for slot, row in halves.items())

    def _merge(self, rows: Iterable[tuple[int, np.ndarray]]) -> None:
        for slot, row in rows:
            self._bins[slot] = self._bins.get(slot, 0) + row

    def rates(self, most: int = 120) -> Rates | None:
        """At most `most` equal bins over the time that was not paused; None if nothing was fetched."""
        if not self._bins:
            return None
        slots = np.array(sorted(self._bins))
        values = np.stack([self._bins[slot] for slot in slots.tolist()])
        idle = np.diff(slots) - 1
        paused = np.where(idle * self.width >= self.PAUSE, idle, 0)
        places = slots - slots[0] - np.concatenate([[0], np.cumsum(paused)])
        total = int(places[-1]) + 1
        step = -(-total // most)
        edges = np.minimum(np.arange(-(-total // step) + 1) * step, total) * self.width
        sums = np.stack([np.bincount(places // step, column, edges.size - 1) for column in values.T], axis=1)
        breaks = np.flatnonzero(paused)
        return Rates(
            started=float(slots[0] * self.width),
            ended=float((slots[-1] + 1) * self.width),
            edges=edges,
            a_second=sums / np.diff(edges)[:, None],
            pauses=[(float((places[at] + 1) * self.width), float(paused[at] * self.width)) for at in breaks],
        )


@dataclass(frozen=True)
class Rates:
    """How fast a run went. `edges` (n + 1,) in seconds of running, pauses left out; `a_second` (n, 3): fetches,
    images and bytes a second. `started` and `ended` in seconds since 1970; `pauses`: seconds of running before each,
    and its length in seconds.
    """

    started: float
    ended: float
    edges: np.ndarray
    a_second: np.ndarray
    pauses: list[tuple[float, float]]

    @property
    def running(self) -> float:
        return float(self.edges[-1])

    @property
    def means(self) -> np.ndarray:
        """(3,): fetches, images and bytes a second, over all the time that was not paused."""
        return np.asarray(np.diff(self.edges) @ self.a_second / self.running)


@dataclass(slots=True)
class Host:
    """Of one host: the rows that name it and are no duplicates or filtered, their bytes, the failed ones by cause."""

    rows: int = 0
    bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)


@dataclass
class Tally:
    """What `tally` counted. `rows` by status; failed rows by cause with an example's URL and message.

    `short`: how many rows a host's figures may lack, because hosts with few rows were forgotten. `original_bytes`,
    `original_sides` (pixels, the shorter one) and `stored_bytes` are of samples; `seconds` of fetches, by whether
    they gave an image. `again` are the rows that a later shard fetched again, `recovered` those of them that became
    samples.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    short: int = 0
    original_sides: Spread = field(default_factory=Spread)
    original_bytes: Spread = field(default_factory=Spread)
    stored_bytes: Spread = field(default_factory=Spread)
    seconds: dict[bool, Spread] = field(default_factory=lambda: {True: Spread(), False: Spread()})
    timeline: Timeline = field(default_factory=Timeline)
    again: int = 0
    recovered: int = 0

    @property
    def rows(self) -> int:
        return self.statuses.total()

    @property
    def wanted(self) -> int:
        """The rows that were to be fetched: no duplicates, whose captions are kept, and none that was filtered out."""
        return self.rows - self.statuses["duplicate"] - self.statuses["filtered"]

    def add_fetches(self, rows: pa.Table) -> None:
        """Count what the network did for these ledger rows."""
        rows = rows.filter(pc.is_valid(rows["started"]))
        began = rows["started"].cast(pa.int64()).to_numpy() / 1000
        took = pc.fill_null(rows["seconds"], 0.0).to_numpy().astype(np.float64)
        images = pc.equal(rows["status"], "success").to_numpy()
        self.timeline.add(began + took, images, pc.fill_null(rows["bytes"], 0).to_numpy())
        for outcome, spread in self.seconds.items():
            spread.add(took[images == outcome])

    def add_states(self, rows: pa.Table) -> None:
        """Count what became of these ledger rows."""
        groups = rows.group_by(["status", "error_class", "host"]).aggregate([([], "count_all"), ("bytes", "sum")])
        for group in groups.to_pylist():
            status, cause, name, count = (group[column] for column in ("status", "error_class", "host", "count_all"))
            self.statuses[status] += count
            if status in {"duplicate", "filtered"}:
                continue
            if cause is not None:
                self.causes[cause] += count
            if name is not None:
                host = self.hosts.setdefault(name, Host())
                host.rows += count
                host.bytes += group["bytes_sum"] or 0
                if cause is not None:
                    host.failed[cause] += count
        self._forget_small_hosts()
        for cause in self.causes.keys() - self.examples.keys():
            row = rows.filter(pc.equal(rows["error_class"], cause)).slice(0, 1).to_pylist()[0]
            self.examples[cause] = (row["url"] or "", row["error_message"] or "")
        samples = rows.filter(pc.equal(rows["status"], "success"))
        sides = pc.min_element_wise(samples["original_width"], samples["original_height"])
        self.original_sides.add(pc.drop_null(sides).to_numpy())
        self.original_bytes.add(pc.drop_null(samples["bytes"]).to_numpy())

    def _forget_small_hosts(self) -> None:
        if len(self.hosts) > _HOSTS:
            order = sorted(self.hosts, key=lambda name: self.hosts[name].rows, reverse=True)
            self.short += self.hosts[order[_HOSTS // 2]].rows
            self.hosts = {name: self.hosts[name] for name in order[: _HOSTS // 2]}


def tally(folder: Folder, name: str, rows: int, records: dict[int, ShardRecord], retries: Container[int]) -> Tally:
    """Read the ledgers and indexes of `records`, published shards of the dataset `name` whose list has so many `rows`.
    Shards among `retries` fetched rows of others again.

    Raises `UserError` if one of them is missing or damaged.
    """
    result = Tally()
    retried = any(shard in retries for shard in records)
    seen = np.zeros(rows if retried else 0, bool)
    for shard in sorted(records, reverse=True):
        for batch in _ledger(folder, f"{shard:05d}.parquet"):
            result.add_fetches(batch)
            states = batch
            if retried:
                with reading(folder, f"{shard:05d}.parquet"):
                    digits = pc.utf8_slice_codeunits(batch["key"], len(name) + 1)
                    numbers = digits.cast(pa.uint32()).to_numpy()
                    if numbers.size and numbers.max() >= rows:
                        raise ValueError(f"it has row {numbers.max()} of {rows}")
                states = batch.filter(pa.array(~seen[numbers]))
                seen[numbers] = True
            result.add_states(states)
            if shard in retries:
                result.again += states.num_rows
                result.recovered += pc.sum(pc.equal(states["status"], "success")).as_py() or 0
        index = records[shard].file(".index.arrow").name
        with reading(folder, index):
            table = read_arrow(folder.read(index))
            refuse_other_columns(table, _SIZES)
            sizes = table["image_size"].to_numpy()
        result.stored_bytes.add(sizes)
    return result


def _ledger(folder: Folder, name: str) -> Iterator[pa.Table]:
    with reading(folder, name):
        source = folder.path / name if folder.is_local else io.BytesIO(folder.read(name))
        file = pq.ParquetFile(source, page_checksum_verification=True)
    if absent := [column for column in _COLUMNS if column not in file.schema_arrow.names]:
        raise UserError(f"{name} has no column {absent[0]}", where=str(folder), do="Ingest it again to get a report")
    batches = file.iter_batches(columns=_COLUMNS)
    read = 0
    while True:
        with reading(folder, name):
            batch = next(batches, None)
            if batch is not None:
                _check(batch)
                read += batch.num_rows
            elif read != file.metadata.num_rows:
                # Columns of different lengths are read as far as the shortest.
                raise ValueError(f"it has {read} rows instead of {file.metadata.num_rows}")
        if batch is None:
            return
        yield pa.Table.from_batches([batch])


def _check(rows: pa.RecordBatch) -> None:
    """Raise `ValueError` for columns of other types and for numbers that no fetch can have."""
    rows.validate(full=True)
    refuse_other_columns(rows, _LEDGER)
    for name, most in {"started": 1 << 42, "seconds": 1e9, "bytes": 1 << 50}.items():
        values = pc.drop_null(rows[name])
        numbers = (values.cast(pa.int64()) if name == "started" else values).to_numpy(zero_copy_only=False)
        if not ((numbers >= 0) & (numbers < most)).all():
            raise ValueError(f"it has {name} from {numbers.min()} to {numbers.max()}")
