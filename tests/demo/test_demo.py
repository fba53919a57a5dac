"""The demo at a small size: killed at every stage and started again, it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SMALL = """
import sys, warnings
from demo.launch import run_demo
from demo.settings import DemoSettings

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    settings = DemoSettings(
        out=sys.argv[1], train_rows=240, held_out_rows=60, shard_size=60, views=2,
        teacher_steps=8, student_steps=6, batch_size=32, seeds=(0,),
    )
    print(run_demo(settings, 2))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "small_demo.py"
    path.write_text(SMALL)
    return path


def begin(script: Path, out: Path) -> subprocess.Popen[str]:
    # A session of its own, so that a signal can reach all of it as it does from a terminal.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        [sys.executable, str(script), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors


def numbers(out: Path) -> dict[str, Any]:
    """Everything the demo reports that is not measured in seconds."""
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    del results["speed"]
    for part in (*results["ingest"].values(), results["cache"]):
        del part["seconds"]
    return results


def until(process: subprocess.Popen[str], path: Path) -> None:
    """Wait for `path` to appear while the demo runs."""
    deadline = time.monotonic() + 600
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, "the demo ended first"
        assert time.monotonic() < deadline, f"{path} never appeared"
        os.sched_yield()


def group_members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                members.append(int(entry.name))
    return members


# What is on disk when the signal comes, which signal, and how it is sent: kill -9 of the driver alone (its web server
# and Ray's workers must not publish what they make of that), kill -9 of everything, Ctrl-C.
MOMENTS = [
    ("shards/train/_records/00001.*.json", signal.SIGKILL, os.kill),
    ("runs/teacher/checkpoints/0*3", signal.SIGINT, os.killpg),
    ("cache/teacher/views-000-001/_records/00000.*.json", signal.SIGKILL, os.killpg),
    ("runs/distilled-0/checkpoints/0*2", signal.SIGKILL, os.killpg),
]


@pytest.mark.demo
def test_a_small_demo_ends_with_its_page(script: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    finish(begin(script, out))
    results = json.loads((out / "results.json").read_text())
    for split in results["ingest"].values():
        assert split["rows"] == split["samples"] + sum(split["failed"].values())
    assert set(results["scores"]) == {"teacher", "baseline-0", "distilled-0"}
    assert (out / "export" / "transformers" / "model.safetensors").exists()
    check_page(out)


def check_page(out: Path) -> None:
    page = (out / "index.html").read_text()
    assert page.count("<img ") == 24
    assert "http_404" in page
    assert page.count("<script>") == 1
    assert "default-src 'none'" in page
    assert 'src="http' not in page


@pytest.mark.long
def test_a_demo_killed_in_every_stage_ends_with_the_same_numbers(script: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    # The port is part of the data (URLs), so both must use one; they run one after the other.
    finish(begin(script, undisturbed))
    (killed / "results").mkdir(parents=True)
    port = (undisturbed / "results" / "port.json").read_text()
    (killed / "results" / "port.json").write_text(port)
    groups = []
    for place, sign, send in MOMENTS:
        process = begin(script, killed)
        until(process, killed / place)
        send(process.pid, sign)
        process.communicate(timeout=60)
        assert process.returncode != 0
        groups.append(process.pid)
    finish(begin(script, killed))
    assert numbers(killed) == numbers(undisturbed)
    check_page(killed)
    # Started again at once, not after everything had died; Ray's own agents look for a killed driver for a minute.
    deadline = time.monotonic() + 600
    while any(group_members(group) for group in groups):
        assert time.monotonic() < deadline, "processes were left behind"
        os.sched_yield()


def test_a_demo_begun_otherwise_is_refused(tmp_path: Path) -> None:
    from demo.launch import run_demo  # noqa: PLC0415
    from demo.settings import DemoSettings  # noqa: PLC0415
    from shards import UserError  # noqa: PLC0415

    first = DemoSettings(out=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("demo.run.Demo._ingest", _stop)
        patch.setattr("demo.run.ray_session", lambda **_: _Nothing())
        with pytest.raises(_StoppedError):
            run_demo(first, 1)
    with pytest.raises(UserError, match='teacher was null, now "ViT-B-32:openai"'):
        run_demo(DemoSettings(out=str(tmp_path), teacher="ViT-B-32:openai"), 1)


class _StoppedError(Exception):
    pass


def _stop(_: object) -> None:
    raise _StoppedError


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
