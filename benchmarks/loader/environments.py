"""The contenders' own environments, made on first use beside none of our packages.

open_clip runs in ours, but with the webdataset that it asks for: its reader stumbles over what later ones put between
shards. SPDL's wheels bring no FFmpeg: PyAV's does, under names of its own, which links undo.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks.environments import make

PACKAGES = {
    "open_clip": ("webdataset==0.2.86",),
    "spdl": ("spdl==0.8.0", "av==18.1.0", "numpy"),
    "dali": ("nvidia-dali-cuda120==2.4.0", "numpy"),
}


def install(folder: Path, peer: str, *, may: bool = True) -> str | None:
    """Make `folder/PEER` unless it is there; returns why it cannot be had, or None. Without `may` nothing is made."""
    environment = folder / peer
    reason = make(environment, PACKAGES[peer], may=may, target=peer == "open_clip")
    if reason is None and peer == "spdl":
        _link_ffmpeg(environment)
    return reason


def command(folder: Path, name: str) -> tuple[list[str], dict[str, str]]:
    """How to run `run_NAME.py`, and what its environment has beside the usual."""
    program = str(Path(__file__).with_name(f"run_{name}.py"))
    root = str(Path(__file__).parents[2])
    if name in {"ours", "torchvision"}:
        return [sys.executable, program], {"PYTHONPATH": root}
    if name == "open_clip":
        return [sys.executable, program], {"PYTHONPATH": f"{folder / name}:{root}"}
    more = {"LD_LIBRARY_PATH": f"{folder / name / 'ffmpeg'}:{_libraries(folder / name)}"} if name == "spdl" else {}
    return [str(folder / name / "bin" / "python"), program], {"PYTHONPATH": root, **more}


def _libraries(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"), environment) / "av.libs"


def _link_ffmpeg(environment: Path) -> None:
    links = environment / "ffmpeg"
    links.mkdir(exist_ok=True)
    for path in _libraries(environment).glob("lib*.so.*"):
        # libavutil-5809ad29.so.60.26.102 is what others call libavutil.so.60.
        found = re.fullmatch(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.(\d+)\..*", path.name)
        if found:
            link = links / f"{found[1]}.so.{found[2]}"
            link.unlink(missing_ok=True)
            link.symlink_to(path)
