"""`python -m benchmarks.ingest [--quick] [--only CLASS]`: the classes of `classes.py`, one after the other."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ingest import images, quality
from benchmarks.ingest.certificate import make_certificate
from benchmarks.ingest.classes import QUICK, Classes, Sizes
from benchmarks.ingest.contenders import Place
from benchmarks.ingest.environments import PEERS, install, installed
from benchmarks.ingest.page import write_page
from benchmarks.ingest.server import HOSTS, serving
from benchmarks.ingest.workload import Lists
from benchmarks.record import RESULTS, Goal, finish, machine, say, versions

_ROOT = Path(__file__).parents[2]
_BENCH = _ROOT / ".bench"


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.ingest", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few hundred images, once, without peers that are not installed; nothing is judged",
    )
    parser.add_argument(
        "--only", choices=Classes.NAMES, metavar="CLASS", help=f"one class alone: {', '.join(Classes.NAMES)}"
    )
    parser.add_argument("--photos", type=Path, default=quality.PHOTOS, help="Parquet with photos in a column `jpeg`")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    chosen = [args.only] if args.only else Classes.NAMES
    began = time.monotonic()
    before = machine()
    body, goals = _measure(sizes, args.photos, chosen, quick=args.quick)
    body = {
        "machine": before,
        "versions": versions("clipstill", "opencv-python-headless", "pillow", "pyarrow", "ray") | _peer_versions(),
        "seconds": time.monotonic() - began,
        **body,
    }
    # A part is no result to keep beside whole ones.
    folder = _BENCH / "quick" if args.quick else _BENCH / "only" if args.only else RESULTS
    return finish(folder, "ingest", body, goals, write_page=write_page, judged=not args.quick)


def _peer_versions() -> dict[str, str]:
    return dict(packages[0].split("==") for packages in PEERS.values())


def _measure(sizes: Sizes, photos: Path, chosen: Sequence[str], *, quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    work = _BENCH / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    say("making images and the peers' environments")
    served = images.make(_BENCH / "served", few=quick)
    trusted = make_certificate(served, HOSTS)
    peer, no_daft = _peers(quick=quick)
    with serving(served) as (server, ports):
        place = Place(work, server, trusted, sizes.shard_size)
        lists = Lists(work, ports)
        daft = _BENCH / "daft" if no_daft is None else None
        classes = Classes(sizes, place, lists, served=served, img2dataset=peer, daft=daft, photos=photos)
        body: dict[str, Any] = {"images": images.describe(served), "no_daft": no_daft, "took": {}}
        for name in chosen:
            say(name)
            began = time.monotonic()
            body[name] = classes.measure(name)
            body["took"][name] = time.monotonic() - began
        body["threads"] = classes.threads
    shutil.rmtree(work)
    return body, classes.goals


def _peers(*, quick: bool) -> tuple[Path | None, str | None]:
    """img2dataset's environment, None where it takes no part, and why Daft takes none; a quick run installs neither."""
    if quick:
        if not installed(_BENCH, "img2dataset"):
            say("ours alone: img2dataset and Daft are not installed, and a quick run installs nothing")
            return None, "it is not installed"
        return _BENCH / "img2dataset", None if installed(_BENCH, "daft") else "it is not installed"
    if reason := install(_BENCH, "img2dataset"):
        raise SystemExit(f"img2dataset cannot be installed: {reason}")
    if no_daft := install(_BENCH, "daft"):
        say(f"Daft takes no part, it cannot be installed: {no_daft}")
    return _BENCH / "img2dataset", no_daft


if __name__ == "__main__":
    sys.exit(main())
