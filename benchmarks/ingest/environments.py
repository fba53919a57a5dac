"""The peers' own environments: each is installed as its users install it, beside none of our packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PEERS = {
    # With the versions that we have of what both use to decode, so that those do not make the difference.
    "img2dataset": (
        "img2dataset==1.47.0",
        *(f"{name}=={version(name)}" for name in ("opencv-python-headless", "pillow", "pyarrow", "webdataset")),
        "standard-imghdr; python_version >= '3.13'",
    ),
    "daft": ("daft==0.7.26",),
}


def installed(folder: Path, peer: str) -> bool:
    """Whether `install` has made `folder/PEER`."""
    ready = folder / peer / ".ready"
    return ready.exists() and ready.read_text() == "\n".join(PEERS[peer])


def install(folder: Path, peer: str) -> str | None:
    """Make `folder/PEER` with the peer's packages unless it is there; returns why it cannot be had, or None."""
    if installed(folder, peer):
        return None
    environment = folder / peer
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(environment / "bin" / "python")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *PEERS[peer]],
    ):
        # Without the name of an environment that happens to be active.
        usual = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=usual)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode != 0:
            return " ".join(done.stderr.split())[-300:]
    (environment / ".ready").write_text("\n".join(PEERS[peer]))
    return None
