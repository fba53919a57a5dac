"""How commands end: what the machine or a third party's library refuses is one line, what is our mistake says so."""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clipstill.main import main
from shards import Folder, UserError
from shards.causes import machines_refusal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_dataset: Any, save_teacher: Any) -> Path:
    """A dataset, `data`, and a model of 3.4 MB, `model`."""
    root = tmp_path_factory.mktemp("ends")
    make_dataset(root / "data", [5])
    save_teacher(root / "model")
    return root


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.isprintable()
    return line


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond a megabyte: what a full disk does, for any user."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_what_finds_no_room_is_named(tmp_path: Path) -> None:
    """A write that fails names no file itself."""
    with pytest.raises(OSError, match="too large") as raised:
        Folder(tmp_path / "data").publish("page.html", bytes(2_000_000))
    assert str(machines_refusal(raised.value)).startswith(f"{tmp_path}/data/page.html: ")
    assert list((tmp_path / "data").iterdir()) == []


FORMS = ["open_clip", "torchscript", "safetensors", "onnx", "transformers_js", "immich", "pt2"]


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("form", FORMS)
def test_an_export_that_finds_no_room(
    world: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = told(["export", str(world / "model"), "--format", form, "--out", str(tmp_path / "out")], capsys)
    assert "larger than is allowed" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (("epoch.pt", {"state_dict": {}, "args": argparse.Namespace(lr=1)}), ["Namespace", "state_dict"]),
        (("other.pt", {"state_dict": {"a": torch.zeros(2)}}), ["lacks", "architecture"]),
        (("text.pt", b"hello"), ["damaged"]),
        (("empty.pt", b""), ["damaged"]),
        (("zip.pt", b"PK\x03\x04" + bytes(100)), ["damaged"]),
        (("empty.safetensors", b""), ["damaged"]),
        (("garbage.safetensors", b"\xff" * 40), ["damaged"]),
        (("cut.safetensors", b"\x10\0\0\0\0\0\0\0{"), ["damaged"]),
    ],
)
def test_weights_that_cannot_be_read(
    world: Path, tmp_path: Path, weights: tuple[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, content = weights
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    line = told(["evaluate", f"ViT-S-32-alt:{path}", "--on", str(world / "data")], capsys)
    assert str(path) in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "change",
    [
        {"model_cfg": []},
        {"model_cfg": {"embed_dim": "8", "vision_cfg": {}, "text_cfg": {}}},
        {"preprocess_cfg": [1]},
        {"preprocess_cfg": {"mean": "grey"}},
        {"preprocess_cfg": {"interpolation": 3}},
        {"preprocess_cfg": {"resize_mode": "stretch"}},
    ],
    ids=str,
)
def test_a_configuration_of_another_shape(
    world: Path, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((world / "model/open_clip_config.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({**config, **change}))
    (folder / "open_clip_model.safetensors").symlink_to(world / "model/open_clip_model.safetensors")
    assert str(folder) in told(["evaluate", str(folder), "--on", str(world / "data")], capsys)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("hf-hub:nobody/nothing", ["hub", "network"]),
        ("transformers:nobody/nothing", ["hub", "network"]),
        ("ViT-B-33:openai", ["ViT-B-32"]),
        ("ViT-B-32:mine", ["laion2b_s34b_b79k"]),
    ],
)
def test_models_that_are_not_here(
    world: Path, tmp_path: Path, teacher: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No test asks a hub, so this is what a machine without network says."""
    out = ["--out", str(tmp_path / "cache"), "--in-process"]
    line = told(["cache", "build", str(world / "data"), "--teacher", teacher, *out], capsys)
    for word in words:
        assert word in line
    assert not (tmp_path / "cache").exists()


def test_an_output_whose_name_is_no_text(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1:1/x.jpg\n")
    out = tmp_path / os.fsdecode(b"\xff")
    line = told(["ingest", str(tmp_path / "list.txt"), "--name", "x", "--out", str(out), "--in-process"], capsys)
    assert "not UTF-8" in line
    assert not out.exists()
    assert "not UTF-8" in told(["export", str(world / "model"), "--format", "open_clip", "--out", str(out)], capsys)


def test_a_store_whose_package_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install gcsfs" in told(["shards", "verify", "gs://bucket/x"], capsys)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), ["/data/x", "the disk is full", "Make room"]),
        (PermissionError(errno.EACCES, "Permission denied", b"/data/x"), ["/data/x", "permission"]),
        (OSError(errno.EROFS, "Read-only file system"), ["read-only"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), ["too long"]),
        (OSError(errno.EMFILE, "Too many open files"), ["ulimit -n"]),
        (torch.OutOfMemoryError("CUDA out of memory."), ["--batch-size"]),
        (MemoryError(), ["memory is short"]),
        (UnicodeEncodeError("utf-8", "/d/x\udcff", 4, 5, "surrogates not allowed"), ["/d/x", "not UTF-8", "Rename"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_machine_refuses_is_told_with_what_to_do(error: Exception, words: list[str]) -> None:
    outer = RuntimeError("in some library")
    outer.__cause__ = error
    for raised in (error, outer):
        line = str(machines_refusal(raised))
        for word in words:
            assert word in line


def test_a_mistake_of_ours_is_not_taken_for_the_machines() -> None:
    mistake = KeyError("x")
    mistake.__context__ = OSError(errno.ENOSPC, "while it was handled")
    assert machines_refusal(mistake) is None


def test_a_mistake_of_ours_says_that_it_is_one() -> None:
    """A bug that is put in: a command that raises what nobody expects."""
    program = (
        "import clipstill.commands.models as command, clipstill.main as m\n"
        "def broken(args): raise KeyError('lost')\n"
        "command.run = broken\n"
        "m.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "models"], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("clipstill: bug: KeyError: 'lost'. This is a mistake in clipstill")
    assert "report" in last


def test_no_terminal_obeys_a_line_of_ours() -> None:
    error = UserError("\x1b[1;31mred\x1b[0m and \x1b]0;title\x07 a bell\x07\nand\tmore", where="a\rb")
    assert str(error) == "a b: red and a bell and more"
