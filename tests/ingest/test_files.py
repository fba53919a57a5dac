"""Pictures that are there already, by path or in a column, become shards by the same rules as fetched ones."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipstill.main import main
from ingest import ImageSettings, IngestReport, IngestSettings, NetworkSettings, SourceSettings, ingest
from ingest.folders import pictures_below, write_list
from ingest.report import write_report
from ingest.retry import retry
from shards import Dataset, Folder, InProcess, UserError, verify_dataset


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def packed(tmp_path: Path, *lists: Path, **source: object) -> IngestReport:
    settings = IngestSettings(
        source=SourceSettings(paths=tuple(map(str, lists)), files=True, **source),  # type: ignore[arg-type]
        out=str(tmp_path / "out"),
        name="set",
        shard_size=4,
        image=ImageSettings(size=16, skip_reencode=True),
        engine="files",
    )
    return ingest(settings, InProcess())


def captions(tmp_path: Path) -> dict[str, str]:
    """Key → caption, of a dataset that is sound."""
    out = str(tmp_path / "out")
    assert verify_dataset(out).problems == ()
    shards = Dataset.open(out).shards
    return {key: shard.caption(row) for shard in shards for row, key in enumerate(shard.keys)}


def ledger(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Key → cause and message, of what became no sample."""
    rows = [
        row for path in sorted((tmp_path / "out").glob("[0-9]*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    return {row["key"]: (row["error_class"], row["error_message"]) for row in rows if row["status"] != "success"}


def test_open_clips_list_of_files(tmp_path: Path) -> None:
    """Columns `title` and `filepath`, tabs between them; relative paths are below the list's folder."""
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    for number in range(5):
        (data / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    (data / "pictures" / "5.jpg").write_bytes(b"no picture")
    rows = [f"picture {n}\tpictures/{n}.jpg" for n in (0, 1, 2, 5, 9)]
    rows += [f"picture 3\t{data}/pictures/3.jpg", "another word\tpictures/1.jpg", "\tpictures/4.jpg", "nothing\t"]
    (data / "train.tsv").write_text("title\tfilepath\n" + "\n".join(rows) + "\n")
    report = packed(tmp_path, data / "train.tsv")
    assert report.rows == 9
    assert captions(tmp_path) == {
        "set-000000000": "picture 0",
        "set-000000001": "picture 1",
        "set-000000002": "picture 2",
        "set-000000005": "picture 3",
    }
    assert ledger(tmp_path) == {
        "set-000000003": ("not_an_image", "cannot identify image file"),
        "set-000000004": ("no_file", "No such file or directory"),
        "set-000000006": ("duplicate", "the same URL as set-000000001"),
        "set-000000007": ("no_caption", "the caption is empty"),
        "set-000000008": ("bad_url", "the row has no URL"),
    }
    # What else was said of a picture stays with it.
    (meta,) = (
        shard.meta(row)
        for shard in Dataset.open(str(tmp_path / "out")).shards
        for row, key in enumerate(shard.keys)
        if key == "set-000000001"
    )
    assert json.loads(meta["captions"]) == ["another word"]


@pytest.mark.parametrize("nested", [False, True], ids=["bytes", "hub"])
def test_images_in_a_column(tmp_path: Path, nested: bool) -> None:
    images = [jpeg(number, 16, 16) for number in range(10)]
    values = [{"bytes": image, "path": None} if nested else image for image in images]
    values[7] = {"bytes": None, "path": "x"} if nested else None  # type: ignore[assignment]
    table = pa.table({"image": values, "text": [f"no. {n}" for n in range(10)], "label": list(range(10))})
    for part in range(2):
        pq.write_table(table.slice(5 * part, 5), tmp_path / f"{part}.parquet", row_group_size=2)
    report = packed(tmp_path, tmp_path / "0.parquet", tmp_path / "1.parquet", keep=("label",))
    assert (report.rows, report.samples, report.failed) == (10, 9, {"no_file": 1})
    found = Dataset.open(str(tmp_path / "out")).shards
    seen = {shard.meta(row)["label"]: shard.image_bytes(row) for shard in found for row in range(shard.count)}
    # They need no change, and none was made.
    assert seen == {number: image for number, image in enumerate(images) if number != 7}
    assert captions(tmp_path)["set-000000009"] == "no. 9"
    assert ledger(tmp_path) == {"set-000000007": ("no_file", "the row has no bytes")}


def test_other_lists_and_another_root(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for number in range(3):
        (tmp_path / "elsewhere" / f"{number} é.jpg").write_bytes(jpeg(number))
    lines = [json.dumps({"file_name": f"{n} é.jpg", "caption": [f"one {n}", f"two {n}"]}) for n in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    assert packed(tmp_path, tmp_path / "list.jsonl", root=str(tmp_path / "elsewhere")).samples == 3
    assert captions(tmp_path) == {f"set-00000000{n}": f"one {n}" for n in range(3)}


def test_what_is_no_caption_is_none_of_a_sample(tmp_path: Path) -> None:
    """NaN is how pandas writes a missing caption; objects and booleans are no captions either."""
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    said = ["NaN", "null", "Infinity", '{"a": 1}', "true", '["a", false]', '["a", NaN]', "7", '"nan"']
    lines = [f'{{"path": "{number}.jpg", "caption": {text}}}\n' for number, text in enumerate(said)]
    (tmp_path / "list.jsonl").write_text("".join(lines))
    packed(tmp_path, tmp_path / "list.jsonl")
    assert captions(tmp_path) == {"set-000000006": "a", "set-000000007": "7", "set-000000008": "nan"}
    none = ("no_caption", "the caption is empty")
    assert ledger(tmp_path) == {
        **{f"set-00000000{number}": none for number in (0, 1, 2)},
        "set-000000003": ("bad_row", "line 4: the caption 'caption' is an object, no text"),
        "set-000000004": ("bad_row", "line 5: the caption 'caption' is true or false, no text"),
        "set-000000005": ("bad_row", "line 6: the caption 'caption' is a list with true or false, no text"),
    }


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_nan_in_a_column_of_numbers_is_no_caption(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(np.array([np.nan, 2.5, np.inf], kind.to_pandas_dtype()), kind)
    path = [str(tmp_path / f"{number}.jpg") for number in range(3)]
    for number, name in enumerate(path):
        Path(name).write_bytes(jpeg(number))
    pq.write_table(pa.table({"path": path, "caption": column}), tmp_path / "list.parquet")
    assert packed(tmp_path, tmp_path / "list.parquet").failed == {"no_caption": 2}
    assert captions(tmp_path) == {"set-000000001": "2.5"}


@pytest.mark.parametrize("column", [[True, False], [{"a": 1}, {"a": 2}], [[1.0], [2.0]]])
def test_a_column_that_can_hold_no_captions_is_refused(tmp_path: Path, column: list[object]) -> None:
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "caption": column}), tmp_path / "list.parquet")
    with pytest.raises(UserError, match=r"column .caption. is no text but (bool|struct|list)"):
        packed(tmp_path, tmp_path / "list.parquet")


def test_a_second_run_makes_nothing_and_a_retry_makes_what_came_since(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("filepath,caption\na.jpg,one\nb.jpg,two\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    assert packed(tmp_path, tmp_path / "list.csv").failed == {"no_file": 1}
    assert packed(tmp_path, tmp_path / "list.csv").summary.finished == 0
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    (report,) = retry(str(tmp_path / "out"), NetworkSettings(), InProcess())
    assert (report.samples, report.failed) == (1, {})
    assert captions(tmp_path) == {"set-000000000": "one", "set-000000001": "two"}
    assert "no_file" not in Path(write_report(str(tmp_path / "out"))).read_text()


def test_what_is_no_regular_file_costs_its_row_and_no_time(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "list.csv").write_text(
        "filepath,caption\npipe.jpg,one\nfolder.jpg,two\nhttp://127.0.0.1:1/x.jpg,three\n"
    )
    assert packed(tmp_path, tmp_path / "list.csv").failed == {"bad_url": 1, "no_file": 2}
    assert ledger(tmp_path)["set-000000000"] == ("no_file", "Not a regular file")


def test_a_folder_of_pictures_with_captions_beside_them(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b.JPEG", "more/c.jpg", ".hidden.jpg"]):
        (tmp_path / "pictures" / name).write_bytes(jpeg(number))
    (tmp_path / "pictures" / "a.txt").write_text("first\n")
    (tmp_path / "pictures" / "more" / "c.txt").write_text("third")
    (tmp_path / "pictures" / "more" / "d.jpg").write_bytes(jpeg(4))
    (tmp_path / "pictures" / "more" / "d.txt").write_bytes("Hügel".encode("latin-1"))
    listing, captioned, classed, _ = write_list([str(tmp_path / "pictures")], Folder(tmp_path / "out"))
    assert (captioned, classed) == (True, False)
    report = packed(tmp_path, Path(listing))
    assert (report.rows, report.failed) == (4, {"no_caption": 1, "bad_row": 1})
    assert list(captions(tmp_path).values()) == ["first", "third"]


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for number, name in enumerate(["zebra/1.jpg", "ant/1.jpg", "ant/2.jpg"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    listing, captioned, classed, _ = write_list([str(tmp_path / "pictures")], Folder(tmp_path / "out"))
    assert (captioned, classed) == (False, True)
    assert packed(tmp_path, Path(listing), captions=False, keep=("class", "label")).samples == 3
    (shard,) = Dataset.open(str(tmp_path / "out")).shards
    found = [(shard.meta(row)["class"], shard.meta(row)["label"]) for row in range(3)]
    assert found == [("ant", 0), ("ant", 0), ("zebra", 1)]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no picture is there"):
        write_list([str(tmp_path / "none")], Folder(tmp_path / "out"))
    with pytest.raises(UserError, match=r"gone: this folder cannot be listed \(No such file"):
        write_list([str(tmp_path / "gone")], Folder(tmp_path / "out"))


def test_folders_that_link_to_each_other_are_each_other_s_once(tmp_path: Path) -> None:
    for one, other in (("cat", "dog"), ("dog", "cat")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "friend").symlink_to(Path("..") / other)
        (tmp_path / one / "1.jpg").touch()
    pictures, others = pictures_below([str(tmp_path)])
    found = [str(path.relative_to(tmp_path)) for path in pictures]
    assert found == ["cat/1.jpg", "cat/friend/1.jpg", "dog/1.jpg", "dog/friend/1.jpg"]
    assert others == []


def test_no_picture_of_a_folder_is_left_out_in_silence(tmp_path: Path) -> None:
    """A name that is no text costs its row; links to folders are followed, not in a circle; other files are told."""
    below, elsewhere = tmp_path / "pictures" / "ant", tmp_path / "elsewhere"
    below.mkdir(parents=True)
    elsewhere.mkdir()
    (below / "1.jpg").write_bytes(jpeg(1))
    (below / "1.txt").write_text("an ant")
    (below / "drawing.svg").write_text("<svg/>")
    (below / "notes.txt").write_text("of nothing")
    (below / os.fsdecode(b"2\xff.jpg")).write_bytes(jpeg(2))
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(sink, "PPM")
    (elsewhere / "3.PPM").write_bytes(sink.getvalue())
    (elsewhere / "4.jfif").write_bytes(jpeg(4))
    (tmp_path / "pictures" / "bee").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tmp_path)
    (below / "round").symlink_to(tmp_path / "pictures")
    folder = str(tmp_path / "pictures")
    listing, _, classed, others = write_list([folder], Folder(tmp_path / "out"))
    assert [path.name for path in others] == ["drawing.svg", "notes.txt"]
    report = packed(tmp_path, Path(listing), captions=False, keep=("class",))
    assert (report.rows, report.samples, report.failed) == (4, 3, {"no_file": 1})
    assert "not UTF-8" in ledger(tmp_path)["set-000000001"][1]
    (shard,) = Dataset.open(str(tmp_path / "out")).shards
    assert classed
    assert [shard.meta(row)["class"] for row in range(3)] == ["ant", "bee", "bee"]


def test_rows_of_urls_are_no_rows_of_files() -> None:
    with pytest.raises(UserError, match="engine 'clipstill' with rows of files"):
        IngestSettings(source=SourceSettings(paths=("x",), files=True), out="o", name="n")


def test_the_command_takes_lists_columns_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(["ant/1.jpg", "bee/1.jpg", "bee/2.jpg"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    out = ["--image-size", "16", "--in-process", "--out", str(tmp_path / "out")]
    assert main(["shards", "pack", str(tmp_path / "pictures"), "--name", "bugs", *out]) == 0
    told = capsys.readouterr()
    assert "3 rows: 3 samples, 0 failed" in told.out
    assert told.err.startswith("pack: 1/1 shards")
    (shard,) = Dataset.open(str(tmp_path / "out")).shards
    assert [shard.meta(row)["class"] for row in range(3)] == ["ant", "bee", "bee"]
    # The same command again finds it made.
    assert main(["shards", "pack", str(tmp_path / "pictures"), "--name", "bugs", *out]) == 0
    assert "0 shards made, 1 were there already" in capsys.readouterr().out
    pq.write_table(pa.table({"photo": [jpeg(4), jpeg(5)], "text": ["a", "b"]}), tmp_path / "photos.parquet")
    out[-1] = str(tmp_path / "photos")
    command = ["shards", "pack", str(tmp_path / "photos.parquet"), "--name", "photos", *out]
    assert main(command) == 2
    assert "no column 'filepath'" in capsys.readouterr().err
    assert main([*command, "--column", "photo"]) == 0
    assert len(Dataset.open(out[-1])) == 2
