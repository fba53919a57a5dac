"""What is compared, in turns, and what has to come out: `python -m benchmarks.ingest [--quick]`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.ingest import contenders, images, quality
from benchmarks.ingest.certificate import make_certificate
from benchmarks.ingest.contenders import Contender, Place, Run, ours
from benchmarks.ingest.environments import PEERS, install
from benchmarks.ingest.page import write_page
from benchmarks.ingest.server import HOSTS, serving
from benchmarks.ingest.workload import Lists
from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions

_ROOT = Path(__file__).parents[2]
_BENCH = _ROOT / ".bench"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    photos: int = 8000
    large: int = 1000
    rounds: int = 3
    https_rounds: int = 2
    threads: tuple[int, ...] = (16, 64, 256)
    trial: int = 1000
    dead_urls: int = 1000
    hostile: int = 120
    quality: int = 300
    shard_size: int = 1000


QUICK = Sizes(
    photos=400,
    large=60,
    rounds=1,
    https_rounds=1,
    threads=(16,),
    trial=100,
    dead_urls=200,
    hostile=30,
    quality=20,
    shard_size=100,
)


class Benchmark:
    """Each method measures one thing and returns its figures; `goals` is what the methods add to."""

    def __init__(self, sizes: Sizes, place: Place, lists: Lists, peers: Path) -> None:
        self._sizes, self._place, self._lists = sizes, place, lists
        self._peers = peers
        self.goals: list[Goal] = []

    def threads(self) -> dict[str, Any]:
        """img2dataset's threads a process, chosen by a trial of each so that it is seen at its best."""
        trial = self._sizes.trial
        tried = {
            # Fewer over https, where it takes longest for each.
            "http": self._try(self._lists.photos(trial)),
            "https": self._try(self._lists.photos(trial // 5, "https")),
        }
        return {
            scheme: {"rates": rates, "best": max(rates, key=lambda threads: rates[threads])}
            for scheme, rates in tried.items()
        }

    def _try(self, urls: Path) -> dict[int, float]:
        environment = self._peers / "img2dataset"
        return {
            threads: self._run(f"img2dataset, {threads} threads", contenders.img2dataset(environment, threads), urls)[
                "rate"
            ]
            for threads in self._sizes.threads
        }

    def http(self, threads: int, *, daft: bool) -> dict[str, Any]:
        """800x600 over http: everyone, and our mode that decodes every pixel."""
        against: dict[str, Contender] = {
            "ours": ours(),
            "img2dataset": contenders.img2dataset(self._peers / "img2dataset", threads),
            "ours, exact": ours("--exact"),
        }
        if daft:
            against["daft"] = contenders.daft(self._peers / "daft")
        part = self._turns(against, self._sizes.rounds, lambda: self._lists.photos(self._sizes.photos))
        self._at_least("http, 800x600: images/s, times img2dataset", part["ratios"]["img2dataset"], 3)
        exact = spread(_per_round(part, "ours, exact", "img2dataset"))
        part["ratios"]["img2dataset, by ours exact"] = exact
        self._at_least("http, 800x600, every pixel decoded: images/s, times img2dataset", exact, 1.7)
        cpu = part["contenders"]["ours"]["cpu_ms"]["median"]
        self.goals.append(Goal(name="CPU an image of 800x600 over http, ms", value=cpu, at_most=1.8))
        return part

    def https(self, threads: int) -> dict[str, Any]:
        """800x600 over https; img2dataset also with its TLS mended, and ours without the use of a connection twice."""
        environment = self._peers / "img2dataset"
        part = self._turns(
            {
                "ours": ours(),
                "img2dataset": contenders.img2dataset(environment, threads),
                "img2dataset, one TLS context": contenders.img2dataset(environment, threads, "--shared-tls"),
            },
            self._sizes.https_rounds,
            lambda: self._lists.photos(self._sizes.photos, "https"),
        )
        self._at_least("https, 800x600: images/s, times img2dataset", part["ratios"]["img2dataset"], 10)
        mended = part["ratios"]["img2dataset, one TLS context"]
        self._at_least("https, 800x600: images/s, times img2dataset with one TLS context", mended, 2.5)
        return part

    def https_closed(self) -> dict[str, Any]:
        """Ours over https when every answer ends its connection, as on lists with a host for each image."""
        count = self._sizes.photos // 2
        return self._turns({"ours": ours()}, 1, lambda: self._lists.photos(count, "https", query="?close"))

    def large(self, threads: int) -> dict[str, Any]:
        """2048x1536 over http."""
        environment = self._peers / "img2dataset"
        part = self._turns(
            {"ours": ours(), "img2dataset": contenders.img2dataset(environment, threads)},
            self._sizes.rounds,
            lambda: self._lists.photos(self._sizes.large, group="large"),
        )
        self._at_least("http, 2048x1536: images/s, times img2dataset", part["ratios"]["img2dataset"], 3)
        return part

    def dead_hosts(self) -> dict[str, Any]:
        """What it costs that 5 % of the URLs are refused."""
        count = self._sizes.dead_urls
        runs: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(self._sizes.rounds):
            for name, dead in (("without", 0), ("with", count // 20)):
                urls = self._lists.photos(count, dead=dead)
                runs[name].append(self._run(f"{count} URLs {name} dead hosts", ours(), urls, dead)["seconds"])
        more = spread([dead - alive for dead, alive in zip(runs["with"], runs["without"], strict=True)])
        name = f"seconds more for {count} URLs when 5 % are refused"
        self.goals.append(Goal(name=name, value=more["median"], at_most=1))
        return {"seconds": {name: spread(values) for name, values in runs.items()}, "more": more}

    def memory(self) -> dict[str, Any]:
        """One worker on bodies made to cost memory."""
        figures, causes = contenders.hostile(self._place, self._lists.hostile(self._sizes.hostile))
        say(f"  {'hostile bodies':32} {figures['largest_process_mb']:7.0f} MB in the largest process, {causes}")
        name = "memory of a worker on hostile bodies, MB"
        self.goals.append(Goal(name=name, value=figures["largest_process_mb"], at_most=700))
        return {"figures": figures, "causes": causes}

    def quality(self, photos: Path) -> dict[str, Any]:
        """PSNR on photos that were not made here; judged without the encoder's loss, which all share."""
        if not photos.exists():
            say(f"quality is not measured: there is no {photos}")
            return {"skipped": f"no {photos.name}"}
        figures = quality.compare(photos, self._sizes.quality, contenders.SIZE)
        alone = figures["lossless"]
        say(f"  PSNR, dB: { ({name: round(values['median'], 2) for name, values in alone.items()}) }")
        name = "PSNR against full decode and Lanczos, dB"
        self.goals.append(Goal(name=name, value=alone["default"]["median"], at_least=40))
        apart = max(abs(alone["exact"][kind] - alone["img2dataset"][kind]) for kind in alone["exact"])
        self.goals.append(Goal(name="PSNR of the exact mode, dB from img2dataset's", value=apart, at_most=0.01))
        return figures

    def _turns(self, against: dict[str, Contender], rounds: int, urls: Callable[[], Path]) -> dict[str, Any]:
        """All contenders once in every round; the figures of each, and by round how many times the others ours is."""
        listed = urls()
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in against}
        for _ in range(rounds):
            for name, contender in against.items():
                runs[name].append(self._run(name, contender, listed))
        part: dict[str, Any] = {
            "contenders": {
                name: {figure: spread([one[figure] for one in all_runs]) for figure in all_runs[0]}
                for name, all_runs in runs.items()
            }
        }
        others = [name for name in against if not name.startswith("ours")]
        part["ratios"] = {name: spread(_per_round(part, "ours", name)) for name in others}
        part["ratios_whole"] = {name: spread(_per_round(part, "ours", name, "rate_whole")) for name in others}
        return part

    def _run(self, name: str, contender: Contender, urls: Path, dead: int = 0) -> dict[str, float]:
        run: Run = contender(self._place, urls)
        wanted = pq.read_metadata(urls).num_rows - dead
        if run.images != wanted:
            raise RuntimeError(f"{name} stored {run.images} images of {wanted}: its rate means nothing")
        figures = run.figures()
        say(
            f"  {name:32} {figures['rate']:7.1f} images/s ({figures['rate_whole']:.1f} with start-up), "
            f"{figures['cpu_ms']:6.2f} ms CPU an image, {figures['memory_mb']:6.0f} MB"
        )
        return figures

    def _at_least(self, name: str, ratio: dict[str, Any], bound: float) -> None:
        self.goals.append(Goal(name=name, value=ratio["median"], at_least=bound))


def _per_round(part: dict[str, Any], first: str, second: str, figure: str = "rate") -> list[float]:
    one, other = (part["contenders"][name][figure]["runs"] for name in (first, second))
    return [a / b for a, b in zip(one, other, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.ingest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few hundred images, once; nothing is judged")
    parser.add_argument("--photos", type=Path, default=quality.PHOTOS, help="Parquet with photos in a column `jpeg`")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    began = time.monotonic()
    before = machine()
    body, goals = _measure(sizes, args.photos)
    body = {
        "machine": before,
        "versions": versions("clipstill", "opencv-python-headless", "pillow", "pyarrow", "ray") | _peer_versions(),
        "seconds": time.monotonic() - began,
        **body,
    }
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "ingest", body, goals, write_page=write_page, judged=not args.quick)


def _peer_versions() -> dict[str, str]:
    return dict(packages[0].split("==") for packages in PEERS.values())


def _measure(sizes: Sizes, photos: Path) -> tuple[dict[str, Any], list[Goal]]:
    work = _BENCH / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    say("making images and the peers' environments")
    served = images.make(_BENCH / "served")
    trusted = make_certificate(served, HOSTS)
    if reason := install(_BENCH, "img2dataset"):
        raise SystemExit(f"img2dataset cannot be installed: {reason}")
    if no_daft := install(_BENCH, "daft"):
        say(f"Daft takes no part, it cannot be installed: {no_daft}")
    with serving(served) as (server, ports):
        place = Place(work, server, trusted, sizes.shard_size)
        benchmark = Benchmark(sizes, place, Lists(work, ports), _BENCH)
        say("img2dataset's best number of threads")
        threads = benchmark.threads()
        best = {scheme: threads[scheme]["best"] for scheme in threads}
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "http": lambda: benchmark.http(best["http"], daft=no_daft is None),
            "https": lambda: benchmark.https(best["https"]),
            "https_closed": benchmark.https_closed,
            "large": lambda: benchmark.large(best["http"]),
            "dead_hosts": benchmark.dead_hosts,
            "memory": benchmark.memory,
            "quality": lambda: benchmark.quality(photos),
        }
        body: dict[str, Any] = {"images": images.describe(served), "threads": threads, "no_daft": no_daft}
        for name, measure in parts.items():
            say(name)
            body[name] = measure()
    shutil.rmtree(work)
    return body, benchmark.goals


if __name__ == "__main__":
    sys.exit(main())
