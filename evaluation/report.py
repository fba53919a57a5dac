"""What `clipstill evaluate` leaves: results as JSON, JSON Lines and CSV, and of a suite its table and page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluation.sets.files import Tree
from evaluation.sets.table import tables
from evaluation.suites.files import json_lines, table_csv
from evaluation.suites.page import suite_page
from evaluation.suites.rows import Row
from evaluation.suites.suites import SUITES
from evaluation.suites.table import markdown, table
from evaluation.suites.tasks import folders_of, task_name
from shards.errors import UserError
from shards.storage import Folder

_CACHE = "hf_cache"
_LONGEST = 200
FILES = ("results.json", "results.jsonl", "results.csv", "table.json", "table.md", "index.html")


def below_root(suite: str, root: str, on: Sequence[str]) -> list[str]:
    """The sets of a suite that lie below `root`, as `--on` would have them, but for those that `on` names already.

    Raises `UserError` if there is none.
    """
    tree = Tree(root)
    folders, files = tree.listed()
    named = {task_name(one.partition("=")[0]) for one in on if "=" in one}
    found = []
    for task in SUITES[suite].tasks():
        near = {name.lower(): name for name in (*folders, *files)}
        candidates = [name for plain in folders_of(task) for name in (plain, f"{plain}.parquet")]
        there = next((near[name.lower()] for name in candidates if name.lower() in near), None)
        place = f"{tree}/{there}" if there is not None else _cached(tree, task) if _CACHE in folders else None
        if place is not None and task not in named:
            found.append(f"{task}={place}")
    if not found and not on:
        tasks = SUITES[suite].tasks()
        raise UserError(
            f"none of the suite's {len(tasks)} sets lies there",
            where=root,
            do=f"A set's folder is called like {folders_of(tasks[0])[0]}: https://huggingface.co/djghosh has most",
        )
    return found


def _cached(tree: Tree, task: str) -> str | None:
    """Where in the cache of the `datasets` library the rows of a task are: `hf_cache/OWNER___NAME/CONFIG/VERSION/HASH`.

    DataComp's download keeps what it takes from the hub by that library there; of several the last one.
    """
    cache = tree.child(_CACHE)
    plain = {name.lower() for name in folders_of(task)}
    found = None
    for name in sorted(cache.listed()[0]):
        if name.lower().rpartition("___")[2] in plain:
            waiting = [cache.child(name)]
            while waiting:
                folder = waiting.pop(0)
                inner, files = folder.listed()
                waiting += [folder.child(one) for one in sorted(inner)]
                found = str(folder) if tables(files) else found
    return found


def files_of(
    results: Mapping[str, Any], rows: Sequence[Row], suite: str | None, others: Sequence[Row], notes: Sequence[str]
) -> dict[str, str | bytes]:
    """Name → content of every file. With several models each has JSON Lines of its own, `results-MODEL.jsonl`."""
    written: dict[str, str | bytes] = {"results.json": json.dumps(results, indent=1, ensure_ascii=False)}
    for row in rows:
        name = "results.jsonl" if len(rows) == 1 else f"results-{_tidy(row.name)}.jsonl"
        if name in written:
            name = f"results-{hashlib.sha256(row.name.encode()).hexdigest()[:8]}.jsonl"
        written[name] = json_lines(row)
    written["results.csv"] = table_csv(rows)
    if suite is not None:
        told = table(SUITES[suite], [*rows, *others], notes)
        written["table.json"] = json.dumps(told, indent=1, ensure_ascii=False)
        written["table.md"] = markdown(told)
        written["index.html"] = suite_page(suite, SUITES[suite], told, results)
    return written


def write(out: str, files: Mapping[str, str | bytes]) -> None:
    """Each whole or not at all, the page last."""
    for name, content in files.items():
        Folder(out).publish(name, content if isinstance(content, bytes) else content.encode())


def only_of(suite: str, rows: Sequence[Row]) -> list[Row]:
    """The rows with the suite's own tasks alone, as DataComp's aggregate counts them."""
    wanted = set(SUITES[suite].tasks())
    return [replace(row, tasks={name: told for name, told in row.tasks.items() if name in wanted}) for row in rows]


def _tidy(name: str) -> str:
    """As a part of a file's name, which has 255 bytes."""
    tidy = re.sub(r"[^\w.-]+", "-", name).strip("-")
    return tidy.encode()[-_LONGEST:].decode(errors="ignore").strip("-")
