"""What `clipstill shards stats` says of real datasets of every origin, against what was put into them."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipstill.main import main
from shards import Dataset, Folder, write_dataset
from shards.dataset import DatasetPlan, Stage
from shards.samples import write_shards
from stats import Figures, figures_of, lines_of, page_of
from stats.ledgers import count_rows


def image(number: int, width: int, height: int, kind: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def keys_are_there(dataset: str | Path, keys: Sequence[str]) -> bool:
    opened = Dataset.open(dataset)
    return all(key in opened for key in keys)


def text_of(page: bytes) -> str:
    """What a reader sees of a page."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page.decode(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Seven samples in three shards: two images equal, three captions equal, one empty, one PNG."""
    given = [
        ("a", image(0, 40, 20), ["a dog", "ein Hund", "un chien"], {"label": "dog", "licence": "CC0"}),
        ("b", image(1, 20, 40), "a cat on a mat", {"label": "cat", "licence": "CC0"}),
        ("c", image(0, 40, 20), "a dog", {"label": "dog", "licence": "CC-BY"}),
        ("d", image(3, 30, 30, "PNG"), " ", {"label": "dog", "licence": None}),
        ("e", image(4, 64, 32), "a dog ", {"label": "", "licence": "CC0"}),
        ("f", image(5, 32, 32), "a <b>bird</b>", {"label": "bird", "licence": "CC0"}),
        ("g", image(6, 32, 32), "a cow", {"label": '["cow", "calf"]', "licence": "CC0"}),
    ]
    hosts = ("x.example", "X.example:8080", "u:p@y.example", "y.example", "[::1]:80", "z.example?q", "x.example")
    for host, (_, _, _, fields) in zip(hosts, given, strict=True):
        fields["url"] = f"https://{host}/picture.jpg" if "?" not in host else f"https://{host}"
    write_dataset(tmp_path / "set", given, name="own", shard_size=3)
    return tmp_path / "set"


