"""What a student began with of its teacher's weights: tower by tower, each stack of layers drawn, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from distill.run_folder import RunFolder
from shards import UserError

if TYPE_CHECKING:
    from clip_models.inheritance import Inherited

_PITCH, _CELL, _LEFT, _BETWEEN = 22, 18, 56, 30
_TITLES = {"image": "Image tower", "text": "Text tower"}
_AS_LONG_AS_WIDE = ("ln_1.weight", "bn3.weight")
"""A tensor with an element for each dimension between layers: of a transformer's layer, of a ResNet's."""

Share = tuple[int, int]
"""How many are kept, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Layers of the same kind: `layers`, `width`, `heads` as far as they are known, and the elements in all of them."""

    name: str
    shares: Mapping[str, Share]
    elements: int
    drawing: Markup


@dataclass(frozen=True, kw_only=True)
class Tower:
    """One tower; `heads` are those outside its stacks, as in a ResNet's attention pool."""

    title: str
    tensors: int
    elements: int
    heads: Share | None
    stacks: Sequence[Stack]


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """The section of the page: `logits` says what became of the logit scale, `rows` are the table."""

    towers: Sequence[Tower]
    logits: str
    rows: Sequence[Inherited]


def inheritance(run: RunFolder, notes: list[str]) -> Inheritance | None:
    """What `inheritance.json` says; None if there is none, and of a run that prunes.

    If it cannot be read there is none either, and `notes` has a sentence more.
    """
    path = run.files.inheritance
    if not path.exists() or run.settings.get("prune"):
        return None
    # It needs torch, which other pages are spared.
    from clip_models.inheritance import read_inheritance  # noqa: PLC0415

    try:
        rows = read_inheritance(path)
    except UserError:
        notes.append("inheritance.json cannot be read, so nobody can tell which weights came from the teacher.")
        return None
    towers = {tower: [row for row in rows if row.tower == tower] for tower in _TITLES}
    return Inheritance(
        towers=[_tower(_TITLES[tower], own) for tower, own in towers.items() if own],
        logits=_logits(rows, run.settings),
        rows=rows,
    )


def _tower(title: str, rows: Sequence[Inherited]) -> Tower:
    names = dict.fromkeys(row.stack for row in rows if row.stack)
    return Tower(
        title=title,
        tensors=len(rows),
        elements=sum(row.elements for row in rows),
        heads=next((row.heads for row in rows if row.heads and not row.stack), None),
        stacks=[_stack(name, [row for row in rows if row.stack == name]) for name in names],
    )


def _stack(name: str, rows: Sequence[Inherited]) -> Stack:
    norms = [row for row in rows if row.student.endswith(_AS_LONG_AS_WIDE) and row.shape]
    found = {
        "layers": rows[0].layers,
        "width": (norms[0].elements, norms[0].shape[0]) if norms else None,
        "heads": next((row.heads for row in rows if row.heads), None),
    }
    assert rows[0].layers
    return Stack(
        name=name.rpartition(".")[2],
        shares={what: share for what, share in found.items() if share},
        elements=sum(row.elements for row in rows),
        drawing=draw_layers(dict(row.layer for row in rows if row.layer), *rows[0].layers),
    )


def _logits(rows: Sequence[Inherited], settings: Mapping[str, Any]) -> str:
    """What became of the logit scale and why, in one line."""
    scalars = [row.student.replace("_", " ") for row in rows if row.tower == "logits"]
    if settings.get("student_scale") is not None:
        return f"Logit scale: not inherited, student_scale pins it to {settings['student_scale']}."
    if scalars:
        return f"{' and '.join(scalars).capitalize()}: inherited, the student's towers are configured as the teacher's."
    return "Logit scale: not inherited, the student's towers are not configured as those that it was learned with."


def draw_layers(taken: Mapping[int, int], ours: int, theirs: int) -> Markup:
    """An inline SVG: the teacher's `theirs` layers above, hollow unless taken, the student's `ours` below.

    `taken`: layer of the student → layer of the teacher, both from 0 as in tensors' names. A line joins the two.
    """
    # Below the middle of those it took: layers that follow each other lie straight below their own.
    shift = (min(taken.values()) + max(taken.values()) - ours + 1) * _PITCH / 2
    # Lines that go far sideways need room not to bunch.
    between = round(_BETWEEN + max(abs(shift + (here - there) * _PITCH) for here, there in taken.items()) / 6)
    base = _CELL + between
    parts = [_text(0, 0, "teacher", "of"), _text(0, base, "student", "of")]
    parts += [_cell(_LEFT + at * _PITCH, 0, at, "left") for at in sorted(set(range(theirs)) - set(taken.values()))]
    for here, there in taken.items():
        above, below = _LEFT + there * _PITCH, _LEFT + shift + here * _PITCH
        parts.append(
            Markup('<g class="link"><title>layer {} of the student: the teacher’s {}</title>{}{}{}</g>').format(
                here,
                there,
                _curve(above + _CELL / 2, below + _CELL / 2, between),
                _cell(above, 0, there, "kept"),
                _cell(below, base, here, "kept"),
            )
        )
    width, height = _LEFT + theirs * _PITCH - (_PITCH - _CELL), base + _CELL
    return Markup(
        '<svg class="layers" viewBox="-1 -1 {} {}" style="width: {}px" role="img" aria-label="{}">{}</svg>'
    ).format(width + 2, height + 2, width + 2, f"{ours} of {theirs} layers", Markup("").join(parts))


def _curve(above: float, below: float, between: int) -> Markup:
    top, middle, base = _CELL, _CELL + between / 2, _CELL + between
    path = Markup('<path d="M{:g} {}C{:g} {:g} {:g} {:g} {:g} {}"/>')
    return path.format(above, top, above, middle, below, middle, below, base)


def _cell(x: float, y: int, number: int, kind: str) -> Markup:
    rect = Markup('<rect class="{}" x="{:g}" y="{}" width="{}" height="{}" rx="3"/>').format(kind, x, y, _CELL, _CELL)
    return rect + _text(x + _CELL / 2, y, number, kind)


def _text(x: float, y: int, text: object, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:g}" y="{:g}">{}</text>').format(kind, x, y + 12.7, text)
