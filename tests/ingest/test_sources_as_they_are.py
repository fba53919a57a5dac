"""Lists as they are: a faulty row costs itself and says where; other columns, encodings and captions are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import SourceSettings
from ingest.sources import Source
from shards import UserError


def read(*paths: Path, **settings: Any) -> list[dict[str, Any]]:
    source = Source(SourceSettings(paths=tuple(map(str, paths)), **settings))
    return [row for table in source.tables() for row in table.to_pylist()]


def faults(rows: list[dict[str, Any]]) -> dict[int, tuple[str, str]]:
    """Of the faulty rows, by their numbers: why, and the text. The others have a URL and a caption."""
    assert all(row["url"] and row["caption"] for row in rows if row["fault"] is None)
    assert all(row["url"] is None for row in rows if row["fault"] is not None)
    return {place: (row["fault"], row["caption"]) for place, row in enumerate(rows) if row["fault"] is not None}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


OPEN = "a quote that is not closed"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('http://a/3,"a 5" frame"', """its quotes or fields are broken (',' expected after '"')"""),
        ('http://a/3,"open', OPEN),
        ('"http://a/3,open', OPEN),
        ('http://a/3,"open, ""or not', OPEN),
        ("http://a/3,one,two", "3 fields where 2 are expected"),
        ("http://a/3", "1 field where 2 are expected"),
        ("", "it is blank"),
    ],
)
@pytest.mark.parametrize("later", ["plain", '"quoted"', '"two\r\nlines"'])
def test_a_broken_line_of_csv_costs_one_row(tmp_path: Path, line: str, why: str, later: str) -> None:
    lines = [f"http://a/{row},plain" for row in range(3)] + [line] + [f"http://a/{row},{later}" for row in range(4, 9)]
    rows = read(write(tmp_path / "a.csv", "url,caption\n" + "\n".join(lines) + "\n"))
    assert [row["url"] for row in rows] == [None if row == 3 else f"http://a/{row}" for row in range(9)]
    ((place, (fault, text)),) = faults(rows).items()
    assert (place, text) == (3, line)
    assert fault.startswith("line 5: ")
    # A quote that the next row's own one closes is broken there, which is this line's fault all the same.
    assert why in fault or (why == OPEN and "its quotes or fields are broken" in fault)


def test_a_quote_that_is_never_closed_costs_one_row_of_a_long_list(tmp_path: Path) -> None:
    lines = [f"http://a/{row},caption {row}" for row in range(200_000)]
    lines[7] = 'http://a/7,"caption'
    lines[-1] = 'http://a/last,the end"'
    rows = read(write(tmp_path / "a.csv", "url,caption\n" + "\n".join(lines)))
    assert len(rows) == 200_000
    assert faults(rows) == {7: (f"line 9: {OPEN}", 'http://a/7,"caption')}


def test_a_quoted_caption_may_run_over_lines_and_have_urls_in_it(tmp_path: Path) -> None:
    captions = ["see\nhttp://b/1\nfor more", "http://b/1\n, 2", 'a "word",\r\nand\nhttp://c more, more', "\n\n"]
    text = "".join('http://a,"{}"\n'.format(caption.replace('"', '""')) for caption in captions)
    rows = read(write(tmp_path / "a.csv", f"url,caption\n{text}"))
    assert [(row["caption"], row["fault"]) for row in rows] == [(caption, None) for caption in captions]


LATIN = {
    "a.csv": "url,caption\nhttp://a/1,caf\xe9\nhttp://a/2,two\n",
    "a.tsv": "url\tcaption\nhttp://a/1\tcaf\xe9\nhttp://a/2\ttwo\n",
    "a.jsonl": '{"url": "http://a/1", "caption": "caf\xe9"}\n{"url": "http://a/2", "caption": "two"}\n',
    "a.json": '[{"url": "http://a/1", "caption": "caf\xe9"},\n{"url": "http://a/2", "caption": "two"}]\n',
}


@pytest.mark.parametrize("name", LATIN)
def test_bytes_that_are_no_text_cost_their_row_and_another_encoding_reads_them(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, LATIN[name].encode("latin-1"))
    place = {"a.csv": "line 2", "a.tsv": "line 2", "a.jsonl": "line 1", "a.json": "item 1"}[name]
    ((row, (fault, text)),) = faults(read(path)).items()
    assert (row, fault) == (0, f"{place}: bytes that are not UTF-8 text; --encoding names another")
    assert "caf\ufffd" in text
    for encoding in ("latin-1", "utf-16", "utf-8-sig", "utf-32-be", "iso8859-15"):
        rows = read(write(tmp_path / name, LATIN[name].encode(encoding)), encoding=encoding)
        assert [(row["url"], row["caption"], row["fault"]) for row in rows] == [
            ("http://a/1", "café", None),
            ("http://a/2", "two", None),
        ]


def test_bytes_that_another_encoding_lacks_cost_their_row_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"caption\turl\n\x81\thttp://a/1\n\x80\thttp://a/2\n")
    assert read(path, encoding="cp1252")[1]["caption"] == "€"
    fault = "line 2: bytes that are not CP1252 text"
    assert faults(read(path, encoding="cp1252")) == {0: (fault, "\ufffd\thttp://a/1")}


def test_of_parquet_too(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"caf\xe9", None, b"four"])
    texts = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    urls = [f"http://a/{row}" for row in range(4)]
    for captions in (raw, texts, raw.cast(pa.large_binary()), texts.dictionary_encode()):
        pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "a.parquet")
        rows = read(tmp_path / "a.parquet")
        assert [row["caption"] for row in rows] == ["one", "http://a/1\tcaf\ufffd", None, "four"]
        assert [row["fault"] is None for row in rows] == [True, False, True, True]
        assert rows[1]["fault"].startswith("row 2: bytes that are not UTF-8 text")
        rows = read(tmp_path / "a.parquet", encoding="latin-1")
        assert [row["caption"] for row in rows] == ["one", "café", None, "four"]


def test_a_kept_list_with_stray_bytes_costs_its_row(tmp_path: Path) -> None:
    words = pa.array([b"a", b"\xff", b"c"])
    tags = pa.ListArray.from_arrays([0, 1, 2, 3], pa.Array.from_buffers(pa.string(), 3, words.buffers()))
    pq.write_table(pa.table({"url": ["http://a"] * 3, "caption": list("xyz"), "tags": tags}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", keep=("tags",))
    assert [row["tags"] for row in rows] == [["a"], None, ["c"]]
    assert list(faults(rows)) == [1]


def test_of_several_files_a_fault_names_its_own(tmp_path: Path) -> None:
    for name in ("a.tsv", "b.tsv"):
        write(tmp_path / name, "one\thttp://a\nbroken\n")
    expected = {
        row: (f"{name}.tsv, line 2: 1 field where 2 are expected", "broken") for row, name in ((1, "a"), (3, "b"))
    }
    assert faults(read(tmp_path / "a.tsv", tmp_path / "b.tsv", format="cc3m")) == expected


def test_cc3m_with_labels_is_known_by_its_five_fields(tmp_path: Path) -> None:
    lines = [f"caption {row}\thttp://a/{row}\tthing,object\t/m/01,/m/02\t0.9,0.8" for row in range(3)]
    path = write(tmp_path / "a.tsv", "broken\n" + "\n".join(lines))
    rows = read(path, format="cc3m", keep=("labels", "confidences"))
    assert faults(rows) == {0: ("line 1: 1 field where 5 are expected", "broken")}
    assert [(row["caption"], row["url"], row["labels"], row["confidences"]) for row in rows[1:]] == [
        (f"caption {row}", f"http://a/{row}", "thing,object", "0.9,0.8") for row in range(3)
    ]


@pytest.mark.parametrize(("name", "sign"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_columns_without_a_header_are_named(tmp_path: Path, name: str, sign: str) -> None:
    path = write(tmp_path / name, f"1{sign}http://a{sign}one\n2{sign}http://b{sign}two\n")
    rows = read(path, columns=("id", "link", "text"), url_column="link", keep=("id",))
    assert [(row["id"], row["url"], row["caption"]) for row in rows] == [
        ("1", "http://a", "one"),
        ("2", "http://b", "two"),
    ]


WIT = 'language\timage_url\tcaption\nen\thttp://a\tplain\nru\thttp://b\t"one\ntwo"\nen\thttp://c\t"""so"" he said"\n'


