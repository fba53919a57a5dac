"""`clipstill status`: how far a dataset, a cache or a run has come, from its records alone."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clipstill.commands.common import Subparsers, add_command, show, show_json
from clipstill.parser import Parser
from shards.errors import UserError

if TYPE_CHECKING:
    from shards.storage import Folder

_SUMMARY = """\
Say how far a dataset, a teacher cache or a run has come, and which command goes on.

Everything comes from what is published in OUT: the work may run on other machines, or on none any more. Where records
are many, lie on an object store and are not in a manifest yet, rows are those of some of them, which is said.
"""

_EXAMPLE = """\
  clipstill status s3://bucket/cc3m
  clipstill status runs/vit-t --json
"""


def add(commands: Subparsers) -> None:
    add_command(commands, "status", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    parser.add_argument(
        "out", metavar="OUT", help="what ingest, shards, cache build or distill writes, finished or not"
    )
    parser.add_argument("--json", action="store_true", help="the same for programs")


def run(args: argparse.Namespace) -> int:
    from shards.dataset import DATASET, PLANNING  # noqa: PLC0415
    from shards.places import what_is_at  # noqa: PLC0415
    from shards.storage import Folder  # noqa: PLC0415

    folder = Folder(args.out)
    there = [] if folder.is_local and not folder.path.is_dir() else folder.names()
    if DATASET in there or PLANNING in there:
        found, lines = _dataset(folder)
    elif folder.is_local and "settings.json" in there:
        found, lines = _run(folder)
    elif caches := _cache(folder, there):
        found, lines = caches
    else:
        raise UserError(
            f"nothing here to tell the status of: this is {what_is_at(folder)}",
            where=args.out,
            do="Give the --out of an ingest, a cache build or a distill",
        )
    show_json(found) if args.json else show("\n".join(lines))
    return 0


def _dataset(folder: Folder) -> tuple[dict[str, Any], list[str]]:
    from shards.status import dataset_lines, dataset_status  # noqa: PLC0415

    found = dataset_status(folder)
    told = {"kind": "dataset", **asdict(found), "whole": found.whole}
    told["stage"]["left"] = found.stage.left
    return told, dataset_lines(folder.url, found)


def _cache(folder: Folder, there: list[str]) -> tuple[dict[str, Any], list[str]] | None:
    from shards.status import stage_lines, stage_status  # noqa: PLC0415
    from teacher_cache.layout import LAYER, TEACHER  # noqa: PLC0415

    layers: dict[str, Any] = {}
    lines = [f"{folder}: a teacher cache; how many shards its layers are to have, their dataset says"]
    for teacher in there:
        below = folder.child(teacher)
        if "." in teacher or not (names := below.names()) or TEACHER not in names:
            continue
        for layer in names:
            if layer.startswith(("views-", "captions-")) and "." not in layer and below.child(layer).exists(LAYER):
                found = stage_status(below.child(layer))
                layers[f"{teacher}/{layer}"] = asdict(found)
                lines += [f"{teacher}/{layer}: {found.samples:,} samples", *stage_lines(found)]
    if not layers:
        return None
    made = {found["made"] for found in layers.values()}
    if len(made) > 1:
        lines.append("  Layers have different numbers of shards: not all are whole")
    lines.append("  goes on   the same `clipstill cache build` command, if shards are missing; `cache verify` tells")
    return {"kind": "cache", "layers": layers}, lines


def _run(folder: Folder) -> tuple[dict[str, Any], list[str]]:
    import json  # noqa: PLC0415
    import time  # noqa: PLC0415

    from distill.run_folder import RunFiles, read_log  # noqa: PLC0415
    from shards.status import spoken  # noqa: PLC0415

    files = RunFiles(folder.path)
    identity = files.identity() or {}
    steps = int(identity.get("steps", 0))
    # An evaluation is a line of its own, after its step's.
    step, newest = 0, dict[str, Any]()
    for line in read_log(files.log):
        step = int(line.get("step", step))
        newest = line if "loss" in line else newest
    checkpoints, done = files.checkpoint_steps(), files.ended()
    speed = newest.get("measured", {}).get("samples_per_second")
    batch = identity.get("settings", {}).get("batch_size")
    age = time.time() - files.log.stat().st_mtime if files.log.exists() else None
    left = (steps - step) * batch / speed if speed and batch and not done else None
    events = files.events.read_text().splitlines() if files.events.exists() else []
    last = json.loads(events[-1]) if events else None
    lines = [f"{folder}: a run of `clipstill distill`, {'ended' if done else 'not ended'}"]
    loss = f", loss {newest['loss']:.4g}" if newest else ""
    lines.append(f"  steps     {step:,} of {steps:,} logged{loss}")
    if speed and age is not None:
        remains = f"; {spoken(left)} left at this rate" if left else ""
        lines.append(
            f"  rate      {speed:,.0f} samples/s, the last line of the log {spoken(max(0.0, age))} ago{remains}"
        )
    if last is not None:
        lines.append(f"  event     after step {last['step']:,}: {last['text']}")
    if done:
        lines.append(f"  model     {files.model}")
    else:
        at = f"from the checkpoint of step {checkpoints[-1]:,}" if checkpoints else "from the beginning"
        lines.append(f"  goes on   the same `clipstill distill` command with --out {folder}, {at}")
    found = {
        "kind": "run",
        "steps": steps,
        "step": step,
        "loss": newest.get("loss"),
        "samples_per_second": speed,
        "log_age": age,
        "left": left,
        "checkpoints": checkpoints,
        "done": bool(done),
        "event": last,
    }
    return found, lines
