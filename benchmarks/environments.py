"""Environments of others' packages, made on first use beside none of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def make(environment: Path, packages: Sequence[str], *, may: bool = True, target: bool = False) -> str | None:
    """Make a virtual environment of these packages unless it is there; returns why it cannot be had, or None.

    Without `may` nothing is installed. `target`: it is a folder of theirs alone, without what they depend on and
    without a Python, to be put on our path.
    """
    ready = environment / ".ready"
    if ready.exists() and ready.read_text() == "\n".join(packages):
        return None
    if not may:
        return "it is not installed, and a quick run installs nothing"
    uv = str(Path(sys.executable).with_name("uv"))
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode"]
    commands = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [*install, "--python", str(environment / "bin" / "python"), *packages],
    ]
    if target:
        commands = [[*install, "--no-deps", "--target", str(environment), *packages]]
    # Without the name of an environment that happens to be active.
    usual = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=usual)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode != 0:
            return " ".join(done.stderr.split())[-300:]
    ready.write_text("\n".join(packages))
    return None
