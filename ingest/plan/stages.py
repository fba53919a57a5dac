"""The stages of a plan: one for the list as it first was, and one for each time that it grew.

    while it is planned    planning.json: what is known so far, renewed with each part
    once it is whole       dataset.json; of a list that has grown, _rounds/NNN.json

A stage names its `first` shard, its first `row`, how many `shards` and `rows` it has, its `inputs` (all files of the
list as it then was) and its `parts`. Its `fingerprint` follows from the settings and from the inputs' names and sizes.
`ingest retry` adds rounds of its own, which are no stages.
"""

from __future__ import annotations

import json
from typing import Any

from shards import Folder
from shards.reader import DATASET, PLANNING, ROUNDS, is_retry, read_dataset_facts, read_planning, read_rounds

Part = dict[str, Any]
"""Of one file: `name`, `bytes`, `sha256`, and how many `shards` and `rows` it holds."""

Stage = dict[str, Any]


def read_stages(folder: Folder) -> list[Stage]:
    """The stages of the dataset here, the last one perhaps not whole; none if nothing is planned here."""
    planning = read_planning(folder)
    if planning is None and not folder.exists(DATASET):
        return []
    first = read_dataset_facts(folder, unfinished=True)
    grown = [added for added in read_rounds(folder) if not is_retry(added)]
    return [{"first": 0, "row": 0, **first}, *grown]


def is_whole(stage: Stage) -> bool:
    """Whether all of a stage is planned."""
    return "round" not in stage


def publish_planning(folder: Folder, stage: Stage) -> None:
    """Publish a stage that is not whole, as it now is."""
    folder.publish(PLANNING, json.dumps(stage, indent=1).encode())


def publish_whole(folder: Folder, stage: Stage) -> Stage:
    """Publish a stage that is whole, in the place that it keeps; returns what it says there."""
    left_out = {"round", "first", "row"} if stage["round"] is None else {"round", "schema", "settings", "name"}
    facts = {name: value for name, value in stage.items() if name not in left_out}
    text = json.dumps(facts, indent=1).encode()
    if stage["round"] is None:
        folder.publish(DATASET, text)
    else:
        folder.child(ROUNDS).publish(f"{stage['round']}.json", text)
    folder.delete(PLANNING)
    return {"first": stage["first"], "row": stage["row"], **facts}


def remove_remains(folder: Folder) -> None:
    """Remove a `planning.json` whose stage is whole, left by a kill between the two."""
    planning = read_planning(folder)
    if planning is not None:
        number = planning["round"]
        if folder.exists(DATASET) if number is None else folder.child(ROUNDS).exists(f"{number}.json"):
            folder.delete(PLANNING)


_KNOWN: dict[tuple[Folder, str | None], list[Stage]] = {}
"""The stages as they were last read here: a worker asks for a part of each shard."""


def find_part(folder: Folder, facts: Stage, shard: int) -> tuple[Part, int]:
    """The part that a shard is in, and its place there: in `facts`, or in what the folder says by now.

    Raises `ValueError` if it is not planned.
    """
    place = (folder, facts.get("fingerprint"))
    found = _look_up([facts], shard) or _look_up(_KNOWN.get(place, []), shard)
    if found is None:
        _KNOWN[place] = read_stages(folder)
        found = _look_up(_KNOWN[place], shard)
    if found is None:
        raise ValueError(f"shard {shard} is not in this plan")
    return found


def _look_up(stages: list[Stage], shard: int) -> tuple[Part, int] | None:
    for stage in stages:
        number = shard - stage.get("first", 0)
        for part in stage["parts"] if number >= 0 else ():
            if number < part["shards"]:
                return part, number
            number -= part["shards"]
    return None
