"""What a user meets first: help that teaches, and one line for what cannot work."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from shards import Dataset

COMMANDS = [
    ["ingest"],
    ["shards", "verify"],
    ["cache", "plan"],
    ["cache", "build"],
    ["cache", "verify"],
    ["cache", "report"],
    ["cache", "import"],
    ["cache", "export"],
    ["distill"],
    ["compare"],
    ["evaluate"],
    ["export"],
    ["classify"],
    ["embed"],
    ["models"],
    ["models", "bench"],
    ["demo"],
]


def helped(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_ends_with_examples_that_parse(
    command: list[str], capsys: pytest.CaptureFixture[str], parse_line: Callable[[str], None]
) -> None:
    _, _, examples = helped(command, capsys).partition("example:\n")
    lines = [line.strip() for line in examples.replace("\\\n", " ").splitlines() if line.strip()]
    assert lines
    for line in lines:
        assert line.split()[: len(command) + 1] == ["clipstill", *command]
        parse_line(re.sub(r" {3,}\(.*\)$", "", line))  # without what is said about it


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ingest", "nowhere.csv", "--name", "a", "--out", "x"], ["nowhere.csv", "no such input file"]),
        (["ingest", "text.csv", "--name", "a", "--out", "x"], ["no column 'url'", "'address'", "--url-column"]),
        (["ingest", "text.csv", "--name", "A.b", "--out", "x"], ["'A.b'", "lower-case"]),
        (["ingest", "empty.tsv", "--format", "cc3m", "--name", "a", "--out", "x"], ["empty.tsv", "no rows"]),
        (["shards", "verify", "nowhere"], ["nowhere", "no dataset"]),
        (["cache", "build", "nowhere", "--teacher", "ViT-B-32:openai", "--out", "x"], ["nowhere", "no dataset"]),
        (["cache", "verify", "nowhere", "--cache", "x"], ["nowhere", "no dataset"]),
        (["distill", "nowhere", "--student", "ViT-B-32", "--steps", "1", "--out", "x"], ["nowhere", "no dataset"]),
        (["distill", "nowhere", "--student", "ViT-B-32", "--out", "x"], ["--steps or --epochs"]),
        (["distill", "x", "--student", "a", "--steps", "1", "--out", "x", "--loss", "warm=1"], ["'warm'", "affinity"]),
        (["distill", "x", "--student", "a", "--steps", "1", "--out", "x", "--loss", "fd"], ["--cache"]),
        (["distill", "x", "--student", "a", "--steps", "1", "--out", "x", "--loss", "affinity=a"], ["'a'", "number"]),
        (["evaluate", "nowhere/model", "--on", "data"], ["nowhere/model", "no such folder"]),
        (["evaluate", "ViT-B-33:openai", "--on", "data"], ["ViT-B-33", "ViT-B-32"]),
        (["evaluate", "ViT-B-32:mine", "--on", "data"], ["'mine'", "laion2b_s34b_b79k"]),
        (["evaluate", "ViT-B-32:openai", "--on", "x", "--classes", "text.csv"], ["text.csv", "templates"]),
        (["export", "nowhere/model", "--out", "x"], ["nowhere/model", "no such folder"]),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_dataset: Any,
    *,
    arguments: list[str],
    told: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "data" in arguments:
        make_dataset(tmp_path / "data", [2])
    Path("text.csv").write_text("address,caption\nhttp://127.0.0.1/a,b\n")
    Path("empty.tsv").write_text("")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("clipstill: error: ")
    for words in told:
        assert words in line
    assert shown.out == ""
    assert not Path("x").exists(), "nothing may be left behind"


def test_the_console_script_ends_with_the_status_and_without_a_traceback(tmp_path: Path) -> None:
    script = str(Path(sys.executable).parent / "clipstill")
    result = subprocess.run(
        [script, "shards", "verify", str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert str(tmp_path) in line


def test_no_command_is_an_error_that_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "usage: clipstill" in capsys.readouterr().err


def test_an_interrupt_before_anything_is_loaded_is_one_line() -> None:
    program = """
import runpy, sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == "clipstill.parser":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
sys.argv = ["clipstill", "--version"]
runpy.run_module("clipstill", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "clipstill: interrupted. Nothing was begun\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_an_optional_import_is_neither_lost_nor_a_bug(number: int, tmp_path: Path) -> None:
    """As where Arrow looks for pandas: what the import raises is dropped, and half of the module stays."""
    program = f"""
import contextlib, os, queue, sys
import clipstill.main as m

def looks_for_it(args):
    with contextlib.suppress(BaseException):
        import optional
    print("whole" if hasattr(sys.modules.get("optional"), "end") else "half", flush=True)
    queue.SimpleQueue().get()

m.models.run = looks_for_it
sys.argv = ["clipstill", "models"]
sys.path.insert(0, {str(tmp_path)!r})
m.run()
"""
    (tmp_path / "optional.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nend = 1\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout) == (128 + number, "whole\n")
    assert done.stderr.startswith("clipstill: interrupted.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("home", "kept"), [("", True), ("home/file", False)])
def test_a_home_that_cannot_be_written_keeps_nothing(
    home: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch makes the folder that it is given as soon as it is imported, and would fail."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert main(["models"]) == 0
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (str(tmp_path / ".cache/torchinductor") if kept else None)


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_output_is_no_error(closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m clipstill models {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_nobody_reads_to_its_end_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m clipstill distill --recipe list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["aced"]
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_log_of_json_lines_names_shard_and_sample(make_dataset: Any, save_teacher: Any, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", (3, 2)).folder
    dataset = Dataset.open(str(data))
    start = dataset.shards[1].image_bytes(1)
    tar = tmp_path / "data" / "00001.tar"
    tar.write_bytes(tar.read_bytes().replace(start, bytes(len(start))))
    command = [sys.executable, "-m", "clipstill", "cache", "build", data.url, "--out", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "--teacher", save_teacher(tmp_path / "teacher"), "--batch-size", "4", "--in-process"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CLIPSTILL_LOG": "json"},
    )
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (failed,) = [line for line in lines if "cause" in line]
    assert (failed["shard"], failed["key"], failed["attempt"]) == (1, dataset.shards[1].keys[1], 1)
    assert "does not decode" in failed["cause"]
    assert all({"time", "level", "from", "message"} <= line.keys() for line in lines)
    (report,) = (tmp_path / "cache").glob("*/*/_failures/00001.json")
    assert json.loads(report.read_text())["key"] == failed["key"]


def test_a_log_of_a_form_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CLIPSTILL_LOG", "xml")
    assert main(["models"]) == 2
    assert capsys.readouterr().err.startswith("clipstill: error: $CLIPSTILL_LOG: there is no log of the form 'xml'")
