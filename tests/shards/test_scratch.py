"""Temporary files: nothing stays, and what a killed command left the next one removes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shards.scratch import command_scratch, scratch_in, short_root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_command_keeps_in_files_lies_in_one_folder_and_goes_with_it(root: Path) -> None:
    with command_scratch() as folder:
        assert folder.parent == root
        Path(tempfile.mkdtemp()).joinpath("a").touch()
        said = subprocess.check_output([sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"])
        assert (len(list(folder.iterdir())), said.decode().strip()) == (2, str(folder))
    assert list(root.iterdir()) == []
    assert (os.environ["TMPDIR"], tempfile.gettempdir()) == (str(root), str(root))


def test_what_a_killed_command_left_is_swept_and_nothing_else(root: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from shards.scratch import command_scratch
with command_scratch() as folder:
    (folder / "a").touch()
    print(folder, flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    (root / "clipstill-of-mine").mkdir()
    dead = subprocess.run([*command, "die"], stdout=subprocess.PIPE, check=False)
    left = Path(dead.stdout.decode().strip())
    assert (dead.returncode, (left / "a").exists()) == (-9, True)
    with subprocess.Popen([*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        used = Path(living.stdout.readline().decode().strip())
        assert not left.exists()
        with scratch_in(root):
            assert (used / "a").exists()
        living.communicate(b"")
    assert {path.name for path in root.iterdir()} == {"clipstill-of-mine"}


def test_where_the_usual_place_has_too_long_a_name_another_is_taken(root: Path) -> None:
    assert short_root(len(str(root)) + 19) == root
    with scratch_in(short_root(43)) as folder:
        assert len(str(folder)) <= 43
