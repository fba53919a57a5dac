"""Results as others publish them, written and read: MobileCLIP's JSON Lines, and the columns of open_clip's table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.suites.metrics import Metrics
from evaluation.suites.rows import Row
from evaluation.suites.tasks import TASKS, task_name
from shards.errors import UserError
from shards.text import read_text

_FIRST = ("name", "pretrained", "params (M)", "FLOPs (B)", "Average perf. on 38 datasets")
_ORDER = ("ImageNet 1k", *(name for name in TASKS if name != "ImageNet 1k"))
_FORMS = "Give JSON Lines as apple/ml-mobileclip's results/*.jsonl, or CSV as open_clip's docs/openclip_results.csv"


def json_lines(row: Row) -> str:
    """`{"key", "dataset", "metrics": {..., "main_metric"}}` a task, as DataComp's evaluation writes them."""
    lines = []
    for name, metrics in row.tasks.items():
        key = TASKS[name].key if name in TASKS else _key(name)
        lines.append(json.dumps({"key": key, "dataset": name, "metrics": metrics}))
    return "".join(f"{line}\n" for line in lines)


def _key(name: str) -> str:
    return f"comp/{name.lower().replace(' ', '_').replace('-', '_')}" if name.startswith("SugarCrepe ") else name


def table_csv(rows: Sequence[Row]) -> str:
    """open_clip's columns: all parameters, FLOPs as two for each multiply-accumulate, main metrics as fractions."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*_FIRST, *_ORDER])
    for row in rows:
        name, _, tag = row.name.partition(":")
        size = row.parameters(embedding=True)
        flops = None if row.macs is None else 2 * row.macs
        mean = row.metric("Mean of 38", "main_metric")
        scores = [row.metric(task, "main_metric") for task in _ORDER]
        cells = [_digits(size, 2), _digits(flops, 2), _digits(mean, 4), *(_digits(score, 4) for score in scores)]
        writer.writerow([name, tag, *cells])
    return sink.getvalue()


def _digits(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def read_rows(path: str) -> list[Row]:
    """The rows of a results file; of JSON Lines one, called as the file.

    Raises `UserError` for what is neither of the two.
    """
    text = read_text(path, _FORMS)
    if text.lstrip().startswith("{"):
        return [Row(name=Path(path).stem, source=Path(path).name, tasks=_lines(text, path))]
    return _table(text, path)


def _lines(text: str, path: str) -> dict[str, Metrics]:
    tasks: dict[str, Metrics] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            told: Any = json.loads(line)
            metrics = {name: _number(value) for name, value in told["metrics"].items()}
            name = str(told["dataset"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"line {number} is no result", where=path, do=_FORMS) from None
        tasks[task_name(name)] = metrics
    return tasks


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _table(text: str, path: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text))
    if not {"name", "ImageNet 1k"} <= set(reader.fieldnames or ()):
        raise UserError("it has no columns name and ImageNet 1k", where=path, do=_FORMS)
    rows = []
    for number, cells in enumerate(reader, 2):
        try:
            figures = {name: float(cells[name]) for name in (*_FIRST[2:], *_ORDER) if cells.get(name)}
        except ValueError as error:
            raise UserError(f"line {number}: {error}", where=path, do=_FORMS) from None
        tag = cells.get("pretrained") or ""
        tasks: dict[str, Metrics] = {
            name: {TASKS[name].metric: figures[name], "main_metric": figures[name]}
            for name in _ORDER
            if name in figures
        }
        flops, mean = figures.get(_FIRST[3]), figures.get(_FIRST[4])
        rows.append(
            Row(
                name=f"{cells['name']}:{tag}" if tag else str(cells["name"]),
                source=Path(path).name,
                tasks=tasks,
                means={} if mean is None else {"Mean of 38": mean},
                image=figures.get(_FIRST[2]),
                macs=None if flops is None else flops / 2,
            )
        )
    return rows
