"""The contenders: how each is run on a list of URLs, and what one run of it came to.

All get the same list, the same server, two processes, 256 pixels with a white border, JPEG quality 95, SHA-256 and
EXIF, except Daft, which knows no border, quality, hash or EXIF and does less.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.measure import Usage, measured

SIZE = 256
_HERE = Path(__file__).parent
_BIN = Path(sys.executable).parent
_LIMIT = 600.0
"""Seconds after which a run is given up."""


@dataclass(frozen=True)
class Place:
    """Where contenders run: a scratch folder, the server's process, the certificates to trust, rows a shard.

    `enter`: what to put before a command, if it runs in a network of our own.
    """

    work: Path
    server: int
    trusted: Path
    shard_size: int
    enter: tuple[str, ...] = ()

    def run(self, command: list[str], **env: str) -> Usage:
        """Raises `RuntimeError` with the end of its output if the command fails."""
        usual = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        # img2dataset asks a package registry for versions at import unless told not to.
        env = {**usual, "NO_ALBUMENTATIONS_UPDATE": "1", **env}
        log = self.work / "log"
        usage = measured([*self.enter, *command], env=env, log=log, watch=self.server, limit=_LIMIT)
        if usage.status != 0:
            raise RuntimeError(f"{command[:3]} ended with {usage.status}:\n{log.read_text(errors='replace')[-3000:]}")
        return usage


@dataclass(frozen=True)
class Run:
    """One run of a contender: `images` stored between `start` and `end` (since 1970), `stored` bytes of tars or images.

    `start` is the first fetch (img2dataset: the first shard), `end` the last finished shard: what comes before and
    after (imports, starting processes) does not grow with the list, and is in the figures named `whole`.
    """

    usage: Usage
    start: float
    end: float
    images: int
    stored: int

    def figures(self, rows: int, good: int) -> dict[str, float]:
        """Images and rows a second, good rows that were lost, CPU in ms an image, memory in MB."""
        milliseconds = 1000 / self.images
        return {
            "images": self.images,
            "lost": good - self.images,
            "rows_rate": rows / (self.end - self.start),
            "rows_rate_whole": rows / self.usage.seconds,
            "rate": self.images / (self.end - self.start),
            "rate_whole": self.images / self.usage.seconds,
            "seconds": self.end - self.start,
            "seconds_whole": self.usage.seconds,
            "cpu_ms": self.usage.cpu(self.start, self.end) * milliseconds,
            "cpu_ms_whole": self.usage.cpu() * milliseconds,
            "server_cpu_ms": self.usage.watched_cpu(self.start, self.end) * milliseconds,
            "server_cpu_share": self.usage.watched_cpu(self.start, self.end) / (self.end - self.start),
            "memory_mb": self.usage.pss / 1e6,
            "largest_process_mb": self.usage.largest / 1e6,
            "stored_kb": self.stored / self.images / 1e3,
        }


Contender = Callable[[Place, Path], Run]
"""Downloads the images of a list (Parquet with `url` and `caption`) in a place."""


def ours(*options: str, workers: int = 2) -> Contender:
    """`clipstill ingest` on Ray."""

    def run(place: Place, urls: Path) -> Run:
        out = _empty(place.work / "out")
        usage = place.run(ours_command(place, urls, out, workers, *options))
        causes, started = read_ledgers(out)
        # The record is published after everything else of its shard.
        ends = [path.stat().st_mtime for path in (out / "_records").glob("*.json")]
        return Run(usage, started, max(ends), causes.get("success", 0), _tars(out))

    return run


def hostile(place: Place, urls: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Ours with one worker on a list that may fail: time and memory, and how the rows ended."""
    out = _empty(place.work / "out")
    usage = place.run(ours_command(place, urls, out, 1, "--no-stop"))
    causes, _ = read_ledgers(out)
    figures = {"seconds_whole": usage.seconds, "memory_mb": usage.pss / 1e6, "largest_process_mb": usage.largest / 1e6}
    return figures, dict(sorted(causes.items()))


def ours_command(place: Place, urls: Path, out: Path, workers: int, *options: str) -> list[str]:
    chosen = {
        "--format": "parquet",
        "--url-column": "url",
        "--caption-column": "caption",
        "--name": "bench",
        "--out": str(out),
        "--shard-size": str(place.shard_size),
        "--resize-mode": "border",
        "--image-size": str(SIZE),
        "--quality": "95",
        "--allow-address": "127.0.0.0/8",
        "--ca-file": str(place.trusted),
        "--workers": str(workers),
    }
    flat = [word for option in chosen.items() for word in option]
    return [str(_BIN / "clipstill"), "ingest", str(urls), *flat, *options]


def read_ledgers(out: Path) -> tuple[dict[str, int], float]:
    """Rows by cause ("success" for none), and when the first fetch began (since 1970), of a dataset of ours."""
    causes: dict[str, int] = {}
    started = []
    for path in out.glob("[0-9]*.parquet"):
        table = pq.read_table(path, columns=["error_class", "started"])
        for row in pc.value_counts(table["error_class"].fill_null("success")).to_pylist():
            causes[row["values"]] = causes.get(row["values"], 0) + row["counts"]
        started.append(pc.min(table["started"]).as_py().timestamp())
    return causes, min(started)


def img2dataset(environment: Path, threads: int, *options: str, shard_size: int | None = None) -> Contender:
    """img2dataset as it comes (or `--shared-tls`), from an environment of its own, with so many threads a process.

    `shard_size`: rows a shard, the place's unless given.
    """

    def run(place: Place, urls: Path) -> Run:
        out = _empty(place.work / "out")
        arguments = {
            "url_list": str(urls),
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "output_folder": str(out),
            "output_format": "webdataset",
            "processes_count": 2,
            "thread_count": threads,
            "image_size": SIZE,
            "resize_mode": "border",
            "encode_quality": 95,
            "extract_exif": True,
            "compute_hash": "sha256",
            "number_sample_per_shard": shard_size or place.shard_size,
            "enable_wandb": False,
            "distributor": "multiprocessing",
            "retries": 0,
        }
        command = [_python(environment), str(_HERE / "run_img2dataset.py"), json.dumps(arguments), *options]
        usage = place.run(command, SSL_CERT_FILE=str(place.trusted))
        stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
        return Run(
            usage,
            min(one["start_time"] for one in stats),
            max(one["end_time"] for one in stats),
            sum(one["successes"] for one in stats),
            _tars(out),
        )

    return run


def daft(environment: Path) -> Contender:
    """Daft's native runner, from an environment of its own."""

    def run(place: Place, urls: Path) -> Run:
        out = _empty(place.work / "out")
        # What fits into the border of an image of 4:3; its own limit of connections, raised to ours.
        shape = [str(SIZE), str(SIZE * 3 // 4), "128"]
        command = [_python(environment), str(_HERE / "run_daft.py"), str(urls), str(out), *shape]
        usage = place.run(command, DAFT_ANALYTICS_ENABLED="0", DO_NOT_TRACK="true")
        window = json.loads((out / "window.json").read_text())
        return Run(usage, window["start"], window["end"], window["images"], window["stored"])

    return run


def _python(environment: Path) -> str:
    return str(environment / "bin" / "python")


def _empty(folder: Path) -> Path:
    """The path of a folder that is not there: contenders make it themselves."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _tars(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("*.tar"))
