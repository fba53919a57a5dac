"""What a user can put right is said in one line, with status 2, and nothing is left behind."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipstill.main import main

GOOD = "a\thttp://127.0.0.1:1/x.jpg\n"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.tsv").write_text(GOOD)
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "headed.csv").write_text("LINK,ALT\nhttp://127.0.0.1:1/x.jpg,a\n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "latin.tsv").write_bytes("é\thttp://a\n".encode("latin-1") * 100)
    (tmp_path / "local.csv").write_text("url,caption\n" + "".join(f"pictures/{row}.jpg,a\n" for row in range(100)))
    (tmp_path / "swapped.csv").write_text("caption,url\n" + "".join(f"http://a/{row},a\n" for row in range(100)))
    (tmp_path / "bare.csv").write_text("url,id\nhttp://127.0.0.1:1/x.jpg,1\n")
    (tmp_path / "plain.csv").write_text("http://127.0.0.1:1/x.jpg,a\n")
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("pictures/a.jpg", "pictures/b.PNG", "tars/00000.tar", "ours/dataset.json", "ours/00000.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "00000.tar").write_bytes(b"x")
    (tmp_path / "theirs" / "00000_stats.json").write_text("{}")
    names = ["url", "caption", "key", "status", "error_message"]
    pq.write_table(pa.table({name: ["x"] for name in names}), tmp_path / "theirs" / "00000.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "broken.tsv.gz").write_bytes(gzip.compress(GOOD.encode() * 9000)[:-20])
    (tmp_path / "file").write_text("in the way")
    for name in ("run/settings.json", "run/log.jsonl", "run/model/open_clip_config.json", "cache/t/teacher.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.md").write_text("no list")
    for kind, name in (("JPEG", "jpeg.csv"), ("PNG", "png.parquet"), ("WEBP", "webp.tsv"), ("GIF", "gif.json")):
        Image.new("RGB", (8, 8)).save(tmp_path / name, kind)
    with tarfile.open(tmp_path / "tar.csv", "w") as sink:
        sink.add(tmp_path / "file", "a.jpg")
    with zipfile.ZipFile(tmp_path / "sheet.csv", "w") as archive:
        archive.write(tmp_path / "file", "a.xml")
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "parquet.csv")
    return tmp_path


REFUSALS: dict[str, tuple[str, str]] = {
    "no such file": ("nothing.tsv --format cc3m", "nothing.tsv: no such input file"),
    "no such glob": ("*.nothing --format cc3m", "*.nothing: no such input file"),
    "an empty folder": ("nothing --format cc3m", "nothing: this folder is empty. Give a list of URLs"),
    "a folder without lists": ("odd", "odd: no list of the kind that is wanted is in this folder: notes.md"),
    "a run": ("run", "run: this is a run of `clipstill distill`, not a list. Give a list of URLs"),
    "a model": ("run/model", "run/model: this is a model, not a list"),
    "a cache": ("cache", "cache/t: this is a teacher cache, not a list"),
    "a JPEG called CSV": ("jpeg.csv", "jpeg.csv: this is a picture, not a list. Give a list of URLs"),
    "a JPEG of a published list": ("jpeg.csv --format cc3m", "jpeg.csv: this is a picture, not a list"),
    "a PNG called Parquet": ("png.parquet", "png.parquet: this is a picture, not a list"),
    "a WebP called TSV": ("webp.tsv", "webp.tsv: this is a picture, not a list"),
    "a GIF called JSON": ("gif.json", "gif.json: this is a picture, not a list"),
    "a tar called CSV": ("tar.csv", "this is a tar, not a list. `clipstill shards adopt"),
    "a sheet called CSV": ("sheet.csv", "this is a zip archive, as spreadsheets are too"),
    "Parquet called CSV": ("parquet.csv", "this is Parquet, not csv. Give --format parquet"),
    "an unknown scheme": ("nope://x.tsv --format cc3m", "Protocol not known"),
    "an unknown ending": ("file", "cannot tell the format from the file's ending"),
    "an empty input": ("empty.tsv --format cc3m", "no rows"),
    "an empty headed input": ("empty.tsv", "the file is empty"),
    "a missing column": ("headed.csv", "no column 'url'; the columns are 'LINK', 'ALT'"),
    "a missing kept column": ("good.tsv --format cc3m --keep x", "no column 'x'"),
    "a reserved column": ("good.tsv --format cc3m --keep url", "cannot keep a column named 'url'"),
    "rows that are none": (
        "latin.tsv --format cc3m",
        "100 are faulty, the first at line 1: bytes that are not UTF-8 text",
    ),
    "local files": ("local.csv", "100 name local files, such as 'pictures/0.jpg', and nothing was to be fetched"),
    "swapped columns": ("swapped.csv", "0 of 100 rows have a URL: the captions are URLs, so the columns are swapped"),
    "an unknown encoding": ("good.tsv --format cc3m --encoding klingon", "encoding 'klingon' is unknown"),
    "an encoding of bytes": ("good.tsv --format cc3m --encoding base64", "encoding 'base64' is unknown"),
    "columns of what names them": ("broken.parquet --columns a,b", "--columns with parquet. It is for CSV and TSV"),
    "columns named twice": ("headed.csv --columns a,a", "columns a,a. Give each column a name of its own"),
    "quotes in CC3M": ("good.tsv --format cc3m --quoted", "--quoted with tsv of format cc3m. It is for TSV"),
    "captions and none": ("headed.csv --no-captions --caption-column ALT", "--caption-column ALT with --no-captions"),
    "no captions": ("bare.csv", "no column 'caption' or 'text'; the columns are 'url', 'id'"),
    "how to do without": ("bare.csv", "--no-captions takes images alone"),
    "no header": ("plain.csv", "Its first line seems to be a row: name the columns with --columns"),
    "a folder of pictures": ("pictures", "2 pictures (a.jpg ...) and no list: only what has a URL can be fetched"),
    "a tar": ("tars/00000.tar", "this is a tar, not a list"),
    "a folder of tars": ("tars", "1 tars and no list: these are shards already"),
    "an img2dataset folder": (
        "theirs",
        "these are shards that img2dataset made (1 tars with their ledgers), not lists",
    ),
    "an img2dataset ledger": ("theirs/00000.parquet", "this is a ledger of what became of each row of a list"),
    "a dataset of ours": ("ours", "this is a dataset that clipstill made, not a list. `clipstill ingest retry ours`"),
    "a pipe": ("pipe.csv", "this is no file: it can be read only once"),
    "a path below a file": ("file/list.csv", "file/list.csv: cannot be read (Not a directory)"),
    "a name too long": (f"{'x' * 300}.csv", "cannot be read (File name too long)"),
    "no server": ("http://127.0.0.1:1/list.csv", "http://127.0.0.1:1/list.csv: cannot be reached"),
    "no package": ("gs://bucket/list.csv", "cannot be opened (Please install gcsfs"),
    "unreadable parquet": ("broken.parquet", "cannot be read as parquet"),
    "cut gzip": ("broken.tsv.gz --format cc3m", "cannot be read as tsv"),
    "a name with a dot": ("good.tsv --format cc3m --name a.b", "dataset name 'a.b'"),
    "no shard size": ("good.tsv --format cc3m --shard-size 0", "--shard-size is 0"),
    "no connections": (
        "good.tsv --format cc3m --connections 0",
        "connections is 0, it must be a whole number, at least 1",
    ),
    "negative retries": ("good.tsv --format cc3m --retries -1", "retries is -1"),
    "no time": (
        "good.tsv --format cc3m --deadline 0",
        "deadline is 0.0, it must be a number, above 0 and at most 3600",
    ),
    "an address that is none": ("good.tsv --format cc3m --allow-address 300.0.0.1", "300.0.0.1"),
    "a certificate that is none": ("good.tsv --format cc3m --ca-file file", "file"),
    "a condition that is none": ("good.tsv --format cc3m --where nonsense", "nonsense"),
    "an agent that cannot be sent": ("good.tsv --format cc3m --user-agent é", "user agent"),
    "a quality over 100": ("good.tsv --format cc3m --quality 101", "quality is 101"),
    "no size": ("good.tsv --format cc3m --image-size 0", "--image-size is 0"),
    "no bytes": ("good.tsv --format cc3m --max-bytes 0", "--max-bytes is 0"),
    "more pixels than can be": ("good.tsv --format cc3m --max-pixels 1000000000", "--max-pixels is 1000000000"),
    "a file for a folder": ("good.tsv --format cc3m --out file", "this is a file, and a dataset is a folder"),
    "a file above the folder": ("good.tsv --format cc3m --out file/below", "cannot be used (Not a directory)"),
    "a folder that cannot be": ("good.tsv --format cc3m --out /proc/clipstill", "/proc/clipstill"),
    "negative workers": ("good.tsv --format cc3m --workers -1", "-1 workers"),
    "no cluster there": ("good.tsv --format cc3m --ray-address 127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
    "no client there": (
        "good.tsv --format cc3m --ray-address ray://127.0.0.1:1",
        "no Ray cluster answers at 'ray://127.0.0.1:1'",
    ),
    "no such cluster": ("good.tsv --format cc3m --ray-address head.invalid:6379", "no Ray cluster answers"),
    "no address": ("good.tsv --format cc3m --ray-address nonsense", "Invalid address format"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_is_one_line_and_status_two(inputs: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    arguments, saying = REFUSALS[name]
    given = arguments.split()
    defaults = ["--name", "set"] * ("--name" not in given) + ["--out", "out"] * ("--out" not in given)
    assert main(["ingest", *given, *defaults]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("clipstill: error: ")
    assert saying in line
    assert not (inputs / "out" / "_records").exists()


OF_PACK: dict[str, tuple[str, str]] = {
    "a missing column": ("headed.csv", "Name the right ones with --column, --caption-column"),
    "a dataset of ours": ("ours", "this is a dataset that clipstill made, not a list. Every later command takes it"),
    "a picture": ("pictures/a.jpg", "this is a picture, not a list. Give a list of files, or a folder of pictures"),
    "an empty folder": ("nothing", "this folder is empty. Give a list of files, or a folder of pictures"),
    "a run": ("run", "this is a run of `clipstill distill`, not a list. Give a list of files"),
    "img2dataset's shards": ("theirs", "`clipstill shards adopt theirs --out DATASET` makes a dataset of it"),
    "swapped columns": ("none.csv", "0 of 100 rows have a path: the others have nothing there. Check --format and --c"),
}


@pytest.mark.parametrize("name", OF_PACK)
def test_advice_on_packing_is_advice_that_pack_can_follow(
    inputs: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (inputs / "none.csv").write_text("path,caption\n" + ",a\n" * 100)
    given, saying = OF_PACK[name]
    assert main(["shards", "pack", given, "--name", "set", "--out", "out", "--in-process"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("clipstill: error: ")
    assert saying in line
    assert "--url-column" not in line
    assert not (inputs / "out" / "_records").exists()


@pytest.mark.parametrize(
    ("command", "rows", "saying"),
    [
        ("ingest", "pictures/a.jpg", "such as 'pictures/a.jpg': `clipstill shards pack` makes shards of files"),
        ("ingest", "", "Nothing stands in the column of URLs: check --url-column"),
        ("ingest", "ftp://a/b", "Only http and https are fetched, not 'ftp://a/b': check --url-column"),
        ("shards pack", "http://a/b.jpg", "on the web, as 'http://a/b.jpg': `clipstill ingest` fetches them"),
        ("shards pack", "", "Nothing stands in the column of paths: check --column"),
    ],
)
def test_a_short_list_of_nothing_that_can_be_had_says_what_it_has(
    inputs: Path, capfd: pytest.CaptureFixture[str], command: str, rows: str, saying: str
) -> None:
    column = "url" if command == "ingest" else "path"
    (inputs / "short.csv").write_text(f"{column},caption\n" + f"{rows},a\n" * 3)
    assert main([*command.split(), "short.csv", "--name", "set", "--out", "out", "--in-process"]) == 1
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("clipstill: incomplete: out: none of 3 rows became a sample")
    assert saying in last


@pytest.mark.usefixtures("inputs")
def test_a_process_says_no_more(clipstill: Callable[..., Any]) -> None:
    for arguments, saying in (
        (("ingest", "nothing.tsv", "--format", "cc3m", "--name", "set", "--out", "out"), "no such input file"),
        (
            ("ingest", "good.tsv", "--format", "cc3m", "--name", "set", "--out", "o", "--ray-address", "127.0.0.1:1"),
            "Ray",
        ),
        (("shards", "verify", "out"), "no dataset here"),
    ):
        done = clipstill(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("clipstill: error: ")
        assert saying in line


@pytest.mark.usefixtures("inputs")
def test_little_work_says_that_it_does_not_wait_for_ray(clipstill: Callable[..., Any]) -> None:
    done = clipstill("ingest", "good.tsv", "--format", "cc3m", "--name", "set", "--out", "out")
    first, *_ = done.stderr.splitlines()
    assert re.fullmatch(r"ingest: a list of \d+\sB: in this process, as Ray takes longer to start .*", first)
    assert "became no sample" in done.stderr


def test_damage_is_told_with_status_one(inputs: Path, clipstill_here: Callable[..., Any]) -> None:
    done = clipstill_here("ingest", "good.tsv", "--format", "cc3m", "--name", "set", "--out", "out")
    assert done.returncode == 1
    assert "out: its one row became no sample: 1 is blocked_address. If the machines are yours" in done.stderr
    path = inputs / "out" / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    done = clipstill_here("shards", "verify", "out")
    first, *_, counted, mend = done.stdout.splitlines()
    assert done.returncode == 1
    assert first.startswith("shard 00000: 00000.parquet cannot be read")
    assert counted.startswith("1 problems: 1 shards")
    assert mend.startswith("to mend it: rm ")
