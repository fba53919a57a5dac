"""Which layers and which part of each tensor a student takes from its teacher."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.inheritance.report import Inherited
from clip_models.inheritance.towers import INPUT_SIZES, LAYER, SCALARS, SIZES, TowerView, towers
from shards.errors import UserError

if TYPE_CHECKING:
    from clip_models.config import ModelConfig

_BY_HEADS = re.compile(r"\.attn\.(in_proj_|out_proj\.weight)|attnpool\.([qkv]_proj|c_proj\.weight)")
_FUSED = ".attn.in_proj_"
_TIMMS_POSITIONS = "trunk.pos_embed"
_MOST_BEFORE = 8
"""Class and register tokens of a timm ViT."""

_Copy = tuple[Tensor, Tensor, Inherited]
"""The student's tensor, what to put there (of the same shape), and the row that says so."""


class Larger(Protocol):
    """What weights are inherited from: an open_clip module with its config, and a name for messages.

    A `LoadedModel` is one.
    """

    name: str
    model: Any
    config: ModelConfig


@torch.no_grad()
def inherit(student: nn.Module, student_config: ModelConfig, teacher: Larger) -> list[Inherited]:
    """Fill `student`'s parameters and buffers in place from `teacher`; returns a row for each tensor filled.

    Depth: of T layers a student of S takes 0, step, … (S-1)·step with step = T // S; in a ResNet stage by stage. Width:
    the leading part of every tensor on every dimension; a fused QKV projection is (3, heads, head width, …), so that
    whole heads are kept. Positions of another image size are first brought onto the student's grid, as open_clip does
    when it loads weights; so are those of a shorter context, while of a longer one the leading are taken. Towers may be
    open_clip's ViT, its modified ResNet and its text transformer, the latter in a
    CLIP or a CustomTextCLIP on either side; towers of any other family are copied where they are configured alike.
    Scale and bias of the logits stay the student's own, unless all of its towers are configured as the teacher's: then
    it goes on as that very model.

    Raises `UserError`, the student being as it was, if the teacher lacks a tower or has one of another family, if the
    student is larger in anything, or if they differ in what slicing cannot bridge: activation, head width, patch
    size, vocabulary, pooling and the like.
    """
    theirs = {tower.name: tower for tower in towers(teacher.model, teacher.config)}
    copies: list[_Copy] = []
    alike = True
    for tower in towers(student, student_config):
        if tower.name not in theirs:
            raise UserError(f"it has no {tower.name} tower, the student has one", where=teacher.name)
        alike &= tower.fields == theirs[tower.name].fields
        copies += _of_tower(tower, theirs[tower.name], teacher.name)
    if alike:
        copies += _of_logits(student.state_dict(), teacher.model.state_dict())
    for target, source, _ in copies:
        target.copy_(source)
    return [row for _, _, row in copies]


def _of_tower(student: TowerView, teacher: TowerView, where: str) -> Iterator[_Copy]:
    _check_kinds(student, teacher, where)
    steps, depths = _steps(student, teacher, where), (student.depths(), teacher.depths())
    for name, (student_name, target) in student.tensors.items():
        there, stack, layer = name, None, None
        if match := LAYER.fullmatch(name):
            stack, layer = match[1], (int(match[2]), int(match[2]) * steps[match[1]])
            there = f"{stack}.{layer[1]}.{match[3]}"
        if there not in teacher.tensors:
            raise UserError(f"it has no {there} in its {teacher.name} tower, the student has", where=where)
        teacher_name, whole = teacher.tensors[there]
        source, resized = whole, ""
        if name == student.positions and student.grid != teacher.grid:
            source, resized = _on_grid(whole, teacher.grid, student.grid), f"{teacher.grid} grid to {student.grid}"
        elif name == _TIMMS_POSITIONS and whole.shape != target.shape:
            source, resized = _of_timm(whole, target), f"{whole.shape[1]} positions to {target.shape[1]}"
        elif name == "positional_embedding" and _is_longer(student, teacher):
            source, resized = _longer(whole, len(target)), f"{len(whole)} positions to {len(target)}"
        if source.ndim != target.ndim or any(
            have < want or (have > want and not student.plain)
            for have, want in zip(source.shape, target.shape, strict=True)
        ):
            raise UserError(
                f"its {teacher_name} is {tuple(whole.shape)}, the student's {tuple(target.shape)}",
                where=where,
                do="Give a wider teacher or a narrower student",
            )
        heads = None
        if student.plain and _BY_HEADS.search(name):
            heads = (student.fields["heads"], teacher.fields["heads"])
        part, slices = _leading(source, target.shape, heads if _FUSED in name else None)
        row = Inherited(
            student=student_name,
            teacher=teacher_name,
            tower=student.name,
            shape=tuple(whole.shape),
            slices=resized + slices,
            elements=target.numel(),
            stack=stack,
            layer=layer,
            layers=(depths[0][stack], depths[1][stack]) if stack else None,
            heads=heads,
        )
        yield target, part, row


