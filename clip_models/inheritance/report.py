"""What a student has from its teacher, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from shards.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """One tensor of the student and what it holds of one of the teacher's.

    `slices` are numpy's, of the teacher's tensor, which takes the shape before the brackets first if there is one.
    `layer` is the index in `stack`, of the student and of the teacher; `heads` are the attention heads, kept and all.
    """

    student: str
    teacher: str
    tower: Literal["image", "text", "logits"]
    slices: str
    elements: int
    stack: str | None = None
    layer: tuple[int, int] | None = None
    heads: tuple[int, int] | None = None


def summary(rows: Sequence[Inherited]) -> str:
    """A line for each tower and one for the logits: tensors, elements, heads, and layers of the teacher."""
    lines = []
    for tower in ("image", "text"):
        own = [row for row in rows if row.tower == tower]
        if not own:
            continue
        parts = [f"{tower}: {len(own)} tensors, {sum(row.elements for row in own):,} elements"]
        parts += sorted({f"{row.heads[0]} of {row.heads[1]} heads" for row in own if row.heads})
        for stack in sorted({row.stack for row in own if row.stack}):
            layers = sorted({row.layer[1] for row in own if row.layer and row.stack == stack})
            parts.append(f"{stack.rpartition('.')[2]} from {', '.join(map(str, layers))}")
        lines.append("; ".join(parts))
    scalars = [row.student for row in rows if row.tower == "logits"]
    lines.append(f"logits: {' and '.join(scalars) or 'nothing'} inherited")
    return "\n".join(lines)


def write_inheritance(rows: Sequence[Inherited], path: str | os.PathLike[str]) -> None:
    """Write `{"elements": of all, "tensors": [a row each]}` as JSON, whole or not at all.

    Raises `UserError` if it cannot be written.
    """
    folder, name = os.path.split(os.fspath(path))
    body = {"elements": sum(row.elements for row in rows), "tensors": [asdict(row) for row in rows]}
    Folder(folder or ".").publish(name, (json.dumps(body, indent=1) + "\n").encode())
