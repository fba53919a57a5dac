"""The classes of lists that are compared, one method each, and what has to come out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ingest import contenders, quality, workload
from benchmarks.ingest.contenders import Contender, Place, Run, ours
from benchmarks.ingest.own_network import NoNetworkError, own_network
from benchmarks.ingest.workload import Lists, Urls
from benchmarks.record import Goal, say, spread

TITLES = {
    "http": "800 × 600 over http",
    "https": "800 × 600 over https",
    "https_closed": "800 × 600 over https, a connection for each image",
    "large": "2048 × 1536 over http",
    "progressive": "Progressive JPEGs of 800 × 600",
    "png_webp": "PNG and WebP of 800 × 600",
    "dead": "Dead hosts and unanswered names",
    "slow": "Slow hosts",
    "crawl": "A mixture, as a published crawl found it",
}
"""The classes that have a table of contenders."""
OWN_NETWORK = ("dead", "slow", "crawl")
"""Those in a network of our own, where good rows can be lost."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. `variants`: with the contenders beside ours and img2dataset as it comes."""

    photos: int = 8000
    https: int = 4000
    large: int = 1000
    progressive: int = 4000
    formats: int = 2000
    crawled: int = 6000
    slow: int = 6000
    dead: int = 16_000
    refused: int = 1000
    hostile: int = 120
    quality: int = 300
    rounds: int = 3
    fewer_rounds: int = 2
    threads: tuple[int, ...] = (16, 64, 256)
    trial: int = 1000
    waiting_threads: tuple[int, ...] = (64, 256)
    waiting_trial: int = 2000
    shard_size: int = 1000
    variants: bool = True


QUICK = Sizes(
    photos=200,
    https=100,
    large=40,
    progressive=100,
    formats=80,
    crawled=300,
    slow=200,
    dead=200,
    refused=100,
    hostile=6,
    quality=10,
    rounds=1,
    fewer_rounds=1,
    threads=(16,),
    waiting_threads=(64,),
    shard_size=100,
    variants=False,
)