@pytest.mark.parametrize("at_once", [2, 10_000])
def test_what_was_put_in_is_counted(written: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("stats.collect._AT_ONCE", at_once)
    (found,) = figures_of([str(written)]).datasets
    assert (found.samples, found.shards, found.rows, found.captioned) == (7, 3, 7, True)
    assert found.measures["bytes"].total == sum(len(sample.image_bytes) for sample in Dataset.open(written))
    expected = {
        "width": [40, 20, 40, 30, 64, 32, 32],
        "height": [20, 40, 20, 30, 32, 32, 32],
        "shorter": [20, 20, 20, 30, 32, 32, 32],
        "words": [2, 5, 2, 2, 2, 2],
        "characters": [5, 14, 5, 5, 13, 5],
        "captions": [3, 1, 1, 0, 1, 1, 1],
    }
    for name, values in expected.items():
        measure = found.measures[name]
        assert len(measure) == len(values)
        for percent in (0, 5, 50, 95, 100):
            exact = np.percentile(values, percent, method="inverted_cdf")
            assert measure.percentile(percent)[0] == exact, name
    assert found.measures["aspect"].percentile(0) == (0.5, ["b"])
    assert found.measures["aspect"].percentile(100) == (2.0, ["a", "c", "e"])
    assert found.measures["captions"].percentile(100) == (3, ["a"])
    assert (found.empty.samples, found.empty.keys) == (1, ["d"])

    def told(column: str) -> dict[str, tuple[int, list[str]]]:
        return {word: (count.samples, count.keys) for word, count in found.of(column).most_common(9)}

    assert told("format") == {"JPEG": (6, ["a", "b", "c"]), "PNG": (1, ["d"])}
    assert told("size")["40 × 20"] == (2, ["a", "c"])
    assert told("label") == {
        "dog": (3, ["a", "c", "d"]),
        **{w: (1, [k]) for w, k in zip(("bird", "calf", "cat", "cow"), "fgbg", strict=True)},
    }
    assert told("licence") == {"CC0": (5, ["a", "b", "e"]), "CC-BY": (1, ["c"])}
    assert told("host") == {
        "x.example": (3, ["a", "b", "g"]),
        "y.example": (2, ["c", "d"]),
        "[::1]": (1, ["e"]),
        "z.example": (1, ["f"]),
    }


@pytest.mark.parametrize("at_once", [1, 10_000])
def test_images_and_captions_that_are_there_twice(written: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("stats.collect._AT_ONCE", at_once)
    figures = figures_of([str(written)])
    (found,) = figures.datasets
    assert len(found.cells) == 7
    assert [(same.size, same.keys) for same in found.images] == [(2, ("a", "c"))]
    assert [(same.size, same.keys, same.cell.caption) for same in found.captions] == [(3, ("a", "c", "e"), "a dog")]
    assert (figures.images.repeats.tolist(), figures.images.distinct.tolist()) == ([1], [6])
    assert (figures.captions.repeats.tolist(), figures.captions.distinct.tolist()) == ([2], [4])
    assert found.images[0].cell.image.startswith("data:image/jpeg;base64,")


def test_the_page_and_the_lines(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in written.iterdir()}
    assert main(["shards", "stats", str(written)]) == 0
    assert {path.name for path in written.iterdir()} - before == {"stats.html"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("own: 7 samples in 3 shards, ")
    assert "  captions: 2 words at the median (2 to 5); 1 empty; 2 repeat an earlier one; 1.1 a sample" in lines
    assert lines[-1] == f"the page: {written}/stats.html"
    page = (written / "stats.html").read_bytes()
    assert main(["shards", "stats", str(written), "--out", str(tmp_path / "p.html")]) == 0
    assert (tmp_path / "p.html").read_bytes() == page
    text = text_of(page)
    for said in (
        f"clipstill shards cat {written} KEY shows one",
        "1 of 7 samples (14.3 %) have the image of an earlier one",
        "1 of 7 captions (14.3 %) are empty, such as those of d",
        "2 samples (28.6 %) have the caption of an earlier one; 4 are different",
        "By licence",
        "x.example 3 42.9 %",
    ):
        assert said in text.replace("\N{NO-BREAK SPACE}", " "), said
    assert b"<b>bird</b>" not in page
    assert not re.search(rb"(?:src|href)=\"(?!data:)", page)
    assert page.count(b'<figure><img src="data:') == 7 + 1
    assert keys_are_there(written, re.findall(r'<span class="key">(\w)</span>', page.decode()))


def test_what_several_datasets_have_in_common(written: Path, tmp_path: Path) -> None:
    given = [
        ("z0", image(0, 40, 20), "a dog", {}),
        ("z1", image(1, 20, 40), "another", {}),
        ("z2", image(1, 20, 40), "a cow", {}),
        ("z3", image(9, 20, 40), "new", {}),
    ]
    write_dataset(tmp_path / "other", given, name="other", shard_size=2)
    write_dataset(tmp_path / "bare", [("y", image(9, 20, 40), "", {})], name="bare")
    figures = figures_of([str(written), str(tmp_path / "other"), str(tmp_path / "bare")])
    told = {(pair.one, pair.other): (pair.images, pair.captions, pair.keys) for pair in figures.pairs}
    assert told == {
        (0, 1): (2, 2, (("a", "z0"), ("b", "z1"))),
        (0, 2): (0, 0, ()),
        (1, 2): (1, 0, (("z3", "y"),)),
    }
    assert figures.images.shared_samples.tolist() == [[7, 3, 0], [3, 4, 1], [0, 1, 1]]
    assert "own and other have 2 images and 2 captions in common" in list(lines_of(figures))
    text = text_of(page_of(figures))
    assert "own, other 2 3 of own, 3 of other 2 a = z0 b = z1" in text
    assert "captions: none" in "\n".join(lines_of(figures))


def test_columns_of_labels(tmp_path: Path) -> None:
    """One word, a number, a list, its JSON, or several between commas: each sample counts once for each."""
    told: list[dict[str, Any]] = [
        {"labels": "a cat, mat,a cat", "license_url": "https://l.example/1", "class": 3},
        {"labels": ["mat", 7], "license_url": "", "class": 0},
        {"labels": '["mat", "a, b"]', "license_url": None, "class": "a, b"},
    ]
    given = [(f"k{number}", image(number, 8, 8), "c", fields) for number, fields in enumerate(told)]
    write_dataset(tmp_path / "set", given, name="own")
    (found,) = figures_of([str(tmp_path / "set")]).datasets
    counts = {
        column: {word: count.samples for word, count in words.most_common(9)} for column, words in found.columns.items()
    }
    assert counts == {
        "labels": {"mat": 3, "a cat": 1, "7": 1, "a, b": 1},
        "license_url": {"https://l.example/1": 1},
        "class": {"3": 1, "0": 1, "a, b": 1},
    }


def adopted(tmp_path: Path, members: dict[str, bytes], *options: str) -> Figures:
    """The figures of a dataset that was adopted from one tar."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    assert main(["shards", "adopt", str(tmp_path / "t.tar"), "--out", str(tmp_path / "adopted"), *options]) == 0
    return figures_of([str(tmp_path / "adopted")])


def test_sizes_by_header_where_no_metadata_has_them(tmp_path: Path) -> None:
    """Of upright pictures; what has no header that can be read is counted as such."""
    exif = Image.Exif()
    exif[0x0112] = 8
    broken = image(0, 40, 20)[:30]
    members = {
        "1.jpg": image(1, 40, 20),
        "2.png": image(2, 12, 34, "PNG"),
        "3.webp": image(3, 56, 78, "WEBP"),
        "4.jpg": image(4, 40, 20, exif=exif),
        "5.jpg": broken,
        "6.jpg": b"<html>not found</html>",
        "7.jpg": image(7, 9, 9, "GIF"),
        "8.jpg": image(8, 40, 20),
        "8.json": json.dumps({"width": 400, "height": 200, "captions": ["one", "two"]}).encode(),
        "9.txt": b"a caption alone",
    }
    (found,) = adopted(tmp_path, members, "--no-captions").datasets
    sizes = {word: count.keys for word, count in found.of("size").most_common(9)}
    assert sizes == {"40 × 20": ["1"], "12 × 34": ["2"], "56 × 78": ["3"], "20 × 40": ["4"], "400 × 200": ["8"]}
    unreadable = {word: count.keys for word, count in found.of("unreadable").most_common(9)}
    assert unreadable == {
        "not_an_image": ["5"],
        "its bytes are of no known format": ["6"],
        "of a format whose header is not read": ["7"],
    }
    formats = {word: count.samples for word, count in found.of("format").most_common(9)}
    assert formats == {"JPEG": 4, "PNG": 1, "WebP": 1, "GIF": 1, "no image": 1}
    refused = {word: (count.samples, count.keys) for word, count in found.refused.most_common(9)}
    assert refused == {"refused: no_image": (1, ["9"])}
    assert (found.rows, found.samples, found.captioned) == (9, 8, False)


def test_rows_that_did_not_become_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(image(number, 20, 30))
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "title"])
        rows.writerows([[f"{name}.jpg", f"caption of {name}"] for name in (0, 1, "gone", 2, "bad", 3, 0)])
    packing = ["shards", "pack", str(tmp_path / "list.csv"), "--name", "mine", "--out", str(tmp_path / "set")]
    assert main([*packing, "--in-process"]) == 0
    capsys.readouterr()
    (found,) = figures_of([str(tmp_path / "set")]).datasets
    ledger = pq.read_table(tmp_path / "set" / "00000.parquet").to_pylist()
    expected: dict[str, list[str]] = {}
    for row in ledger:
        if row["status"] != "success":
            cause = f"{row['status']}: {row['error_class']}"
            expected.setdefault(cause, []).append(row["key"])
    assert len(expected) == 3
    assert {word: count.keys for word, count in found.refused.most_common(9)} == expected
    assert (found.rows, found.samples) == (7, 4)
    assert main(["shards", "stats", str(tmp_path / "set")]) == 0
    assert "  rows: 3 of 7 rows are no samples (" in capsys.readouterr().out


def test_a_selection_is_a_dataset_like_any_other(written: Path, tmp_path: Path) -> None:
    """Also in Python: its samples' captions are those of what they were selected from."""
    rule = ["--where", "short_side < 30"]
    assert main(["shards", "filter", str(written), *rule, "--out", str(tmp_path / "some")]) == 0
    (found,) = figures_of([str(tmp_path / "some")]).datasets
    assert (found.samples, found.rows) == (3, 7)
    ((reason, left_out),) = found.refused.most_common(9)
    assert reason.startswith("left_out: ")
    assert (left_out.samples, left_out.keys) == (4, ["d", "e", "f"])
    assert [(same.size, same.keys) for same in found.images] == [(2, ("a", "c"))]
    some = Dataset.open(tmp_path / "some")
    assert [(sample.key, sample.captions) for sample in some] == [
        ("a", ("a dog", "ein Hund", "un chien")),
        ("b", ("a cat on a mat",)),
        ("c", ("a dog",)),
    ]
    assert some["c"].image_bytes == image(0, 40, 20)
    assert "d" not in some


def test_a_row_that_was_fetched_again_counts_as_it_ended(tmp_path: Path) -> None:
    ledgers = [
        [("set-000000000", "success", None), ("set-000000001", "failed_to_download", "timeout")],
        [("set-000000002", "failed_to_download", "dns"), ("set-000000003", "filtered", None)],
        [("set-000000001", "success", None), ("set-000000002", "failed_to_download", "timeout")],
    ]
    for number, rows in enumerate(ledgers):
        columns = dict(zip(("key", "status", "error_class"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), tmp_path / f"{number:05d}.parquet")
    retry = Stage(round="001", first=2, row=None, shards=1, rows=2)
    plan = DatasetPlan(Folder(tmp_path), (Stage(name="set", shards=2, rows=4), retry))
    rows, causes = count_rows(plan, dict.fromkeys(range(3)))  # type: ignore[arg-type]
    assert rows == 4
    assert {word: count.keys for word, count in causes.most_common(9)} == {
        "failed_to_download: timeout": ["set-000000002"],
        "filtered": ["set-000000003"],
    }


def test_the_contact_sheet_is_a_draw_that_repeats(tmp_path: Path) -> None:
    given = [(f"k{number}", image(number, 8, 8), f"caption {number}", {}) for number in range(60)]
    write_dataset(tmp_path / "set", given, name="own", shard_size=7)
    one, other = (figures_of([str(tmp_path / "set")]).datasets[0].cells for _ in range(2))
    assert one == other
    assert len({cell.key for cell in one}) == 24
    assert all(cell.caption == f"caption {cell.key[1:]}" for cell in one)


def test_shards_without_samples_are_no_trouble(tmp_path: Path) -> None:
    own = [[("a", image(0, 8, 8), "", {})], [], [("b", image(1, 8, 8), "", {})], []]
    write_shards(tmp_path / "set", own, name="own")
    (found,) = figures_of([str(tmp_path / "set")]).datasets
    assert (found.samples, found.shards, len(found.measures["bytes"]), found.captioned) == (2, 4, 2, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no dataset here"),
        (["SET", "--out", "FOLDER"], "this is a folder, and the page is a file"),
        (["SET", "--out", "FOLDER/set/dataset.json/p.html"], "is a file"),
        (["SET", "--out", "s3://b/p.html"], "must be on a local disk"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    filled = [word.replace("SET", str(written)).replace("FOLDER", str(tmp_path)) for word in arguments]
    before = sorted(hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file())
    assert main(["shards", "stats", *filled]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    after = sorted(hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file())
    assert after == before


def test_a_damaged_dataset_is_refused(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (written / "00001.parquet").write_bytes(b"nothing")
    assert main(["shards", "stats", str(written)]) == 2
    assert "00001.parquet cannot be read" in capsys.readouterr().err
    (written / "00001.parquet").unlink()
    assert main(["shards", "stats", str(written)]) == 2
    assert "00001.parquet is missing" in capsys.readouterr().err
    assert not (written / "stats.html").exists()


def test_a_dataset_on_an_object_store(bucket: str, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures, and the page beside the shards."""
    write_dataset(f"{bucket}/set", Dataset.open(written), name="own", shard_size=3)
    assert main(["shards", "stats", f"{bucket}/set"]) == 0
    here = list(lines_of(figures_of([str(written)])))
    assert capsys.readouterr().out.splitlines()[: len(here)] == here
    assert Folder(f"{bucket}/set").read("stats.html").startswith(b"<!doctype html>")
