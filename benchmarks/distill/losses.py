"""The memory of losses in parts, measured beside its formula: `python -m benchmarks.distill.losses [--quick]`.

At its height a step holds `blocks(loss, K)` matrices of a part's rows x B for K teachers, and of a sum of losses the
most that one of them does, since one part of one loss is there at a time. Beside them are the embeddings themselves.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.distill.memory import rise
from benchmarks.record import RESULTS, Goal, finish, machine, say, versions
from distill.losses import LOSSES, Embeddings, LossShape, Targets, WeightedSum, parts

_BLOCKS: dict[str, Callable[[int], int]] = {
    "contrastive": lambda _: 4,
    "affinity": lambda teachers: 4 + 4 * teachers,
    "crd": lambda teachers: 6 + 4 * teachers,
    "fd": lambda _: 0,
    "gd": lambda teachers: 5 + 7 * teachers,
    "icl": lambda teachers: 2 + 2 * teachers,
    "afd": lambda teachers: 3 + 3 * teachers,
    "reinforcement": lambda _: 8,
    "sigmoid": lambda _: 4,
    "sigmoid_affinity": lambda teachers: 2 + 2 * teachers,
}
"""How many matrices of a part's rows x B each holds, by the number of teachers."""
SUMS = {"CLIP-KD's sum": ("contrastive", "crd", "icl", "fd"), "gd": ("gd",), "reinforcement": ("reinforcement",)}
_GB, _FLOAT = 1e9, 4


def formula_gb(losses: tuple[str, ...], size: int, rows: int, widths: tuple[int, ...]) -> float:
    """GB that a step's losses hold in float32: of `rows` of a batch of `size`, `widths` of the student and teachers."""
    block = min(parts.BLOCK, rows * size)
    matrices = max(_BLOCKS[name](len(widths) - 1) for name in losses) * block
    # Of the student raw and unit rows and the gradients of both; of a teacher its own and the student's in its width.
    embeddings = 2 * size * (4 * widths[0] + 4 * sum(widths[1:]))
    return _FLOAT * (matrices + embeddings) / _GB


def measured_gb(losses: tuple[str, ...], size: int, widths: tuple[int, ...]) -> float:
    """GB that one forward and backward of the losses adds at its height to what this process holds."""
    torch.manual_seed(0)
    total = WeightedSum({name: LOSSES[name](LossShape(widths[0], widths[1:])) for name in losses})
    image, text = (torch.randn(size, widths[0]).requires_grad_() for _ in range(2))

    def unit(width: int) -> torch.Tensor:
        return F.normalize(torch.randn(size, width), dim=1)

    said = Targets({"txt": tuple(Embeddings(unit(width), unit(width), 50.0) for width in widths[1:])})
    scale = torch.tensor(20.0, requires_grad=True)

    def step() -> None:
        value, _ = total({"txt": Embeddings.of_raw(image, text, scale)}, said, dict.fromkeys(losses, 1.0))
        value.backward()

    step()  # whatever libraries keep once they have run
    return rise(step, torch.device("cpu")) / _GB


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.distill.losses", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small batch; nothing is judged")
    args = parser.parse_args()
    began, before = time.monotonic(), machine()
    sizes = [2048] if args.quick else [6144, 8192]
    # Smaller than in a run, so that small batches have parts too; large enough for pages to be given back.
    whole, parts.BLOCK = parts.BLOCK, 2**20 if args.quick else 2**24
    widths = (64, 64, 96)
    found: list[dict[str, Any]] = []
    for name, losses in SUMS.items():
        for size in sizes:
            expected, got = formula_gb(losses, size, size, widths), measured_gb(losses, size, widths)
            found.append({"losses": name, "batch_size": size, "formula_gb": expected, "measured_gb": got})
            say(f"  {name:20} B = {size:6,} {got:6.3f} GB, by the formula {expected:6.3f}")
    parts.BLOCK = whole
    size, models = 32_768, (512, 768, 768)
    large = {name: formula_gb(losses, size, size, models) for name, losses in SUMS.items()}
    one = _FLOAT * size * size / _GB
    for name, gb in large.items():
        say(f"  {name:20} B = {size:6,} {gb:6.2f} GB by the formula (one B x B matrix: {one:.2f})")
    ratios = [line["measured_gb"] / line["formula_gb"] for line in found]
    goals = [
        Goal(name="memory of losses in parts, measured over the formula, at most", value=max(ratios), at_most=1.15),
        Goal(name="the same, at least", value=min(ratios), at_least=0.7),
        Goal(name="GB of the costliest at B = 32,768 with two teachers", value=max(large.values()), at_most=8),
    ]
    body = {
        "machine": before,
        "versions": versions("clipstill", "torch"),
        "seconds": time.monotonic() - began,
        "widths": widths,
        "measured": found,
        "by_the_formula": {"batch_size": size, "widths": models, "gb": large, "matrix_gb": one},
    }
    folder = Path(__file__).parents[2] / ".bench" / "quick" if args.quick else RESULTS
    return finish(folder, "losses", body, goals, write_page=None, judged=not args.quick)


if __name__ == "__main__":
    sys.exit(main())