class Classes:
    """Each public method measures one class and returns its figures; `goals` is what the methods add to.

    `img2dataset` and `daft` are the peers' environments, None for one that takes no part.
    """

    NAMES = (
        *("http", "https", "https_closed", "large", "progressive", "png_webp"),
        *("dead", "slow", "crawl", "refused", "memory", "quality"),
    )

    def __init__(
        self,
        sizes: Sizes,
        place: Place,
        lists: Lists,
        *,
        served: Path,
        img2dataset: Path | None,
        daft: Path | None,
        photos: Path,
    ) -> None:
        self._sizes, self._place, self._lists, self._served = sizes, place, lists, served
        self._environment, self._daft = img2dataset, daft
        self._photos = photos
        self.threads: dict[str, dict[str, Any]] = {}
        self.goals: list[Goal] = []

    def _best(self, kind: str) -> int:
        """img2dataset's threads a process for a kind of list, by a trial of each: it is seen at its best."""
        if kind not in self.threads:
            trial, choices = self._sizes.trial, self._sizes.threads
            if kind == "dead":
                trial, choices = self._sizes.waiting_trial, self._sizes.waiting_threads
            rates = dict.fromkeys(choices, 0.0)
            if len(choices) > 1:
                say(f"img2dataset's best number of threads, {kind}")
                # Fewer over https, where it takes longest for each.
                made = {
                    "http": lambda: self._lists.photos(trial),
                    "https": lambda: self._lists.photos(trial // 5, "https"),
                    "dead": lambda: workload.dead(self._place.work, trial),
                }
                urls = made[kind]()
                for threads in choices:
                    contender = self._img2dataset(threads, shard_size=-(-urls.rows // 2))
                    assert contender is not None, "a run with trials has all peers"
                    rates[threads] = self._run(f"img2dataset, {threads} threads", contender, urls)["rows_rate"]
            self.threads[kind] = {"rates": rates, "best": max(rates, key=lambda threads: rates[threads])}
        return int(self.threads[kind]["best"])

    def _img2dataset(self, threads: int, *options: str, shard_size: int | None = None) -> Contender | None:
        if self._environment is None:
            return None
        return contenders.img2dataset(self._environment, threads, *options, shard_size=shard_size)

    def measure(self, name: str) -> dict[str, Any]:
        """The figures of the class of this name."""
        method: Callable[[], dict[str, Any]] = getattr(self, name)
        return method()

    def http(self) -> dict[str, Any]:
        """800x600 over http: everyone, and our mode that decodes every pixel."""
        against: dict[str, Contender | None] = {"ours": ours(), "img2dataset": self._img2dataset(self._best("http"))}
        if self._sizes.variants:
            against["ours, exact"] = ours("--exact")
        if self._sizes.variants and self._daft is not None:
            against["daft"] = contenders.daft(self._daft)
        part = self._turns(against, self._sizes.rounds, self._lists.photos(self._sizes.photos), once={"daft"})
        self._at_least("http, 800x600: images/s, times img2dataset", part, 3)
        if self._sizes.variants:
            exact = spread(_per_round(part, "ours, exact", "img2dataset"))
            part["ratios"]["img2dataset, by ours exact"] = exact
            name = "http, 800x600, every pixel decoded: images/s, times img2dataset"
            self._at_least(name, part, 1.7, "img2dataset, by ours exact")
        cpu = part["contenders"]["ours"]["cpu_ms"]["median"]
        self.goals.append(Goal(name="CPU an image of 800x600 over http, ms", value=cpu, at_most=1.8))
        return part

    def https(self) -> dict[str, Any]:
        """800x600 over https; img2dataset also with its TLS mended."""
        threads = self._best("https")
        against = {"ours": ours(), "img2dataset": self._img2dataset(threads)}
        if self._sizes.variants:
            against["img2dataset, one TLS context"] = self._img2dataset(threads, "--shared-tls")
        part = self._turns(against, self._sizes.fewer_rounds, self._lists.photos(self._sizes.https, "https"))
        self._at_least("https, 800x600: images/s, times img2dataset", part, 10)
        name = "https, 800x600: images/s, times img2dataset with one TLS context"
        self._at_least(name, part, 2.5, "img2dataset, one TLS context")
        return part

    def https_closed(self) -> dict[str, Any]:
        """Ours over https when every answer ends its connection, as on lists with a host for each image."""
        return self._turns({"ours": ours()}, 1, self._lists.photos(self._sizes.https, "https", query="?close"))

    def large(self) -> dict[str, Any]:
        """2048x1536 over http."""
        part = self._against_img2dataset(lambda: self._lists.photos(self._sizes.large, group="large"))
        self._at_least("http, 2048x1536: images/s, times img2dataset", part, 3)
        return part

    def progressive(self) -> dict[str, Any]:
        """The photos of 800x600 again, as progressive JPEGs."""
        part = self._against_img2dataset(lambda: self._lists.photos(self._sizes.progressive, group="progressive"))
        self._at_least("progressive, 800x600: images/s, times img2dataset", part, 2)
        return part

    def png_webp(self) -> dict[str, Any]:
        """The photos of 800x600 again, half of them as PNG, half as WebP."""
        return self._against_img2dataset(lambda: self._lists.mixed(self._sizes.formats, ("png", "webp")))

    def _against_img2dataset(self, listed: Callable[[], Urls]) -> dict[str, Any]:
        against = {"ours": ours(), "img2dataset": self._img2dataset(self._best("http"))}
        # After the trial of threads, which writes a list of its own in its place.
        return self._turns(against, self._sizes.fewer_rounds, listed())

    def dead(self) -> dict[str, Any]:
        """1 % of the rows at hosts that never answer and 3 % at names that no one answers, among good ones."""
        part = self._in_own_network("dead", self._sizes.rounds, workload.dead, self._sizes.dead)
        if "skipped" not in part:
            self._at_least("1 % dead hosts, 3 % unanswered names: rows/s, times img2dataset", part, 2)
        return part

    def slow(self) -> dict[str, Any]:
        """5 % of the rows take seconds to answer, 2 % drip."""
        return self._in_own_network("slow", self._sizes.fewer_rounds, workload.slow, self._sizes.slow)

    def crawl(self) -> dict[str, Any]:
        """A mixture by the shares of a published crawl."""
        return self._in_own_network("crawl", self._sizes.fewer_rounds, workload.crawled, self._sizes.crawled)

    def _in_own_network(
        self, name: str, rounds: int, listed: Callable[[Path, int], Urls], count: int
    ) -> dict[str, Any]:
        """Rows a second where hosts may be dead, and good rows that were lost; or why that cannot be had here."""
        place = self._place
        try:
            with own_network(self._served) as network:
                self._place = replace(place, server=network.server, enter=network.enter)
                threads = self._best("dead")
                urls = listed(place.work, count)
                # Its default of 10,000 rows a shard would leave one of its processes without work.
                peer = self._img2dataset(threads, shard_size=-(-urls.rows // 2))
                part = self._turns({"ours": ours(), "img2dataset": peer}, rounds, urls, rate="rows_rate")
        except NoNetworkError as reason:
            say(f"{name} is not measured: no network of its own can be had here ({reason})")
            return {"skipped": f"no network of its own can be had here: {reason}"}
        finally:
            self._place = place
        lost = max(part["contenders"]["ours"]["lost"]["runs"])
        self.goals.append(Goal(name=f"good rows lost, {TITLES[name].lower()}", value=lost, at_most=0))
        return part

    def refused(self) -> dict[str, Any]:
        """What it costs that 5 % of the URLs are refused."""
        count = self._sizes.refused
        runs: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(self._sizes.rounds):
            for name, dead in (("without", 0), ("with", count // 20)):
                urls = self._lists.photos(count, dead=dead)
                runs[name].append(self._run(f"{count} URLs {name} refused ones", ours(), urls)["seconds"])
        more = spread([dead - alive for dead, alive in zip(runs["with"], runs["without"], strict=True)])
        name = f"seconds more for {count} URLs when 5 % are refused"
        self.goals.append(Goal(name=name, value=more["median"], at_most=1))
        return {"seconds": {name: spread(values) for name, values in runs.items()}, "more": more}

    def memory(self) -> dict[str, Any]:
        """One worker on bodies made to cost memory."""
        figures, causes = contenders.hostile(self._place, self._lists.hostile(self._sizes.hostile).path)
        say(f"  {'hostile bodies':32} {figures['largest_process_mb']:7.0f} MB in the largest process, {causes}")
        name = "memory of a worker on hostile bodies, MB"
        self.goals.append(Goal(name=name, value=figures["largest_process_mb"], at_most=700))
        return {"figures": figures, "causes": causes}

    def quality(self) -> dict[str, Any]:
        """PSNR on photos that were not made here; judged without the encoder's loss, which all share."""
        photos = self._photos
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

    def _turns(
        self,
        invited: dict[str, Contender | None],
        rounds: int,
        urls: Urls,
        *,
        rate: str = "rate",
        once: Collection[str] = (),
    ) -> dict[str, Any]:
        """All contenders in every round, those named in `once` in the first; and how many times the others ours is.

        The figures of each, and the ratios by `rate` and with start-up, round by round. One that is None takes no part.
        """
        against = {name: contender for name, contender in invited.items() if contender is not None}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in against}
        for number in range(rounds):
            for name, contender in against.items():
                if number == 0 or name not in once:
                    # Where hosts are dead, what is lost is counted; elsewhere, nothing may be.
                    runs[name].append(self._run(name, contender, urls, whole=rate == "rate"))
        part: dict[str, Any] = {
            "rows": urls.rows,
            "good": urls.good,
            "contenders": {
                name: {figure: spread([one[figure] for one in all_runs]) for figure in all_runs[0]}
                for name, all_runs in runs.items()
            },
        }
        others = [name for name in against if not name.startswith("ours")]
        part["ratios"] = {name: spread(_per_round(part, "ours", name, rate)) for name in others}
        part["ratios_whole"] = {name: spread(_per_round(part, "ours", name, f"{rate}_whole")) for name in others}
        return part

    def _run(self, name: str, contender: Contender, urls: Urls, *, whole: bool = False) -> dict[str, float]:
        run: Run = contender(self._place, urls.path)
        if whole and run.images != urls.good:
            raise RuntimeError(f"{name} stored {run.images} images of {urls.good}: its rate means nothing")
        figures = run.figures(urls.rows, urls.good)
        say(
            f"  {name:32} {figures['rows_rate']:7.1f} rows/s ({figures['rows_rate_whole']:.1f} with start-up), "
            f"{figures['images']:.0f} images, {figures['lost']:.0f} lost, "
            f"{figures['cpu_ms']:6.2f} ms CPU an image, {figures['memory_mb']:6.0f} MB"
        )
        return figures

    def _at_least(self, name: str, part: dict[str, Any], bound: float, of: str = "img2dataset") -> None:
        """A goal for how many times a contender ours is, if that took part."""
        if of in part["ratios"]:
            self.goals.append(Goal(name=name, value=part["ratios"][of]["median"], at_least=bound))


def _per_round(part: dict[str, Any], first: str, second: str, figure: str = "rate") -> list[float]:
    one, other = (part["contenders"][name][figure]["runs"] for name in (first, second))
    return [a / b for a, b in zip(one, other, strict=False)]  # one of them may have run once only
