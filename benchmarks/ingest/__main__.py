"""`python -m benchmarks.ingest [--quick] [--only CLASS]`: the classes of `classes.py`, one after the other."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.environments import make
from benchmarks.ingest import images, quality
from benchmarks.ingest.certificate import make_certificate
from benchmarks.ingest.classes import QUICK, Classes, Sizes
from benchmarks.ingest.contenders import Place
from benchmarks.ingest.page import write_page
from benchmarks.ingest.peers import PEERS
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
        "--only",
        choices=Classes.NAMES,
        metavar="CLASS",
        help=f"one class again, in the results that stand, if they are of this machine: {', '.join(Classes.NAMES)}",
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
    folder = _BENCH / "quick" if args.quick else RESULTS
    if args.only and not args.quick:
        standing = _standing(body)
        folder = RESULTS if standing else _BENCH / "only"
        body, goals = _renewed(standing, body, goals, args.only)
    return finish(folder, "ingest", body, goals, write_page=write_page, judged=not args.quick)


def _standing(body: dict[str, Any]) -> dict[str, Any] | None:
    """The results that stand, if a class can be renewed in them: of this machine, and of these versions."""
    try:
        found: dict[str, Any] = json.loads((RESULTS / "ingest.json").read_text())
    except OSError:
        return None
    same = found["machine"]["cpu"] == body["machine"]["cpu"] and found["versions"] == body["versions"]
    return found if same else None


def _renewed(
    standing: dict[str, Any] | None, body: dict[str, Any], goals: list[Goal], name: str
) -> tuple[dict[str, Any], list[Goal]]:
    """The standing results with this class in place of what they had of it; `again` tells when it was taken."""
    if standing is None:
        return body, goals
    told = {"taken": datetime.now(UTC).isoformat(timespec="seconds"), "load": body["machine"]["load"]}
    whole = {key: value for key, value in standing.items() if key not in {"benchmark", "taken", "goals"}}
    whole["first_taken"] = standing.get("first_taken", standing["taken"])
    whole |= {name: body[name], "again": standing.get("again", {}) | {name: told}}
    whole["threads"] = standing["threads"] | body["threads"]
    renewed = {goal.name for goal in goals}
    kept = [Goal(**goal) for goal in standing["goals"] if goal["name"] not in renewed]
    return whole, [*kept, *goals]


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
    absent = {name: make(_BENCH / name, PEERS[name], may=not quick) for name in ("img2dataset", "daft")}
    if absent["img2dataset"] and not quick:
        raise SystemExit(f"img2dataset cannot be installed: {absent['img2dataset']}")
    for name, reason in absent.items():
        if reason:
            say(f"{name} takes no part: {reason}")
    return None if absent["img2dataset"] else _BENCH / "img2dataset", absent["daft"]


if __name__ == "__main__":
    sys.exit(main())
