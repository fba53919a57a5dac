"""What answers at once: help, lists, and whatever is refused, import nothing that takes seconds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main

SLOW = {"torch", "torchvision", "open_clip", "timm", "ray", "transformers", "cv2", "matplotlib"}
ARROW = {"pyarrow", "fsspec"}

HELP = [
    "--help",
    "--version",
    "ingest --help",
    "ingest retry --help",
    "ingest report --help",
    "shards verify --help",
    "shards stats --help",
    "cache build --help",
    "cache plan --help",
    "cache verify --help",
    "cache report --help",
    "cache import --help",
    "cache export --help",
    "distill --help",
    "compare --help",
    "evaluate --help",
    "export --help",
    "classify --help",
    "embed --help",
    "models --help",
    "models bench --help",
    "demo --help",
    "distill --recipe list",
]
OPTIONS = [
    "distil",
    "distill d --epoch 3",
    "distill d --precision fp8",
    "distill d --student a --steps 0 --out o",
    "distill d --student a --steps 1 --out o --loss warm=1",
    "distill d --student a --steps 1 --out o --loss fd",
    "distill d --recipe clip-kdd --out o",
    "distill d --recipe clip-kd",
    "ingest l.csv --name a --out o --shard-size 0",
    "ingest l.csv --name a --out o --quality 101",
    "ingest l.csv --name a --out o --hash crc",
    "ingest retry d --deadline 0",
    "export m --format pickle --out o",
]
PATHS = [
    "cache build nowhere --teacher ViT-B-32:openai --out o",
    "cache build d --teacher ViT-B-32:openai --flip 2 --out o",
    "cache plan nowhere --teacher ViT-B-32:openai",
    "cache verify nowhere --cache c",
    "cache report nowhere --cache c",
    "cache import nowhere tars --format datacompdr --out o",
    "cache export nowhere --cache c --format npz --out o",
    "distill nowhere --student ViT-B-32 --steps 1 --out o",
    "distill nowhere --recipe clip-kd --cache c --out o",
    "evaluate nowhere/model --on d",
    "evaluate ViT-B-32:nowhere/weights.pt --on d",
    "evaluate ViT-B-32:openai --on nowhere",
    "evaluate ViT-B-32:openai --on d --classes nowhere.json",
    "export nowhere/model --out o",
    "classify nowhere/model a.jpg --labels a,b",
    "classify . a.jpg --labels a,b",
    "embed nowhere/model --text a --out o.npz",
    "shards verify nowhere",
    "shards stats nowhere",
    "shards stats nowhere --out p.html",
]

TRAIN = "distill data --steps 1 --batch-size 8"
AMONG_DATA = {
    f"{TRAIN} --student ViT-S-32 --out data": "no run can be made here: this is a dataset of shards",
    f"{TRAIN} --student ViT-S-32 --out pics": "no run can be made here: this is a folder with one.txt",
    f"{TRAIN} --student ViT-S-32 --initial nowhere --out o": "open_clip knows no architecture 'nowhere'",
    f"{TRAIN} --student ViT-S-33 --out o": "'ViT-S-33'. The closest are ViT-S-32",
    f"{TRAIN} --student ViT-S-32 --out o --eval data --classes nowhere.json --label a": "nowhere.json: there is no",
    f"{TRAIN} --student pics --out o": "pics/open_clip_config.json: there is no such file",
    f"{TRAIN} --student ViT-S-32 --micro-batches 3 --out o": "a batch of 8 cannot be cut evenly",
    "distill data --student ViT-S-32 --steps 1 --batch-size 13 --out o": "12 samples do not fill one batch of 13",
    "distill data --student ViT-S-32 --steps 1 --batch-size 0 --out o": "--batch-size is 0, it must be a whole number",
    "distill data data --student ViT-S-32 --steps 1 --out o": "SHARDS: data is given twice",
    "distill data pics --student ViT-S-32 --steps 1 --out o --weight data=0": "--weight data is 0.0, it must be a "
    "number, above 0",
    "distill data --recipe pics/x.toml --out o": "there is no such recipe",
    "distill --recipe clip-kd --smoke --out pics": "no smoke test can be made here: this is a folder with one.txt",
    "distill --recipe clip-kd --smoke --out data": "no smoke test can be made here: this is a dataset",
    "demo --out pics": "no demo can be made here: this is a folder with one.txt",
    "demo --out data": "no demo can be made here: this is a dataset",
    "demo --out theirs": "no demo can be made here: this is a folder with results",
    "demo --out o --teacher nowhere": "open_clip knows no architecture 'nowhere'",
    "cache build data --teacher ViT-B-32:openai --out data": "no cache can be made here: this is a dataset",
    "cache build data --teacher ViT-B-33:openai --out o": "'ViT-B-33'. The closest are ViT-B-32",
    "cache plan data --teacher nowhere": "open_clip knows no architecture 'nowhere'",
    "cache import data pics --format datacompdr --out o": "pics: this is a folder, and tars are wanted. Give those in "
    "it: 'pics/*.tar'",
    "cache import data a.tar --format datacompdr --out data": "no cache can be made here: this is a dataset",
    "cache export data --cache c --format npz --out data": "no export can be made here: this is a dataset",
    "models pics": "pics/open_clip_config.json: there is no such file",
    "models bench pics": "pics/open_clip_config.json: there is no such file",
    "models nowhere": "clipstill: error: open_clip knows no architecture 'nowhere'",
    "models bench ViT-B-32 nowhere": "open_clip knows no architecture 'nowhere'",
    "evaluate nowhere --on data": "open_clip knows no architecture 'nowhere'",
    "evaluate ViT-B-32:openai --on data --classes pics": "pics: this is a folder, and a file is wanted",
    "evaluate ViT-B-32:openai --on data --classes nowhere.json": "nowhere.json: there is no such file. Give",
    "evaluate ViT-B-32:openai --on data --classes pics/one.txt": "pics/one.txt: not readable as JSON (Expecting value",
    "export nowhere --out o": "open_clip knows no architecture 'nowhere'",
    "ingest retry pics/one.txt": "pics/one.txt: no dataset here (there is no dataset.json): this is a file, not a",
    "shards ls pics/one.txt": "pics/one.txt: no dataset here (there is no dataset.json): this is a file, not a folder",
}
"""Wrong places, names and counts beside a dataset of 12 samples → what is said of each."""

PROGRAM = """
import json, sys
from clipstill.main import main

