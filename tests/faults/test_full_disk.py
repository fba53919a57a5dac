"""A disk that fills up under a build or a run: one line, nothing torn, and with more room the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from distill.training.checkpoint import Checkpoints
from shards import verify_dataset
from teacher_cache.verify import verify_cache

pytestmark = pytest.mark.long

PROGRAM = """
import io, json, os, shutil, subprocess, sys
from pathlib import Path
from clipstill.main import main
small, out, words = {small!r}, {out!r}, {words!r}
Path(small).mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={size}", "none", small], check=True)
told, sys.stderr = sys.stderr, io.StringIO()
sys.stdout = io.StringIO()
first = main(words)
said = sys.stderr.getvalue().splitlines()
shutil.copytree(out, {full!r})
subprocess.run(["mount", "-o", "remount,size=256m", small], check=True)
second = main(words)
if second:
    told.write(sys.stderr.getvalue())
shutil.copytree(out, {after!r})
print(json.dumps([first, said[-1], second]), file=sys.__stdout__)
"""
"""A command on a disk of some size, then on a larger one; copies of what it left after each."""


@pytest.fixture
def twice(tmp_path: Path, in_own_mounts: Callable[[str], str]) -> Callable[[list[str], str], tuple[str, Path, Path]]:
    """Runs a command with `--out` on a disk that is too small, then with room: the line it said first, and what was
    there after each.
    """

    def run(words: list[str], size: str) -> tuple[str, Path, Path]:
        full, after, small = tmp_path / "full", tmp_path / "after", tmp_path / "small"
        out = str(small / "out")
        words = [*words, "--out", out]
        program = PROGRAM.format(small=str(small), out=out, words=words, size=size, full=str(full), after=str(after))
        first, said, second = json.loads(in_own_mounts(program).splitlines()[-1])
        assert (first, second) == (2, 0), said
        assert said.startswith("clipstill: error: "), said
        return said, full, after

    return run


def test_a_cache_build(twice: Any, make_dataset: Any, save_teacher: Any, snapshot: Any, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "set", [30] * 4)
    words = ["cache", "build", str(tmp_path / "set"), "--teacher", save_teacher(tmp_path / "teacher")]
    words += ["--views", "2", "--batch-size", "30", "--in-process"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    expected = snapshot(tmp_path / "whole")
    said, full, after = twice(words, "48k")
    assert "the disk is full" in said
    assert "Make room there and in $TMPDIR, then run the same command again" in said
    left = snapshot(full)
    assert 0 < sum(name.endswith(".arrow") for name in left) < sum(name.endswith(".arrow") for name in expected)
    # What was there by then is whole; nothing else is but what a failed shard may leave.
    assert {name: data for name, data in left.items() if "_failures" not in name}.items() <= expected.items()
    assert snapshot(after) == expected
    assert verify_cache(str(dataset.folder), str(after), rows=4).problems == ()


def test_a_run(twice: Any, make_dataset: Any, save_student: Any, tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", [16, 16])
    assert verify_dataset(str(tmp_path / "set")).problems == ()
    words = ["distill", str(tmp_path / "set"), "--student", save_student(tmp_path / "student.json")]
    words += ["--steps", "6", "--batch-size", "8", "--lr", "1e-3", "--warmup", "2", "--checkpoint-every", "2"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    sizes = [path.stat().st_size for path in (tmp_path / "whole" / "checkpoints" / "00000006").iterdir()]
    # Room for one checkpoint, and for half of another.
    said, full, after = twice(words, str(sum(sizes) * 3 // 2))
    assert "a checkpoint could not be written" in said
    assert "Make room and start the run again" in said
    checkpoints = Checkpoints(full, 2)
    assert checkpoints.steps() == [2]
    checkpoints.load(2)
    models = [folder / "model" / "open_clip_model.safetensors" for folder in (tmp_path / "whole", after)]
    assert models[0].read_bytes() == models[1].read_bytes()
