"""An export's folder appears whole or not at all, whatever other exports do beside it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from distill.export.staging import refuse_no_room, staged
from shards.errors import UserError


def killed_while_exporting(folder: Path) -> None:
    """A process of its own, which ends by SIGKILL with half an export."""
    process = os.fork()
    if process == 0:
        try:
            with staged(str(folder)) as staging:
                (staging / "half").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)  # it must not go on with the tests
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_what_a_killed_export_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    killed_while_exporting(tmp_path / "vit")
    (left,) = tmp_path.iterdir()
    assert (left / "half").exists()
    with staged(str(tmp_path / "vit")) as staging:
        (staging / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]
    assert [path.name for path in (tmp_path / "vit").iterdir()] == ["whole"]


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    """Neither what an export to a longer name left, which may be the user's to look at, nor what is no export's."""
    killed_while_exporting(tmp_path / "vit.onnx")
    for name in (".vit.mine.tmp", ".vit.0123.tmp"):
        (tmp_path / name).mkdir()
    before = set(tmp_path.iterdir())
    with staged(str(tmp_path / "vit")):
        pass
    assert set(tmp_path.iterdir()) == before | {tmp_path / "vit"}


def test_exports_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    """To another name that begins alike, and to the same one, where the first to be ready gets it."""

    def export_late() -> None:
        with staged(str(tmp_path / "vit")) as late:
            (late / "file").write_text("late")
            with staged(str(tmp_path / "vit")) as early:
                (early / "file").write_text("early")
            assert (late / "file").exists()

    with staged(str(tmp_path / "vit.onnx")) as other:
        (other / "file").write_text("other")
        with pytest.raises(UserError, match="something already"):
            export_late()
        assert (other / "file").exists()
    found = {path.name: (path / "file").read_text() for path in tmp_path.iterdir()}
    assert found == {"vit": "early", "vit.onnx": "other"}


def test_a_name_with_the_signs_of_a_pattern_is_only_a_name(tmp_path: Path) -> None:
    for name in ("v[i]t", "v.t*"):
        killed_while_exporting(tmp_path / name)
        with staged(str(tmp_path / name)):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"v[i]t", "v.t*"}


def test_a_disk_without_room_is_told_before_the_work(tmp_path: Path) -> None:
    refuse_no_room(str(tmp_path / "not" / "there" / "yet"), 1000)
    with pytest.raises(UserError, match=r"takes about 1,000,000,000 MB, and [\d,]+ MB are left"):
        refuse_no_room(str(tmp_path / "not" / "there" / "yet"), 10**15)
    assert list(tmp_path.iterdir()) == []
