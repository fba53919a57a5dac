"""Every row of every kind of file, none lost, none invented, and files that cannot be read refused in one line."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import SourceSettings
from ingest.sources import describe_input, find_inputs, read_input
from shards import UserError

Rows = list[tuple[str | None, str | None]]


def read(*paths: Path | str, **settings: Any) -> list[dict[str, Any]]:
    source = SourceSettings(paths=tuple(map(str, paths)), **settings)
    return [
        row for path in find_inputs(source.paths) for table in read_input(path, source) for row in table.to_pylist()
    ]


def pairs(rows: list[dict[str, Any]]) -> Rows:
    return [(row["caption"], row["url"]) for row in rows]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


File = Callable[[str, bytes], Path]


def test_cc3m_has_no_header_and_no_quoting(file: File) -> None:
    rows = [
        ('"the cat sat', "http://a/1.jpg"),
        ("on the mat", "http://a/2.jpg"),
        ('he said "no"', "http://a/3.jpg"),
        ('"', "http://a/4.jpg"),
        ("été à Łódź 🐈 日本", "http://a/ü.jpg"),
        ("'single, comma", 'http://a/"5".jpg'),
    ]
    text = "".join(f"{caption}\t{url}\n" for caption, url in rows)
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == rows


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_byte_order_marks_are_not_data(file: File, ending: str, start: bytes, last: bool) -> None:
    text = ending.join(["a\thttp://a", "b\thttp://b"]) + (ending if last else "")
    assert pairs(read(file("a.tsv", start + text.encode()), format="cc3m")) == [("a", "http://a"), ("b", "http://b")]
    headed = f"caption\turl{ending}{text}"
    assert pairs(read(file("b.tsv", start + headed.encode()))) == [("a", "http://a"), ("b", "http://b")]


def test_a_line_is_ended_by_a_line_feed_alone(file: File) -> None:
    text = "a\u2028b\x0bc\x0cd\x85e\rf\thttp://a\n"
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == [("a\u2028b\x0bc\x0cd\x85e\rf", "http://a")]


def test_a_malformed_row_is_kept_as_a_row_without_a_url(file: File) -> None:
    text = "good\thttp://a\nno tab at all\ntwo\ttabs\thttp://b\n\t\ngood\thttp://c\n"
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == [
        ("good", "http://a"),
        ("no tab at all", None),
        ("two\ttabs\thttp://b", None),
        ("", ""),
        ("good", "http://c"),
    ]


def test_csv_fields_may_hold_commas_quotes_and_line_ends(file: File) -> None:
    rows = [
        ("http://a", "plain"),
        ("http://b,c", "a, comma"),
        ("http://c", 'a "quoted" word'),
        ("http://d", "two\nlines"),
        ("http://e", "two\r\nlines"),
        ("http://f", ""),
        ("http://g", "\t tab"),
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
    assert [(row["url"], row["caption"], row["more"]) for row in got] == [
        ("http://a", "A", "1"),
        (None, "http://b\tB", None),
        (None, "http://c\tC\t3\t4", None),
    ]


@pytest.mark.parametrize("text", ['http://a,"open\nhttp://b,B\nhttp://c,C\n', 'http://a,"x" y\nhttp://b,B\n'])
def test_a_csv_quote_that_would_swallow_rows_is_refused(file: File, text: str) -> None:
    with pytest.raises(UserError, match=r"a\.csv: cannot be read as csv"):
        read(file("a.csv", f"url,caption\n{text}".encode()))


def test_columns_are_found_by_name_wherever_they_stand(file: File) -> None:
    text = "id\tTEXT\tlicense\tURL\n1\ta\tcc\thttp://a\n2\tb\t\thttp://b\n"
    got = read(file("a.tsv", text.encode()), url_column="URL", caption_column="TEXT", keep=("license", "id"))
    assert got == [
        {"url": "http://a", "caption": "a", "license": "cc", "id": "1"},
        {"url": "http://b", "caption": "b", "license": "", "id": "2"},
    ]


def test_rows_come_in_the_order_of_the_file_across_batches(file: File) -> None:
    rows = [(f"caption {row}", f"http://a/{row}") for row in range(25_003)]
    text = "".join(f"{caption}\t{url}\n" for caption, url in rows)
    assert pairs(read(file("a.tsv", text.encode()), format="cc3m")) == rows


def test_parquet_values_keep_their_types_and_their_nulls(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 2, 29, 12, 30)
    table = pa.table(
        {
            "URL": ["http://a", None, "http://c"],
            "TEXT": ["a", "b", None],
            "width": pa.array([640, None, 2**40], pa.int64()),
            "score": [0.1, float("nan"), None],
            "seen": [day, None, day],
            "tags": [["x", "y"], [], None],
            "nsfw": [True, False, None],
            "unused": [1, 2, 3],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    keep = ("width", "score", "seen", "tags", "nsfw")
    got = read(tmp_path / "a.parquet", url_column="URL", caption_column="TEXT", keep=keep)
    assert [list(row) for row in got] == [["url", "caption", *keep]] * 3
    assert pairs(got) == [("a", "http://a"), ("b", None), (None, "http://c")]
    assert [row["width"] for row in got] == [640, None, 2**40]
    assert got[0]["score"] == 0.1
    assert got[1]["score"] != got[1]["score"]
    assert [row["seen"] for row in got] == [day, None, day]
    assert [row["tags"] for row in got] == [["x", "y"], [], None]
    assert [row["nsfw"] for row in got] == [True, False, None]


@pytest.mark.parametrize(
    "captions",
    [pa.array([1, None]), pa.array([None, None]), pa.array(["x", None]).dictionary_encode(), pa.array([b"x", None])],
)
def test_captions_of_any_simple_type_become_text(tmp_path: Path, captions: pa.Array) -> None:
    pq.write_table(pa.table({"url": ["http://a", "http://b"], "caption": captions}), tmp_path / "a.parquet")
    first = captions[0].as_py()
    expected = first.decode() if isinstance(first, bytes) else None if first is None else str(first)
    assert pairs(read(tmp_path / "a.parquet")) == [(expected, "http://a"), (None, "http://b")]


def test_compressed_text_reads_as_if_it_were_not(file: File) -> None:
    text = "url,caption\nhttp://a,A\n"
    for name in ("a.csv", "a.tsv"):
        content = text.replace(",", "\t") if name.endswith("tsv") else text
        assert pairs(read(file(f"{name}.gz", gzip.compress(content.encode())))) == [("A", "http://a")]


def test_globs_are_sorted_and_given_order_is_kept(file: File) -> None:
    for name in ("b-1.tsv", "b-0.tsv", "a.tsv", "odd[1].tsv"):
        file(name, f"{name}\thttp://x\n".encode())
    folder = file("c.txt", b"").parent
    got = read(folder / "b-*.tsv", folder / "a.tsv", folder / "odd[1].tsv", format="cc3m")
    assert [row["caption"] for row in got] == ["b-0.tsv", "b-1.tsv", "a.tsv", "odd[1].tsv"]


def test_an_input_may_be_on_the_web(site: Any) -> None:
    url = site.add("list.tsv", b"caption\turl\na\thttp://a\n")
    assert pairs(read(url)) == [("a", "http://a")]
    assert describe_input(url)["bytes"] == 23
    with pytest.raises(UserError, match="no such input file"):
        read(site.url("nothing.tsv"))


LISTS = io.BytesIO()
pq.write_table(pa.table({"url": ["http://a"], "caption": [["x"]]}), LISTS)
TWICE = io.BytesIO()
pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["url", "url", "caption"]), TWICE)
BINARY = io.BytesIO()
pq.write_table(pa.table({"url": [b"\xff\xfe"], "caption": ["x"]}), BINARY)
SQUEEZED = gzip.compress(b"url\tcaption\n" + b"http://a\tA\n" * 5000)


@pytest.mark.parametrize(
    ("name", "content", "saying"),
    [
        ("a.csv", b"URL,TEXT\nhttp://a,A\n", "no column 'url'; the columns are 'URL', 'TEXT'"),
        ("a.csv", b"url,TEXT\nhttp://a,A\n", "no column 'caption'; the columns are 'url', 'TEXT'"),
        ("a.csv", b"url,url,caption\na,b,c\n", "2 columns 'url'"),
        ("a.csv", b"", "the file is empty"),
        ("a.tsv", b"", "the file is empty"),
        ("a.csv", "url,caption\nhttp://a,é\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", "url,caption\nhttp://a,é\n".encode("utf-16"), "not UTF-8"),
        ("a.csv", b"url,caption\nhttp://a," + b"x" * 200_000, "field larger than field limit"),
        ("a.tsv.gz", b"url\tcaption\n", "Not a gzipped file"),
        ("a.tsv.gz", SQUEEZED[:60], "cannot be read as tsv"),
        ("a.tsv.gz", SQUEEZED[:30] + b"\xff" * 10 + SQUEEZED[40:], "cannot be read as tsv"),
        ("a.parquet", b"PAR1 garbage PAR1", "cannot be read as parquet"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.parquet", LISTS.getvalue(), "cannot be read as parquet"),
        ("a.parquet", LISTS.getvalue()[:-20], "cannot be read as parquet"),
        ("a.parquet", TWICE.getvalue(), "2 columns 'url'"),
        ("a.parquet", BINARY.getvalue(), "cannot be read as parquet"),
        ("a.json", b"[]", "cannot tell the format from the ending 'json'"),
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
        with pytest.raises(UserError, match=r"no such input file|Protocol not known"):
            read(path)
