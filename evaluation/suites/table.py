"""A suite's table: rows of ours and of others, with gaps where nobody measured, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.sets.base import EvaluationSet
from evaluation.suites.metrics import rows_of
from evaluation.suites.rows import OURS, Row
from evaluation.suites.suites import Suite
from evaluation.suites.tasks import TASKS, task_name
from evaluation.tasks import Association
from shards.errors import UserError

GAP = "–"
_COSTS = ("parameters (M)", "MACs (G)", "pairs/s", "latency (ms)")


def our_row(name: str, sets: Mapping[str, Mapping[str, Any]], costs: Mapping[str, float | None]) -> Row:
    """A model's row: `sets` is result by the set's name, `costs` are fields of `Row`."""
    tasks = {}
    for set_name, result in sets.items():
        tasks.update(rows_of(set_name, result))
    return Row(name=name, source=OURS, tasks=tasks, **costs)  # type: ignore[arg-type]


def samples_of(one: EvaluationSet) -> int:
    """What published sizes count: images, of WinoGAViL's kind instances."""
    return next((len(task.cues) for task in one.tasks.values() if isinstance(task, Association)), len(one))


def part_note(set_name: str, samples: int) -> str | None:
    """What to say of a set that has not as many samples as the task's published test split; None if it has."""
    task = TASKS.get(task_name(set_name))
    if task is None or samples == task.size:
        return None
    return f"{task.name} has {samples:,} of {task.size:,} samples"


def gap_notes(rows: Sequence[Row]) -> list[str]:
    """Tasks that were measured by us, but not by the metric that counts: what it groups by is not in the set."""
    ours = [row for row in rows if row.source == OURS]
    names = dict.fromkeys(name for row in ours for name in row.tasks if name in TASKS)
    return [
        f"{name} has no {TASKS[name].metric}"
        for name in names
        if any(name in row.tasks and row.metric(name, "main_metric") is None for row in ours)
    ]


def refuse_larger(set_name: str, samples: int, where: str) -> None:
    """Raise `UserError` if there are more samples than the task's test split has: another split, or another set."""
    task = TASKS.get(task_name(set_name))
    if task is not None and samples > task.size:
        raise UserError(
            f"{samples:,} samples, and the test split of {task.name} has {task.size:,}",
            where=where,
            do="This is another split, or another set: give it a name of its own as NAME=SET",
        )


def refuse_same_task(sets: Mapping[str, str]) -> None:
    """Raise `UserError` if two of the sets, name by place, are one task: a results file has one line for it."""
    places: dict[str, str] = {}
    for place, name in sets.items():
        other = places.setdefault(task_name(name), place)
        if other != place:
            raise UserError(
                f"{other} and {place} are both {task_name(name)}, of which a table has one figure",
                where="--on",
                do="Leave one out, or give it a name of its own as NAME=SET",
            )


def outside(suite: Suite, sets: Mapping[str, str]) -> list[str]:
    """Which of the sets, name by place, no column of the suite is about."""
    of_suite = suite.tasks()
    return [place for place, name in sets.items() if task_name(name) not in of_suite]


def table(suite: Suite, rows: Sequence[Row], notes: Sequence[str] = ()) -> dict[str, Any]:
    """`{"columns": [...], "rows": [{"name", "source", "data", costs, "scores": {column: percent or None}}], "notes",
    "gaps"}`.

    Ours come first, then the others in their order. `notes`: what is to be known of ours; `gaps`: as `gap_notes`.
    """
    listed = sorted(rows, key=lambda row: row.source != OURS)
    return {
        "columns": [column.title for column in suite.columns],
        "rows": [
            {
                "name": row.name,
                "source": row.source,
                "data": row.data,
                **dict(zip(_COSTS, _costs(row, suite), strict=True)),
                "scores": {
                    column.title: None if (found := row.metric(column.task, column.metric)) is None else 100 * found
                    for column in suite.columns
                },
            }
            for row in listed
        ],
        "notes": list(notes),
        "gaps": gap_notes(rows),
    }


def _costs(row: Row, suite: Suite) -> tuple[float | None, ...]:
    return row.parameters(embedding=suite.embedding), row.macs, row.pairs, row.latency


def cost_columns(told: Mapping[str, Any]) -> list[str]:
    """The costs that any row has."""
    return [name for name in _COSTS if any(row[name] is not None for row in told["rows"])]


def say_cost(name: str, value: float | None) -> str:
    if value is None:
        return GAP
    if name == "pairs/s":
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def say_score(value: float | None) -> str:
    return GAP if value is None else f"{value:.2f}"


def markdown(told: Mapping[str, Any]) -> str:
    """The table, percent with two digits; below it what is to be known of ours."""
    costs = cost_columns(told)
    heads = ["model", "source", *costs, *told["columns"]]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * 2}{' ---: |' * (len(heads) - 2)}"]
    for row in told["rows"]:
        name = f"**{row['name']}**" if row["source"] == OURS else row["name"]
        scores = [say_score(row["scores"][title]) for title in told["columns"]]
        cells = [name, row["source"], *(say_cost(cost, row[cost]) for cost in costs), *scores]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    notes = ["", f"Not the whole of a published test split: {'; '.join(told['notes'])}."] if told["notes"] else []
    gaps = ["", f"Measured, but not by what counts: {'; '.join(told['gaps'])}."] if told["gaps"] else []
    return "\n".join([*lines, *notes, *gaps]) + "\n"
