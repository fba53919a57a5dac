"""The line that `shards verify` prints, run in a shell as it stands, mends every kind of dataset."""

from __future__ import annotations

import io
import os
import shlex
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipstill.commands.ingest import run as run_ingest
from clipstill.main import build_parser, main
from clipstill.options import given
from ingest.command import command_of
from ingest.settings import ImageSettings, IngestSettings, NetworkSettings, SourceSettings
from shards import verify_dataset
from shards.settings import make

InShell = Callable[[str, Path], str]
NAMES = """it's "my" $HOME; `x`"""


def jpeg(seed: int) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def mend(out: Path, capsys: pytest.CaptureFixture[str], in_shell: InShell, folder: Path) -> str:
    """Run what is printed; returns what that prints."""
    capsys.readouterr()
    assert main(["shards", "verify", str(out)]) == 1
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("to mend it: ")
    return in_shell(last.removeprefix("to mend it: "), folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, of a name that a shell would take apart."""
    place = tmp_path / NAMES
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("of", ["a list", "folders"])
def test_packed(
    place: Path,
    of: str,
    capsys: pytest.CaptureFixture[str],
    in_shell: InShell,
    tmp_path: Path,
) -> None:
    for number in range(7):
        (place / "pictures" / "a class").mkdir(parents=True, exist_ok=True)
        (place / "pictures" / "a class" / f"{number}.jpg").write_bytes(jpeg(number))
    rows = [f"a class/{number}.jpg,{number} is its caption,{number}\n" for number in range(7)]
    (place / "my list.csv").write_text("the file,it's,extra\n" + "".join(rows))
    given_ = {
        "a list": "--column|the file|--root|pictures|--caption-column|it's|--keep|extra|my list.csv|--where|extra < 6",
        "folders": "pictures",
    }
    options = "--shard-size|3|--image-size|32|--image-format|png|--exif|off|--in-process|--name|x|--out|out"
    assert main(["shards", "pack", *given_[of].split("|"), *options.split("|")]) == 0
    out = place / "out"
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert len(before) >= 2
    (out / "00000.tar").unlink()
    assert "1 shards made" in mend(out, capsys, in_shell, tmp_path)
    flip(out / "00001.tar")
    (out / "00000.tar").unlink()
    mend(out, capsys, in_shell, tmp_path)
    assert verify_dataset(str(out)).problems == ()
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == before


def test_adopted_selected_and_materialized(
    place: Path, capsys: pytest.CaptureFixture[str], in_shell: InShell, tmp_path: Path
) -> None:
    for tar in range(3):
        with tarfile.open(place / f"{tar}.tar", "w") as sink:
            for number in range(4):
                for ending, data in (("input.jpg", jpeg(4 * tar + number)), ("said.txt", b"a cat")):
                    entry = tarfile.TarInfo(f"{number}.{ending}")
                    entry.size = len(data)
                    sink.addfile(entry, io.BytesIO(data))
    options = ["--image", "input.jpg", "--caption", "said.txt", "--keys-of-tars", "--in-process"]
    assert main(["shards", "adopt", "*.tar", *options, "--out", "adopted", "--name", "other"]) == 0
    assert main(["shards", "filter", "adopted", "--where", "caption == 'a cat'", "--sample", "6", "--out", "some"]) == 0
    assert main(["shards", "split", "some", "--part", "a b=0.5", "--seed", "3", "--out", "parts"]) == 2
    assert main(["shards", "split", "some", "--part", "a-b=0.7", "--seed", "3", "--out", "parts"]) == 0
    whole = ["shards", "materialize", "some", "--shard-size", "4", "--name-keys", "--in-process", "--out", "own"]
    assert main(whole) == 0
    for name in ("adopted", "some", "parts/a-b", "own"):
        out = place / name
        before = {path.name: path.read_bytes() for path in (out / "_records").iterdir()}
        flip(out / "00000.index.arrow")
        (out / "00001.index.arrow").unlink()
        mend(out, capsys, in_shell, tmp_path)
        assert verify_dataset(str(out)).problems == ()
        assert {path.name for path in (out / "_records").iterdir()} == set(before)
    # A tar that was written to and adopted again is another one, be its bytes the same.
    os.utime(place / "0.tar", ns=(7, 7))
    for name in ("adopted", "some", "parts/a-b"):
        assert "0.tar was written to" in verify_dataset(str(place / name)).problems[0]
        mend(place / name, capsys, in_shell, tmp_path)
        assert verify_dataset(str(place / name)).problems == ()
    # A selection's tars are not its own.
    (place / "1.tar").unlink()
    assert "1.tar is missing" in verify_dataset(str(place / "some")).problems[0]
    parent, own = verify_dataset(str(place / "some")).mend, verify_dataset(str(place / "parts" / "a-b")).mend
    assert shlex.split(parent)[3:8] == [str(place / "adopted"), "&&", "clipstill", "shards", "filter"]
    assert shlex.split(own)[3:8] == [str(place / "some"), "&&", "clipstill", "shards", "split"]
    mend(place / "adopted", capsys, in_shell, tmp_path)
    assert verify_dataset(str(place / "adopted")).samples == 8


SETTINGS: list[dict[str, Any]] = [
    {},
    {"image": {"format": "png", "quality": 4, "exif": False, "max_aspect_ratio": 2.5, "enlarge": True}},
    {"image": {"format": "webp", "exact": True, "blur_faces": "boxes"}, "source": {"keep": ("a", "boxes")}},
    {"network": {"opt_outs": (), "allow_addresses": ("127.0.0.1", "::1"), "user_agent": "-x 'y'", "ca_file": "/a b"}},
    {"network": {"opt_outs": ("noai", "none"), "deadline": 0.25, "proxy": "http://p:1"}, "stop_on_collapse": False},
    {"source": {"columns": ("url", "a caption"), "quoted": True, "where": ("a < 1", "b == 'c d'"), "captions": False}},
    {"source": {"format": "yfcc15m", "subset": "/the subset.tsv"}, "shard_size": 7, "attempts": 1},
    {"engine": "img2dataset", "source": {"url_column": "-u", "hash_column": "sha256", "encoding": "latin-1"}},
]


@pytest.mark.parametrize("chosen", SETTINGS)
def test_a_command_asks_for_what_was_asked_for(chosen: dict[str, Any]) -> None:
    source = {"paths": ("/a b.csv", "s3://x/*.csv"), **chosen.get("source", {})}
    settings = make(IngestSettings, {"out": "/out", "name": "set", **chosen, "source": source})
    words = command_of(settings)
    args = build_parser().parse_args([*words[1:], "--out", "/out"])
    assert args.run is run_ingest
    assert make(IngestSettings, given(args, IngestSettings)) == settings
    assert ("--quality" in words) == ("quality" in chosen.get("image", {}))


def test_a_proxys_password_is_kept_nowhere() -> None:
    network = NetworkSettings(proxy="http://me:secret@proxy:1", retries=5)
    settings = IngestSettings(
        source=SourceSettings(paths=("/a.csv",)), out="/o", name="n", network=network, image=ImageSettings(size=8)
    )
    assert command_of(settings) == command_of(replace(settings, network=replace(network, proxy=None)))
    assert "--retries" in command_of(settings)
