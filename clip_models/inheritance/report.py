"""What a student has from its teacher, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shards.errors import UserError
from shards.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """One tensor of the student and what it holds of one of the teacher's.

    `shape` is that of the teacher's whole tensor. `slices` of it are numpy's; it takes the shape before the brackets
    first if there is one. Positions that were interpolated first say so there: "(15, 15) grid to (14, 14)[:, :512]".
    `layer` is the index in `stack` and `layers` their number there, of the student and of the teacher; `heads` are the
    attention heads, kept and all.
    """

    student: str
    teacher: str
    tower: Literal["image", "text", "logits"]
    shape: tuple[int, ...]
    slices: str
    elements: int
    stack: str | None = None
    layer: tuple[int, int] | None = None
    layers: tuple[int, int] | None = None
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
    told = f"{' and '.join(scalars)} inherited" if scalars else "scale not inherited"
    lines.append(f"logits: {told}")
    return "\n".join(lines)


def write_inheritance(rows: Sequence[Inherited], path: str | os.PathLike[str]) -> None:
    """Write `{"elements": of all, "tensors": [a row each]}` as JSON, whole or not at all.

    Raises `UserError` if it cannot be written.
    """
    folder, name = os.path.split(os.fspath(path))
    body = {"elements": sum(row.elements for row in rows), "tensors": [asdict(row) for row in rows]}
    Folder(folder or ".").publish(name, (json.dumps(body, indent=1) + "\n").encode())


def read_inheritance(path: str | os.PathLike[str]) -> list[Inherited]:
    """The rows that `write_inheritance` wrote. Raises `UserError` if the file is not that."""
    try:
        return [_row(row) for row in json.loads(Path(path).read_bytes())["tensors"]]
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(
            f"it does not say what was inherited ({type(error).__name__}: {error})",
            where=os.fspath(path),
            do="Restore it, or remove it",
        ) from None


def _row(written: dict[str, Any]) -> Inherited:
    tower, stack = written["tower"], written["stack"]
    layer, layers, heads = (None if written[of] is None else _pair(written[of]) for of in ("layer", "layers", "heads"))
    shape = tuple(map(int, written["shape"]))
    known = tower in ("image", "text", "logits") and (stack is None or (layer and layers))
    if not known or min((*shape, *(layers or ()), *(heads or ())), default=1) < 1:
        raise ValueError(f"tower {tower}, layer {layer} of {layers} in {stack}, heads {heads}, shape {shape}")
    return Inherited(
        student=str(written["student"]),
        teacher=str(written["teacher"]),
        tower=tower,
        shape=shape,
        slices=str(written["slices"]),
        elements=int(written["elements"]),
        stack=stack if stack is None else str(stack),
        layer=layer,
        layers=layers,
        heads=heads,
    )


def _pair(written: Sequence[Any]) -> tuple[int, int]:
    ours, theirs = written
    return int(ours), int(theirs)