ended = []
for line in json.loads(sys.argv[1]):
    try:
        status = main(line.split())
    except SystemExit as error:
        status = error.code
    ended.append([line, status])
print(json.dumps([ended, sorted(sys.modules)]))
"""


def run_all(lines: list[str], folder: Path) -> tuple[dict[str, int], set[str], list[str]]:
    """Each line in one process, one after the other: their statuses, what was imported by then, what was said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)], capture_output=True, text=True, check=True, cwd=folder
    )
    ended, modules = json.loads(done.stdout.splitlines()[-1])
    return dict(ended), set(modules), done.stderr.splitlines()


def test_help_and_lists_import_nothing_heavy(tmp_path: Path) -> None:
    statuses, modules, _ = run_all(HELP, tmp_path)
    assert set(statuses.values()) == {0}
    assert not modules & (SLOW | ARROW)


def test_wrong_options_are_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    statuses, modules, said = run_all(OPTIONS, tmp_path)
    assert statuses == dict.fromkeys(OPTIONS, 2)
    assert len(said) == len(OPTIONS)
    assert not modules & (SLOW | ARROW)
    assert not list(tmp_path.iterdir())


def test_wrong_paths_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    statuses, modules, said = run_all(PATHS, tmp_path)
    assert statuses == dict.fromkeys(PATHS, 2)
    assert len(said) == len(PATHS)
    assert not modules & SLOW
    assert not list(tmp_path.iterdir())


def test_wrong_places_names_and_counts_are_told_before_torch_is_imported(make_dataset: Any, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", [12])
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "one.txt").write_text("dear")
    (tmp_path / "theirs" / "results").mkdir(parents=True)
    (tmp_path / "theirs" / "results" / "a.csv").write_text("1,2")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    statuses, modules, said = run_all(list(AMONG_DATA), tmp_path)
    assert statuses == dict.fromkeys(AMONG_DATA, 2)
    for (line, says), told in zip(AMONG_DATA.items(), said, strict=True):
        assert says in told, line
    assert not modules & SLOW
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


PACKAGES = ["shards", "stats", "ingest", "teacher_cache", "distill.losses", "evaluation", "clip_models"]
PACKAGES += ["distill.use", "clipstill"]


def test_whatever_a_package_exports_is_there_though_nothing_is_imported_yet() -> None:
    program = (
        f"import sys, {', '.join(PACKAGES)}\n"
        "assert not {'torch', 'pyarrow', 'cv2'} & set(sys.modules)\n"
        f"for package in map(sys.modules.get, {PACKAGES}):\n"
        "    for name in package.__all__:\n"
        "        assert type(getattr(package, name)).__name__ != 'module', name\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(rf"clipstill {re.escape(version('clipstill'))}\n", capsys.readouterr().out)