def _check_kinds(student: TowerView, teacher: TowerView, where: str) -> None:
    """Sizes may differ in plain towers, nothing else."""
    if student.family != teacher.family:
        if "pruned" in teacher.family:
            raise UserError(
                f"its {teacher.name} tower was pruned: its layers differ, and no other tower can be cut out of it",
                where=where,
                do="Let the student be that very model, or give another teacher",
            )
        raise UserError(
            f"its {teacher.name} tower is a {teacher.family}, the student's a {student.family}",
            where=where,
            do="Give a teacher of the student's family",
        )
    ours, theirs = student.fields, teacher.fields
    differ = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    # What an input's size changes in tensors of another family shows in their shapes.
    may_differ = SIZES if student.plain else INPUT_SIZES
    fault = next((key for key in differ if key not in may_differ), None)
    if fault:
        whole = "" if student.plain else f": a {student.family} is inherited whole or not at all"
        here, there = (textwrap.shorten(str(fields.get(fault)), 80, placeholder=" …") for fields in (ours, theirs))
        raise UserError(
            f"{fault} of its {teacher.name} tower is {there}, of the student's {here}",
            where=where,
            do=f"Let the student's configuration say the same, or give another teacher{whole}",
        )


def _steps(student: TowerView, teacher: TowerView, where: str) -> Mapping[str, int]:
    """Stack of layers → the distance in the teacher between layers that are neighbours in the student."""
    steps, depths = {}, teacher.depths()
    for stack, layers in student.depths().items():
        there = depths.get(stack, 0)
        if there < layers:
            raise UserError(
                f"{stack} of its {teacher.name} tower has {there} layers, of the student's {layers}",
                where=where,
                do="Give a deeper teacher or a shallower student",
            )
        steps[stack] = there // layers
    return steps


def _on_grid(positions: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """(1 + rows x columns, width) interpolated as in open_clip's `resize_pos_embed`; the class position stays."""
    image = positions[1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, wanted, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], image.flatten(2)[0].T])


def _of_timm(positions: Tensor, like: Tensor) -> Tensor:
    """(1, tokens before + n x n, width) as many as in `like`, by timm's own interpolation; else as they were."""
    from timm.layers.pos_embed import resample_abs_pos_embed  # noqa: PLC0415 - slow, and few need it

    counts = positions.shape[1], like.shape[1]
    for before in range(_MOST_BEFORE + 1):
        old, new = (math.isqrt(max(0, count - before)) for count in counts)
        if (old * old + before, new * new + before) == counts:
            resampled: Tensor = resample_abs_pos_embed(
                positions, [new, new], [old, old], num_prefix_tokens=before, interpolation="bicubic"
            )
            return resampled
    return positions


def _is_longer(student: TowerView, teacher: TowerView) -> bool:
    """Whether the student's captions have more tokens, in towers that have nothing but tokens."""
    if student.name != "text" or student.fields.get("embed_cls"):
        return False
    longer: bool = student.fields["context_length"] > teacher.fields["context_length"]
    return longer


def _longer(positions: Tensor, count: int) -> Tensor:
    """(n, width) to a longer context, linearly, as in open_clip's `resize_text_pos_embed` (CLIPA)."""
    return F.interpolate(positions.T[None], count, mode="linear", align_corners=False)[0].T


def _leading(source: Tensor, shape: torch.Size, fused_heads: tuple[int, int] | None) -> tuple[Tensor, str]:
    """The leading part of that shape and how it is cut; of a fused QKV projection, the leading heads of each."""
    if source.shape == shape:
        return source, "[...]"
    wanted, viewed = list(shape), list(source.shape)
    if fused_heads:
        kept, every = fused_heads
        head_width = viewed[0] // (3 * every)
        viewed = [3, every, head_width, *viewed[1:]]
        wanted = [3, kept, head_width, *wanted[1:]]
    cut = [":" if want == have else f":{want}" for want, have in zip(wanted, viewed, strict=True)]
    words = f"{tuple(viewed) if fused_heads else ''}[{', '.join(cut)}]"
    return source.reshape(viewed)[tuple(map(slice, wanted))].reshape(shape), words


def _of_logits(student: dict[str, Any], teacher: dict[str, Any]) -> Iterator[_Copy]:
    """Both or none: a scale means something only with the bias it was learned with."""
    ours, theirs = ({name: side[name] for name in SCALARS if name in side} for side in (student, teacher))
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        return
    for name, target in ours.items():
        row = Inherited(
            student=name,
            teacher=name,
            tower="logits",
            shape=tuple(target.shape),
            slices="[...]",
            elements=target.numel(),
        )
        yield target, theirs[name], row
