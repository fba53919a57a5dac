"""Every row of every kind of file, none lost, none invented, and files that cannot be read refused in one line."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import SourceSettings
from ingest.sources import Source, hash_input
from ingest.sources.files import look_at_input
from shards import UserError

OWN = ("url", "caption", "captions", "filtered_by", "digest", "fault")

Rows = list[tuple[str | None, str | None]]


def read(*paths: Path | str, **settings: Any) -> list[dict[str, Any]]:
    source = Source(SourceSettings(paths=tuple(map(str, paths)), **settings))
    rows = []
    for table in source.tables():
        assert table.schema == source.schema
        rows += table.to_pylist()
    return rows


def pairs(rows: list[dict[str, Any]]) -> Rows:
    return [(row["caption"], row["url"]) for row in rows]


File = Callable[[str, bytes], Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def test_cc3m_has_no_header_and_no_quoting(file: File) -> None:
    rows = [
        ('"the cat sat', "http://a/1.jpg"),
        ("on the mat", "http://a/2.jpg"),
        ('he said "no"', "http://a/3.jpg"),
        ('"', "http://a/4.jpg"),
        ("été à Łódź 🐈 日本", "http://a/ü.jpg"),
        ("'single, comma", 'http://a/"5".jpg'),
        ("2021-03-04 05:06:07", "http://a/6.jpg"),
    ]
    text = "".join(f"{caption}\t{url}\n" for caption, url in rows)
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == rows
    swapped = "".join(f"{url}\t{caption}\n" for caption, url in rows)
    assert pairs(read(file("b.tsv", swapped.encode()), format="cc12m")) == rows


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_byte_order_marks_are_not_data(file: File, ending: str, start: bytes, last: bool) -> None:
    rows = [("a", "http://a"), ("b", "http://b")]
    text = ending.join(["a\thttp://a", "b\thttp://b"]) + (ending if last else "")
    assert pairs(read(file("a.tsv", start + text.encode()), format="cc3m")) == rows
    headed = f"caption\turl{ending}{text}"
    assert pairs(read(file("b.tsv", start + headed.encode()))) == rows
    lines = ending.join(json.dumps({"caption": caption, "url": url}) for caption, url in rows) + (
        ending if last else ""
    )
    assert pairs(read(file("c.jsonl", start + lines.encode()))) == rows
    urls = ending.join(url for _, url in rows) + (ending if last else "")
    assert pairs(read(file("d.txt", start + urls.encode()))) == [("", "http://a"), ("", "http://b")]


def test_a_line_is_ended_by_a_line_feed_alone(file: File) -> None:
    text = "a\u2028b\x0bc\x0cd\x85e\rf\thttp://a\n"
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == [("a\u2028b\x0bc\x0cd\x85e\rf", "http://a")]


def test_a_malformed_row_is_kept_as_a_row_without_a_url(file: File) -> None:
    text = "good\thttp://a\nno tab at all\ntwo\ttabs\thttp://b\n\t\n\ngood\thttp://c\n"
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == [
        ("good", "http://a"),
        ("no tab at all", None),
        ("two\ttabs\thttp://b", None),
        ("", ""),
        ("", None),
        ("good", "http://c"),
    ]
    assert pairs(read(file("b.tsv", b"one\ntwo"), format="cc3m")) == [("one", None), ("two", None)]


def test_urls_lose_the_white_space_around_them_and_nothing_else(file: File) -> None:
    text = "a\t  http://a/b c \u00a0\nb\t\t\nc\t \n"
    assert [row["url"] for row in read(file("a.tsv", text.encode()), format="cc3m")] == ["http://a/b c", None, ""]


def test_csv_fields_may_hold_commas_quotes_and_line_ends(file: File) -> None:
    rows = [
        ("http://a", "plain"),
        ("http://b,c", "a, comma"),
        ("http://c", 'a "quoted" word'),
        ("http://d", "two\nlines"),
        ("http://e", "two\r\nlines"),
        ("http://f", ""),
        ("http://g", "\t tab"),
        ("http://h", "long " * 60_000),
    ]
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerows([("url", "caption", "more"), *((*row, "x") for row in rows)])
    got = read(file("a.csv", sink.getvalue().encode()), keep=("more",))
    assert [(row["url"], row["caption"]) for row in got] == rows
    assert {row["more"] for row in got} == {"x"}


def test_csv_rows_of_another_width_are_kept_without_a_url(file: File) -> None:
    text = "url,caption,more\nhttp://a,A,1\nhttp://b,B\nhttp://c,C,3,4\n"
    got = read(file("a.csv", text.encode()), keep=("more",))
    assert [(row["url"], row["caption"], row["more"], row["fault"]) for row in got] == [
        ("http://a", "A", "1", None),
        (None, "http://b,B", None, "line 3: 2 fields where 3 are expected"),
        (None, "http://c,C,3,4", None, "line 4: 4 fields where 3 are expected"),
    ]


def test_json_lines_may_lack_names_and_hold_any_value(file: File) -> None:
    lines = [
        {"url": "http://a", "caption": 'say "é",\n\t🐈', "score": 0.25, "tags": ["x", "ü"], "day": "2020-02-29"},
        {"url": "http://b", "caption": None},
        {"caption": 7, "url": "http://c", "score": None, "tags": True},
    ]
    text = (
        "\n".join(json.dumps(line) for line in lines)
        + '\n{"url": "http://d"\n[1, 2]\n{"url": "http://e", "caption": "\\ud83d"}\n'
    )
    got = read(file("a.jsonl", text.encode()), keep=("score", "tags", "day"))
    assert [(row["url"], row["caption"], row["score"], row["tags"], row["day"]) for row in got] == [
        ("http://a", 'say "é",\n\t🐈', "0.25", '["x", "ü"]', "2020-02-29"),
        ("http://b", None, None, None, None),
        ("http://c", "7", None, "true", None),
        (None, '{"url": "http://d"', None, None, None),
        (None, "[1, 2]", None, None, None),
        ("http://e", "\ufffd", None, None, None),
    ]


def test_a_list_of_urls_may_hold_commas_and_has_empty_captions(file: File) -> None:
    text = 'http://a/1,2.jpg\n\n"http://b"\thttp://c\n'
    assert pairs(read(file("a.txt", text.encode()))) == [
        ("", "http://a/1,2.jpg"),
        ("", ""),
        ("", '"http://b"\thttp://c'),
    ]


def test_columns_are_found_by_name_wherever_they_stand(file: File) -> None:
    text = "id\tTEXT\tlicense\tURL\n1\ta\tcc\thttp://a\n2\tb\t\thttp://b\n"
    got = read(file("a.tsv", text.encode()), url_column="URL", caption_column="license", keep=("TEXT", "id"))
    assert [{name: value for name, value in row.items() if value is not None} for row in got] == [
        {"url": "http://a", "caption": "cc", "TEXT": "a", "id": "1"},
        {"url": "http://b", "caption": "", "TEXT": "b", "id": "2"},
    ]
    assert pairs(read(file("a.tsv", text.encode()))) == [("a", "http://a"), ("b", "http://b")]


def test_a_name_spelled_exactly_wins_over_one_in_another_case(file: File) -> None:
    text = "URL,Url,url,caption\n1,2,3,c\n"
    assert [read(file("a.csv", text.encode()), url_column=name)[0]["url"] for name in ("URL", "Url", "url")] == [
        "1",
        "2",
        "3",
    ]
    with pytest.raises(UserError, match="has 2 columns 'url'"):
        read(file("b.csv", b"URL,Url,caption\n1,2,c\n"))


@pytest.mark.parametrize("rows", [1, 10_000, 200_003])
def test_rows_come_in_the_order_of_the_file_across_blocks(file: File, rows: int) -> None:
    expected = [(f"caption {row} ü", f"http://example.test/{row}") for row in range(rows)]
    text = "".join(f"{caption}\t{url}\n" for caption, url in expected).encode()
    assert pairs(read(file("a.tsv", text), format="cc3m")) == expected
    commas = "caption,url\n" + "".join(f"{caption},{url}\n" for caption, url in expected)
    assert pairs(read(file("a.csv", commas.encode()))) == expected


def test_a_line_may_be_longer_than_a_block_but_not_endless(file: File) -> None:
    long = "x" * 10_000_000
    text = f"a\thttp://a\n{long}\thttp://b\nc\thttp://c"
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == [
        ("a", "http://a"),
        (long, "http://b"),
        ("c", "http://c"),
    ]
    with pytest.raises(UserError, match=r"b\.tsv: a line is longer than 67108864 bytes"):
        read(file("b.tsv", b"x" * 80_000_000), format="cc3m")


def test_parquet_values_keep_their_types_and_their_nulls(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 2, 29, 12, 30)
    table = pa.table(
        {
            "URL": ["http://a", None, "http://c"],
            "TEXT": ["a", "b", None],
            "size": pa.array([640, None, 2**40], pa.int64()),
            "score": [0.1, float("nan"), None],
            "seen": [day, None, day],
            "tags": [["x", "y"], [], None],
            "nsfw": [True, False, None],
            "unused": [1, 2, 3],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    keep = ("size", "score", "seen", "tags", "nsfw")
    got = read(tmp_path / "a.parquet", url_column="URL", caption_column="TEXT", keep=keep)
    assert [list(row) for row in got] == [[*OWN, *keep]] * 3
    assert pairs(got) == [("a", "http://a"), ("b", None), (None, "http://c")]
    assert [row["size"] for row in got] == [640, None, 2**40]
    assert got[0]["score"] == 0.1
    assert got[1]["score"] != got[1]["score"]
    assert [row["seen"] for row in got] == [day, None, day]
    assert [row["tags"] for row in got] == [["x", "y"], [], None]
    assert [row["nsfw"] for row in got] == [True, False, None]


@pytest.mark.parametrize(
    "captions",
    [
        pa.array([1, None]),
        pa.array([None, None]),
        pa.array(["x", None]).dictionary_encode(),
        pa.array([b"x", None]),
        pa.array(["x", None], pa.large_string()),
        pa.array(["x", None], pa.string_view()),
        pa.array([datetime.date(2020, 2, 29), None]),
    ],
)
def test_captions_of_any_simple_type_become_text(tmp_path: Path, captions: pa.Array) -> None:
    pq.write_table(pa.table({"url": ["http://a", "http://b"], "caption": captions}), tmp_path / "a.parquet")
    first = captions[0].as_py()
    expected = first.decode() if isinstance(first, bytes) else None if first is None else str(first)
    assert pairs(read(tmp_path / "a.parquet")) == [(expected, "http://a"), (None, "http://b")]


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
    ],
)
def test_compressed_text_reads_as_if_it_were_not(file: File, ending: str, compress: Callable[[bytes], bytes]) -> None:
    # Parallel compressors write several streams one after the other.
    files = {
        "a.csv": [b"url,caption\nhttp://a,", b"A\n"],
        "a.tsv": [b"url\tcaption\nhttp://a\tA\n", b""],
        "a.jsonl": [b'{"url": "http://a", ', b'"caption": "A"}\n'],
    }
    for name, pieces in files.items():
        assert pairs(read(file(f"{name}.{ending}", b"".join(map(compress, pieces))))) == [("A", "http://a")], name
    assert pairs(read(file(f"a.txt.{ending}", compress(b"http://a\n")))) == [("", "http://a")]


def test_globs_are_sorted_and_given_order_is_kept(file: File) -> None:
    for name in ("b-1.tsv", "b-0.tsv", "a.tsv", "odd[1].tsv"):
        file(name, f"{name}\thttp://x\n".encode())
    folder = file("c.txt", b"").parent
    got = read(folder / "b-*.tsv", folder / "a.tsv", folder / "odd[1].tsv", format="cc3m")
    assert [row["caption"] for row in got] == ["b-0.tsv", "b-1.tsv", "a.tsv", "odd[1].tsv"]


def test_of_a_folder_the_formats_files_are_read_sorted(file: File) -> None:
    for name in (
        "list/b.tsv",
        "list/a.tsv.gz",
        "list/sub/c.tsv",
        "list/_SUCCESS.tsv",
        "list/.hidden/d.tsv",
        "list/readme.md",
    ):
        row = f"{name}\thttp://x\n".encode()
        file(name, gzip.compress(row) if name.endswith("gz") else row)
    folder = file("list/notes.txt", b"no URL\n").parent
    expected = ["list/a.tsv.gz", "list/b.tsv", "list/sub/c.tsv"]
    assert [row["caption"] for row in read(folder, format="cc3m")] == expected
    with pytest.raises(UserError, match=r"notes\.txt: this file is txt, those before it tsv"):
        read(folder)
    with pytest.raises(UserError, match=r"no list of the kind that is wanted is in this folder: a\.tsv\.gz, b\.tsv"):
        read(folder, format="parquet")


def test_an_input_may_be_on_the_web(site: Any) -> None:
    url = site.add("list.tsv", b"caption\turl\na\thttp://a\n")
    assert pairs(read(url)) == [("a", "http://a")]
    assert look_at_input(url).name == "list.tsv"
    assert hash_input(url, threading.Event())[0] == 23
    with pytest.raises(UserError, match="no such input file"):
        read(site.url("nothing.tsv"))


def test_hashes_are_taken_as_they_are_but_for_case_and_space(file: File) -> None:
    text = "url\tcaption\tsum\nhttp://a\tA\t ABCDEF01\nhttp://b\tB\t\n"
    assert [row["digest"] for row in read(file("a.tsv", text.encode()), hash_column="sum")] == ["abcdef01", None]
    assert [row["digest"] for row in read(file("a.tsv", text.encode()))] == [None, None]


LISTS = io.BytesIO()
pq.write_table(pa.table({"url": ["http://a"], "caption": [["x"]]}), LISTS)
STRUCTS = io.BytesIO()
pq.write_table(pa.table({"url": ["http://a"], "caption": [{"en": "x"}]}), STRUCTS)
TWICE = io.BytesIO()
pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["url", "url", "caption"]), TWICE)
SQUEEZED = gzip.compress(b"url\tcaption\n" + b"http://a\tA\n" * 5000, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "saying"),
    [
        ("a.csv", b"link,TEXT\nhttp://a,A\n", "no column 'url'; the columns are 'link', 'TEXT'"),
        ("a.csv", b"url,title\nhttp://a,A\n", "no column 'caption' or 'text'; the columns are 'url', 'title'"),
        ("a.csv", b"url,url,caption\na,b,c\n", "2 columns 'url'"),
        ("a.csv", b"", "the file is empty"),
        ("a.tsv", b"", "the file is empty"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"[]\n", "the file is empty"),
        ("a.json", b'{\n "url": "http://a"\n}\n', "its first 3 rows are no JSON objects (line 1: no JSON"),
        ("a.csv", "url,légende\nhttp://a,é\n".encode("latin-1"), "its first line has bytes that are not UTF-8 text"),
        ("a.tsv", "url\tlégende\nhttp://a\té\n".encode("latin-1"), "its first line has bytes that are not UTF-8 text"),
        (
            "a.csv",
            "url,caption\nhttp://a,é\n".encode("utf-16"),
            "this is UTF-16, not UTF-8 text. Give --encoding utf-16",
        ),
        ("a.txt", "http://a\n".encode("utf-32"), "this is UTF-32, not UTF-8 text"),
        ("a.csv", b'"url,caption\nhttp://a,A\n', "its first line, with the columns' names, is broken"),
        ("a.csv", b"\nurl,caption\nhttp://a,A\n", "its first line is blank"),
        (
            "a.csv",
            b"http://a/1.jpg,A\nhttp://b,B\n",
            "Its first line seems to be a row: name the columns with --columns",
        ),
        ("a.tsv.gz", b"url\tcaption\n", "cannot be read as tsv"),
        ("a.tsv.gz", SQUEEZED[:60], "cannot be read as tsv"),
        ("a.tsv.gz", SQUEEZED[:30] + b"\xff" * 10 + SQUEEZED[40:], "cannot be read as tsv"),
        ("a.csv.gz", SQUEEZED[:60], "cannot be read as csv"),
        ("a.parquet", b"PAR1 garbage PAR1", "cannot be read as parquet"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.parquet", STRUCTS.getvalue(), "column 'caption' is no text but struct<en: string>"),
        ("a.parquet", LISTS.getvalue()[:-20], "cannot be read as parquet"),
        ("a.parquet", TWICE.getvalue(), "2 columns 'url'"),
        ("a.json", b"[]", "the file is empty"),
        ("a.jpg", b"x", "this is a picture, not a list"),
        ("a.tar", b"x", "this is a tar, not a list"),
        ("noending", b"x", "cannot tell the format"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(file: File, name: str, content: bytes, saying: str) -> None:
    path = file(name, content)
    with pytest.raises(UserError) as raised:
        read(path)
    assert saying in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.csv", tmp_path / "*.csv", tmp_path, "nope://x", "http://127.0.0.1:1/x.csv"):
        with pytest.raises(UserError, match=r"no such input file|is empty|cannot be (opened|reached)"):
            read(path)


@pytest.mark.parametrize(
    ("settings", "saying"),
    [
        ({"keep": ("url",)}, "cannot keep a column named 'url'"),
        ({"keep": ("digest",)}, "cannot keep a column named 'digest'"),
        ({"keep": ("x", "X")}, "kept twice"),
        ({"keep": ("x",)}, "no column 'x'"),
        ({"hash_column": "x"}, "no column 'x'"),
        ({"where": ("x > 1",)}, "no column 'x'"),
        ({"where": ("caption",)}, "condition 'caption' is not understood"),
        ({"format": "yfcc15m"}, "needs OpenAI's list"),
        ({"format": "cc3m", "subset": "a.tsv"}, "needs OpenAI's list"),
    ],
)
def test_unusable_settings_are_refused(file: File, settings: dict[str, Any], saying: str) -> None:
    path = file("a.tsv", b"url\tcaption\nhttp://a\tA\n")
    with pytest.raises(UserError, match=saying):
        read(path, **settings)


def wanted(source: Source, skip: int) -> list[dict[str, Any]]:
    return [row for table in source.tables(skip) for row in table.to_pylist()]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "txt"])
def test_reading_begins_with_any_row(file: File, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever reads knows how far it has come."""
    monkeypatch.setattr("ingest.sources.parquet._ROWS", 4)
    paths = []
    for number, count in enumerate((7, 1, 12)):
        urls = [f"http://{number}/{row}" for row in range(count)]
        sink = io.BytesIO()
        if kind == "parquet":
            pq.write_table(pa.table({"url": urls, "caption": urls}), sink, row_group_size=5)
        elif kind == "csv":
            sink.write(("url,caption\n" + "".join(f"{url},c\n" for url in urls)).encode())
        elif kind == "jsonl":
            sink.write("".join(json.dumps({"url": url, "caption": "c"}) + "\n" for url in urls).encode())
        else:
            sink.write("".join(f"{url}\n" for url in urls).encode())
        paths.append(str(file(f"{number}.{kind}", sink.getvalue())))
    settings = SourceSettings(paths=tuple(paths))
    rows = wanted(Source(settings), 0)
    assert len(rows) == 20
    for skip in (1, 4, 5, 6, 7, 8, 9, 19, 20, 21):
        source = Source(settings)
        assert wanted(source, skip) == rows[skip:]
        assert source.share_read == 1
    source = Source(settings)
    assert source.share_read == 0
    tables = source.tables()
    next(tables)
    assert 0 < source.share_read < 1
