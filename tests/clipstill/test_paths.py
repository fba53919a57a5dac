"""Every path of every command, with what else may lie there: one line, status 2, and nothing made or touched."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN = "distill {DATA} --student {MODEL} --steps 1 --batch-size 4 --out {OUT}"
COMMANDS = [
    "shards verify {SHARDS!}",
    "ingest {LIST!} --name n --out {OUT!} --in-process",
    "ingest retry {SHARDS!} --in-process",
    "ingest report {SHARDS!}",
    "cache build {SHARDS!} --teacher {MODEL!} --out {OUT!} --in-process --views 1 --device cpu",
    "cache plan {SHARDS!} --teacher {MODEL} --in-process --seconds 0.1",
    "cache verify {SHARDS!} --cache {CACHE!}",
    "cache report {SHARDS} --cache {CACHE!}",
    "cache import {SHARDS!} {SOURCE!} --format clip-retrieval --teacher t --image-size 32 --out {OUT!} --in-process",
    "cache import {SHARDS} {TAR!} --format datacompdr --out {OUT!} --in-process",
    "cache export {SHARDS!} --cache {CACHE!} --format npz --out {OUT!} --in-process",
    "cache export {SHARDS} --cache {CACHE!} --format clip-retrieval --out {OUT!}",
    "distill {SHARDS!} --student {STUDENT!} --steps 1 --batch-size 4 --out {OUT!}",
    "distill {DATA} --cache {CACHE!} --student {MODEL} --steps 1 --batch-size 4 --out {OUT}",
    f"{TRAIN} --eval {{SHARDS!}}",
    f"{TRAIN} --eval {{DATA}} --classes {{CLASSES!}} --label caption",
    f"{TRAIN} --initial {{MODEL!}}",
    f"{TRAIN} --recipe {{RECIPE!}}",
    "compare {RUN!} {ANOTHER} --out {PAGE!}",
    "evaluate {MODEL!} --on {SHARDS!}",
    "evaluate {MODEL} --on {DATA} --classes {CLASSES!} --label caption",
    "export {MODEL!} --format safetensors --out {OUT!}",
    "models {MODEL!}",
    "models bench {MODEL!}",
]
"""In each, one place at a time (those with a mark) takes what does not belong there."""

WRONG = [
    *("nowhere", "nowhere/below", "a-file", "a-file/below", "a.tar", "empty", "other"),
    *("the-dataset", "the-run", "the-run/model", "the-cache", "the-cache/model"),
    *("s3://bucket/x", "hf://datasets/none/x", "nothing://x", "data::data", "s3://a::s3://b", "~nobody-at-all/x"),
    *("x" * 300, "-", " "),
]

FITS: dict[str, set[str]] = {
    "SHARDS": {"the-dataset"},
    "CACHE": {"the-cache"},
    "RUN": {"the-run"},
    "SOURCE": set(),
    "LIST": {"a-file", "other"},
    "CLASSES": set(),
    "RECIPE": set(),
    "TAR": set(),
    "MODEL": {"the-run/model"},
    "STUDENT": {"the-run/model"},
    # What goes into a cache that is there is for the cache's own tests.
    "OUT": {"nowhere", "nowhere/below", "empty", "the-cache", "-", " ", "data::data"},
    "PAGE": {"nowhere", "nowhere/below", "-", " ", "data::data"},
}


@pytest.fixture(scope="module")
def world(make_dataset: Any, save_teacher: Any) -> Iterator[Path]:
    """A folder with one of everything, the current one, which every user may read; no store answers."""
    with tempfile.TemporaryDirectory() as held, pytest.MonkeyPatch.context() as patch:
        root = Path(held)
        root.chmod(0o755)
        patch.chdir(root)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(root / "home"))
        Path("home").mkdir()
        make_dataset(root / "the-dataset", [6, 3])
        model = save_teacher(root / "the-model")
        build = f"cache build the-dataset --teacher {model} --teacher-name model --views 1 --out the-cache --in-process"
        assert main([*build.split(), "--device", "cpu"]) == 0
        train = f"distill the-dataset --student {model} --steps 1 --batch-size 4 --warmup 0"
        assert main([*train.split(), "--out", "the-run"]) == 0
        shutil.copytree("the-run", "another-run")
        Path("open").mkdir()
        Path("open").chmod(0o777)
        Path("a-file").write_text("url,caption\nhttp://127.0.0.1:9/1.jpg,one\n")
        tarfile.open("a.tar", "w").close()
        Path("empty").mkdir()
        Path("other").mkdir()
        Path("other/letter.txt").write_text("dear")
        yield root


def contents(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(path for path in root.rglob("*") if "home" not in path.parts):
        state = path.lstat()
        found[str(path.relative_to(root))] = (state.st_size, state.st_mtime_ns if path.is_file() else 0)
    return found


GOOD = {
    "SHARDS": "the-dataset",
    "DATA": "the-dataset",
    "CACHE": "the-cache",
    "RUN": "the-run",
    "ANOTHER": "another-run",
    "MODEL": "the-model",
    "STUDENT": "the-model",
    "LIST": "a-file",
    "OUT": "open/not-yet",
    "PAGE": "open/not-yet.html",
    "CLASSES": "nowhere.json",
    "RECIPE": "nowhere.toml",
    "SOURCE": "nowhere",
    "TAR": "nowhere.tar",
}


def filled(command: str, place: str, wrong: str) -> list[str]:
    """The command's words, with `wrong` in one place."""
    fits = {name: wrong if name == place else fit for name, fit in GOOD.items()}
    words = (re.fullmatch(r"\{(\w+)!?\}", word) for word in command.split())
    return [fits[found[1]] if found else word for found, word in zip(words, command.split(), strict=True)]


CASES = [
    pytest.param(command, place, id=f"{command.split(' {')[0]} {number} {place}")
    for number, command in enumerate(COMMANDS)
    for place in re.findall(r"\{(\w+)!\}", command)
]


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main(arguments) == 2, arguments
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("clipstill: error: "), arguments
    assert shown.out == ""
    return line


@pytest.mark.parametrize(("command", "place"), CASES)
def test_what_does_not_belong_there_is_one_line(
    world: Path, command: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(world)
    for wrong in WRONG:
        if wrong not in FITS[place]:
            told(filled(command, place, wrong), capsys)
            assert contents(world) == before, wrong


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that may be read, in it one that may not; as a user who is not root."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    (root / "sealed").mkdir(mode=0o000)
    (root / "sealed").chmod(0o000)
    root.chmod(0o555)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        yield root
    finally:
        if as_root:
            os.seteuid(0)
        root.chmod(0o755)
        (root / "sealed").rmdir()
        root.rmdir()


@pytest.mark.parametrize(("command", "place"), CASES)
def test_what_may_not_be_read_or_written_is_one_line(
    world: Path, locked: Path, command: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(world)
    for wrong in (locked / "x", locked / "sealed/x") if place in {"OUT", "PAGE"} else (locked / "sealed",):
        line = told(filled(command, place, str(wrong)), capsys)
        assert str(locked) in line
    assert contents(world) == before