def test_quoted_tsv_is_read_if_that_is_said_and_recognised_if_not(tmp_path: Path) -> None:
    path = write(tmp_path / "wit.tsv", WIT)
    rows = read(path, url_column="image_url", quoted=True)
    assert [row["caption"] for row in rows] == ["plain", "one\ntwo", '"so" he said']
    with pytest.raises(UserError, match=r"wit\.tsv: its fields are quoted.* Give --quoted"):
        read(path, url_column="image_url")
    # Quotes alone say nothing, nor do faults alone.
    for text in (
        'url\tcaption\nhttp://a\t"one\nhttp://b\ttwo"\n',
        'url\tcaption\nhttp://a\t"one\nbroken\nhttp://b\ttwo\n',
    ):
        assert read(write(tmp_path / "a.tsv", text))[0]["caption"] == '"one'


def test_json_is_an_array_or_lines_whatever_the_ending(tmp_path: Path) -> None:
    items = [{"url": f"http://a/{row}", "caption": f"[{row}], {{"} for row in range(500)]
    texts = [
        json.dumps(items),
        json.dumps(items, indent=1),
        json.dumps(items[:200]) + "\n" + json.dumps(items[200:]),
        "\n".join(map(json.dumps, items)),
    ]
    for text in texts:
        for name in ("a.json", "a.jsonl"):
            rows = read(write(tmp_path / name, text))
            assert [(row["url"], row["caption"]) for row in rows] == [(item["url"], item["caption"]) for item in items]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            '[{"url": "http://a", "caption": "x"}, {"url": "http://b"',
            [None, "item 2: no JSON (Expecting ',' delimiter"],
        ),
        ('[{"url": "http://a", "caption": "x"}, {"url": "http', [None, "item 2: no JSON (Unterminated string"]),
        ('[{"url": "http://a", "caption": "x"},', [None, "item 2: the array does not end"]),
        ('[{"url": "http://a", "caption": "x"}] and more', [None, "item 2: this stands behind the array"]),
        (
            '[nonsense, {"url": "http://a", "caption": "x"}, 7]',
            ["item 1: no JSON (Expecting value", None, "item 3: JSON, but"],
        ),
    ],
)
def test_what_is_broken_of_an_array_is_a_row(tmp_path: Path, text: str, rows: list[str | None]) -> None:
    got = read(write(tmp_path / "a.json", text))
    assert len(got) == len(rows)
    for row, fault in zip(got, rows, strict=True):
        assert (row["fault"] or "").startswith(fault or "")
        assert (row["url"] == "http://a") == (fault is None)


