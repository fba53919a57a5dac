"""How large the demo is, and where."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """The size of the demo. `teacher` is a spec as in `load_teacher`; None trains one from scratch."""

    out: str
    teacher: str | None = None
    train_rows: int = 6000
    held_out_rows: int = 1000
    shard_size: int = 500
    pixels: int = 64
    views: int = 4
    teacher_steps: int = 400
    student_steps: int = 160
    batch_size: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    losses: dict[str, float] = field(default_factory=lambda: {"affinity": 1.0, "fd": 1000.0, "contrastive": 1.0})
