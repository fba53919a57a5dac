"""What a pruning run has left of its student, or would leave if it ended now: drawn layer by layer, and in numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from distill.report.words import millions
from distill.run_folder import RunFolder


@dataclass(frozen=True)
class WhatIsLeft:
    """What is left in words, and the towers' figures."""

    said: str
    drawn: Markup


def what_is_left(run: RunFolder, notes: list[str]) -> WhatIsLeft | None:
    """What `pruning.json` says; None if there is none. If it cannot be read, `notes` has a sentence more."""
    path = run.path / "pruning.json"
    if not path.exists():
        return None
    # It needs torch, which other pages are spared.
    from distill.pruning.report import draw_architecture  # noqa: PLC0415

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return WhatIsLeft(f"{_said(report)} {_heads(report)}", draw_architecture(report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        notes.append("pruning.json cannot be read, so nobody can tell what the masks have left.")
        return None


def _said(report: dict[str, Any]) -> str:
    kept, full = report["parameters"]["kept"], report["parameters"]["full"]
    shares = f"{report['sparsity']:.1%} of {full:,} parameters of attention and MLPs, {report['target']:.1%} asked for"
    if "delivered" not in report:
        return f"If it ended after step {report['step']:,}, the run would leave out {shares}."
    sizes = " + ".join(f"{millions(count)} ({tower})" for tower, count in report["delivered"].items())
    return (
        f"The run leaves out {shares}, and keeps {kept:,}. The model that it delivers has {sizes} parameters in all, "
        "the text tower's without its token embedding."
    )


def _heads(report: dict[str, Any]) -> str:
    towers = report["towers"].values()
    fewer = any(heads < tower["full"]["heads"] for tower in towers for heads in tower["before"]["heads"])
    earlier = "; heads that earlier runs left out are not drawn" if fewer else ""
    return f"Heads: full where kept, hollow where this run left them out{earlier}."