def test_a_list_of_captions_is_several(tmp_path: Path) -> None:
    lists = [["", None, "one", "two", "one", " "], ["x"], [], None, [None]]
    expected = [("one", ["two"]), ("x", None), (None, None), (None, None), (None, None)]
    urls = [f"http://a/{row}" for row in range(len(lists))]
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string())):
        pq.write_table(pa.table({"url": urls, "caption": pa.array(lists, kind)}), tmp_path / "a.parquet")
        rows = read(tmp_path / "a.parquet")
        assert [(row["caption"], row["captions"]) for row in rows] == expected
    lines = [json.dumps({"url": url, "caption": captions}) for url, captions in zip(urls, lists, strict=True)]
    rows = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [(row["caption"], row["captions"]) for row in rows] == expected
    text = 'url,caption\nhttp://a,"[""a"", ""b""]"\nhttp://a,"[1, 2]"\nhttp://a,[sic]\nhttp://a,"[""a"", 1]"\n'
    rows = read(write(tmp_path / "a.csv", text))
    assert [(row["caption"], row["captions"]) for row in rows] == [
        ("a", ["b"]),
        ("[1, 2]", None),
        ("[sic]", None),
        ('["a", 1]', None),
    ]


def test_any_list_can_do_without_captions(tmp_path: Path) -> None:
    for name, text in (
        ("a.csv", "link\nhttp://a\n"),
        ("a.tsv", "id\tlink\n1\thttp://a\n"),
        ("a.jsonl", '{"link": "http://a"}'),
    ):
        source = Source(SourceSettings(paths=(str(write(tmp_path / name, text)),), url_column="link", captions=False))
        assert not source.captioned
        (row,) = [row for table in source.tables() for row in table.to_pylist()]
        assert (row["url"], row["caption"]) == ("http://a", "")


def test_a_ledger_is_a_list_if_its_rows_are_chosen(tmp_path: Path) -> None:
    columns = {"url": ["http://a", "http://b"], "caption": ["a", "b"], "key": ["0", "1"], "error_message": [None, "x"]}
    pq.write_table(pa.table(columns | {"status": ["success", "failed_to_download"]}), tmp_path / "00000.parquet")
    with pytest.raises(UserError, match="this is a ledger of what became of each row"):
        read(tmp_path / "00000.parquet")
    rows = read(tmp_path / "00000.parquet", where=("status != success",))
    assert [row["filtered_by"] for row in rows] == ["status != success", None]


def test_what_a_server_answers_is_said(site: Any) -> None:
    for status in (403, 500):
        with pytest.raises(UserError, match=rf"list\.csv: the server answers {status}"):
            read(site.add(f"{status}/list.csv", b"", status))


def test_rows_that_are_none_are_in_the_ledger_with_their_line_and_text(
    tmp_path: Path, site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any]
) -> None:
    urls = [site.add(f"{number}.jpg", picture()) for number in range(3)]
    text = f'url,caption\n{urls[0]},one\n{urls[1]},"a 5" frame"\n{urls[2]},"[""x"", ""y""]"\n'
    write(tmp_path / "list.csv", text)
    arguments = ("ingest", tmp_path / "list.csv", "--name", "set", "--out", tmp_path / "out", "--image-size", 32)
    done = clipstill_here(*arguments, "--allow-address", "127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert "1  bad_row" in done.stdout
    assert "--encoding helps" in done.stdout
    rows = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert [row["error_class"] for row in rows] == [None, "bad_row", None]
    assert rows[1]["error_message"].startswith("line 3: its quotes or fields are broken")
    assert rows[1]["caption"] == f'{urls[1]},"a 5" frame"'
    assert (rows[2]["caption"], rows[2]["captions"]) == ("x", ["y"])


def test_a_run_that_fetches_nothing_ends_with_status_one(
    tmp_path: Path, site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any]
) -> None:
    write(tmp_path / "list.csv", f"url\n{site.add('only.jpg', picture())}\n")
    arguments = ("ingest", tmp_path / "list.csv", "--no-captions", "--name", "set", "--out", tmp_path / "out")
    for _ in range(2):
        done = clipstill_here(*arguments)
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("clipstill: ")]
        assert "its one row became no sample: 1 is blocked_address" in line
    assert clipstill_here("ingest retry", tmp_path / "out", "--allow-address", "127.0.0.1").returncode == 0
    assert clipstill_here(*arguments).returncode == 0
