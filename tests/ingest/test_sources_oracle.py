"""Random lists, sound and damaged, against a reader in plain Python that knows neither Arrow nor blocks.

Every row of every kind of file comes out once, in order, with its URL, captions, kept column, and fault with its place.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ingest import SourceSettings
from ingest.sources import Source

COLUMNS = ("url", "caption", "kept")
OPEN = 1 << 22
"""What docs/formats.md says: a quote may stay open over so many characters."""


class Row(NamedTuple):
    """What must come out. Of a faulty row `caption` is its text, and `fault` its place."""

    url: str | None
    caption: str | None
    captions: tuple[str, ...] | None = None
    kept: str | None = None
    fault: str | None = None


def good(url: str | None, caption: str | list[Any] | None, kept: str | None) -> Row:
    url = url if url is None else url.strip()
    items: Any = caption
    if isinstance(caption, str) and caption.startswith("[") and caption.endswith("]"):
        try:
            items = json.loads(caption)
        except ValueError:
            items = None
    if not isinstance(items, list) or not all(item is None or isinstance(item, str) for item in items):
        return Row(url, caption, None, kept)  # type: ignore[arg-type]
    said: list[str] = []
    for item in items:
        if item and item.strip() and item not in said:
            said.append(item)
    return Row(url, said[0] if said else None, tuple(said[1:]) or None, kept)


# The oracle, a function for each kind of file: from its bytes to its rows.


def oracle_of_tsv(data: bytes, encoding: str) -> Iterator[Row]:
    lines = data.split(b"\n")
    for number, raw in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        line = raw.rstrip(b"\r")
        try:
            fields = line.decode(encoding).split("\t")
        except UnicodeDecodeError:
            fields = []
        if len(fields) != 3:
            yield Row(None, line.decode(encoding, "replace"), fault=f"line {number}")
        elif number > 1:
            yield good(*fields)


def oracle_of_txt(data: bytes, encoding: str) -> Iterator[Row]:
    lines = data.split(b"\n")
    for number, raw in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        line = raw.rstrip(b"\r")
        try:
            yield Row(line.decode(encoding).strip(), "")
        except UnicodeDecodeError:
            yield Row(None, line.decode(encoding, "replace"), fault=f"line {number}")


def oracle_of_jsonl(data: bytes, encoding: str) -> Iterator[Row]:
    lines = data.split(b"\n")
    for number, raw in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        line = raw.rstrip(b"\r")
        try:
            item = json.loads(line.decode(encoding))
        except ValueError:
            item = None
        shown = line.decode(encoding, "replace")
        yield (
            of_object(item, shown, f"line {number}")
            if isinstance(item, dict)
            else Row(None, shown, fault=f"line {number}")
        )


def of_object(item: dict[str, Any], text: str, place: str) -> Row:
    """A caption is a text, a number or a list of texts. Null and NaN are none; anything else makes the row faulty."""
    caption = item.get("caption")
    if isinstance(caption, list):
        caption = [None if is_no_number(one) else one for one in caption]
        sound = all(one is None or isinstance(one, str) for one in caption)
    else:
        caption = None if is_no_number(caption) else caption
        sound = caption is None or (isinstance(caption, str | int | float) and not isinstance(caption, bool))
    if not sound:
        return Row(None, text, fault=place)
    return good(*(as_text(value) for value in (item.get("url"), caption, item.get("kept"))))


def is_no_number(value: Any) -> bool:
    return isinstance(value, float) and value - value != 0


def as_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # JSON can spell halves of surrogate pairs, which are no text.
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def oracle_of_quoted(data: bytes, encoding: str, sign: str) -> Iterator[Row]:
    text = data.decode(encoding, "surrogateescape")
    lines = re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", text)
    at = 1
    while at < len(lines):
        fields, end = record(lines, at, sign)
        swallows = any(is_row(line, sign) for line in lines[at + 1 : end])
        too_long = end - at > 1 and sum(map(len, lines[at:end])) > OPEN
        is_sound = fields is not None and len(fields) == 3 and not swallows and not too_long
        if not is_sound:
            end = at + 1
        raw = "".join(lines[at:end]).rstrip("\r\n")
        if not is_sound or any("\udc80" <= sign <= "\udcff" for field in fields or () for sign in field):
            shown = raw.encode(encoding, "surrogateescape").decode(encoding, "replace")
            yield Row(None, shown, fault=f"line {at + 1}")
        else:
            assert fields is not None
            yield good(*fields)
        at = end


def record(lines: list[str], start: int, sign: str) -> tuple[list[str] | None, int]:
    """The fields of the record that begins at a line, None if its quotes are broken; and the line after it."""
    fields, field, state = [], "", "begins"
    for number in range(start, len(lines)):
        for char in lines[number]:
            if state == "quoted":
                if char == '"':
                    state = "quote"
                else:
                    field += char
            elif state == "quote" and char == '"':
                field, state = field + '"', "quoted"
            elif char == sign:
                fields.append(field)
                field, state = "", "begins"
            elif char in "\r\n":
                break
            elif state == "quote":
                return None, number + 1
            elif state == "begins" and char == '"':
                state = "quoted"
            else:
                field, state = field + char, "plain"
        if state != "quoted":
            blank = not fields and state == "begins"
            return ([] if blank else [*fields, field]), number + 1
    return None, len(lines)


def is_row(line: str, sign: str) -> bool:
    fields, _ = record([line], 0, sign)
    bare = re.sub(f'(^|{sign})"(?:[^"]|"")*"(?=[{sign}\r\n]|$)', r"\1", line)
    url = fields[0].strip().lower() if fields else ""
    return fields is not None and len(fields) == 3 and '"' not in bare and url.startswith(("http://", "https://", "//"))


# Lists: what somebody wanted to write, and what became of it.

WORDS = ("cat", "dog on a mat", "", " ", "été", "日本語", "🐈", "a, b", 'say "no"', '12" ruler', "http://x/y, z", "[1]")
LISTS = ('["one", "two"]', '["é", null, "", "é"]', "[]", '["', "[a]", '[""]', "['x']", '["\\"q\\"", "\\n"]')


def texts(draw: random.Random, *, wild: str) -> str:
    kind = draw.random()
    if kind < 0.05:
        return draw.choice(LISTS)
    if kind < 0.07:
        return "long " * draw.choice((100, 5000))
    return draw.choice(("", " ", ", ", *wild)).join(draw.choices(WORDS, k=draw.choice((1, 1, 2, 4))))


def urls(draw: random.Random, number: int) -> str:
    url = f"http://a.example/{number}"
    return draw.choice((url, url, url, url, f"//b/{number}", f"  {url} ", "", f"HTTPS://c/{number}?a=1,2", "x.jpg"))


def rows_of(draw: random.Random, count: int, wild: str) -> list[list[str]]:
    return [[urls(draw, row), texts(draw, wild=wild), texts(draw, wild="")] for row in range(count)]


def damaged(draw: random.Random, data: bytes, header: int, share: float) -> bytes:
    """Bytes put in, taken out and written over, anywhere behind the header."""
    pieces, at = [data[:header]], header
    places = sorted(draw.randrange(header, len(data) + 1) for _ in range(int(share * len(data) / 50)))
    for place in places:
        pieces += [
            data[at:place],
            draw.choice((b'"', b"\xff", b"\xe9", b"\n", b"\r\n", b",", b"\t", b"", b"\xc3", b'""')),
        ]
        at = max(place + draw.choice((0, 0, 1)), at)
    return b"".join([*pieces, data[at:]])


def delimited(draw: random.Random, count: int, encoding: str, damage: float) -> tuple[bytes, str]:
    end = draw.choice(("\n", "\r\n"))
    rows = rows_of(draw, count, "\x0b\u2028")
    lines = ["\t".join(COLUMNS), *("\t".join(field.replace("\t", " ") for field in row) for row in rows)]
    data = (end.join(lines) + draw.choice((end, ""))).encode(encoding, "replace")
    return damaged(draw, data, len(lines[0] + end), damage), "tsv"


def quoted(draw: random.Random, count: int, encoding: str, damage: float) -> tuple[bytes, str]:
    sign, end = draw.choice(",\t"), draw.choice(("\n", "\r\n", "\r"))
    how = draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
    records = [sign.join(COLUMNS)]
    for row in rows_of(draw, count, "\n\r\t"):
        sink = io.StringIO()
        csv.writer(sink, delimiter=sign, lineterminator="", quoting=how).writerow(row)
        text = sink.getvalue()
        if draw.random() < damage / 5:
            # A quote that opens, and one that might close it rows further on: where quotes may stand.
            before, _, last = text.rpartition(sign)
            text = draw.choice((f'{before}{sign}"{last}', f'{text}"'))
        records.append(text)
    data = (end.join(records) + draw.choice((end, ""))).encode(encoding, "replace")
    return damaged(draw, data, len(records[0] + end), damage), "csv" if sign == "," else "quoted"


def jsonl(draw: random.Random, count: int, encoding: str, damage: float) -> tuple[bytes, str]:
    end = draw.choice(("\n", "\r\n"))
    head = json.dumps(dict.fromkeys(COLUMNS, "")) + end
    lines = [json.dumps(an_object(draw, row), ensure_ascii=draw.random() < 0.5) for row in range(count)]
    return damaged(draw, (head + end.join(lines)).encode(encoding, "replace"), len(head), damage), "jsonl"


def an_object(draw: random.Random, number: int) -> dict[str, Any]:
    nan, inf = float("nan"), float("inf")
    lists = (["a", "b"], ["", None, "c"], ["a", nan], [nan], [], [1], ["a", True], [["a"]])
    others = (None, None, 7, -0.25, nan, nan, inf, -inf, True, False, {"en": "x"}, {})
    caption: Any = draw.choice((texts(draw, wild="\n"), draw.choice(lists), draw.choice(others)))
    item = {"url": urls(draw, number), "caption": caption, "kept": draw.choice(("k", None, 0.5))}
    return {name: value for name, value in item.items() if draw.random() < 0.95}


def txt(draw: random.Random, count: int, encoding: str, damage: float) -> tuple[bytes, str]:
    return damaged(draw, "".join(f"{urls(draw, row)}\n" for row in range(count)).encode(encoding), 0, damage), "txt"


ORACLES: dict[str, Callable[[bytes, str], Iterator[Row]]] = {
    "tsv": oracle_of_tsv,
    "txt": oracle_of_txt,
    "jsonl": oracle_of_jsonl,
    "csv": lambda data, encoding: oracle_of_quoted(data, encoding, ","),
    "quoted": lambda data, encoding: oracle_of_quoted(data, encoding, "\t"),
}


def written(draw: random.Random, folder: Path, count: int) -> tuple[SourceSettings, list[Row]]:
    """A list of text in `folder`, and what must be read of it."""
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "latin-1", "cp1252", "cp1252"))
    damage = draw.choice((0, 0.001, 0.05, 1))
    data, kind = draw.choice((delimited, quoted, quoted, jsonl, txt))(draw, count, encoding, damage)
    expected = list(ORACLES[kind](data, encoding))
    if encoding == "latin-1" and draw.random() < 0.5:
        data, encoding = data.decode("latin-1").encode("utf-16"), "utf-16"
    elif encoding == "utf-8" and draw.random() < 0.3:
        data = b"\xef\xbb\xbf" + data
    path = folder / f"list.{'tsv' if kind == 'quoted' else kind}"
    path.write_bytes(data)
    keep = () if kind == "txt" else ("kept",)
    return SourceSettings(paths=(str(path),), encoding=encoding, keep=keep, quoted=kind == "quoted"), expected


def array(draw: random.Random, folder: Path, count: int) -> tuple[SourceSettings, list[Row]]:
    """A JSON array, of which some items are broken, each before one that is not."""
    broken = (
        '{"url": "a "quote", "caption": 1}',
        '{"url": }',
        "nonsense",
        '{"url": "a" "b": 2}',
        '{"a": "\n"}',
        "12",
        "[1, 2]",
    )
    items, expected = [json.dumps(dict.fromkeys(COLUMNS, ""))], [Row("", "", None, "")]
    for row in range(count):
        if draw.random() < 0.05:
            items.append(draw.choice(broken))
            expected.append(Row(None, items[-1], fault=f"item {len(items)}"))
        item = an_object(draw, row)
        items.append(json.dumps(item, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 2))))
        expected.append(of_object(item, items[-1], f"item {len(items)}"))
    between = draw.choice((",", ", ", ",\n", "\n,\n"))
    path = folder / "list.json"
    path.write_bytes(f" [{between.join(items)}\n] ".encode())
    return SourceSettings(paths=(str(path),), keep=("kept",)), expected


def some(draw: random.Random, text: str) -> bytes | None:
    return draw.choice((None, b"\xff\xfe", *[text.encode()] * 8))


def parquet(draw: random.Random, folder: Path, count: int) -> tuple[SourceSettings, list[Row]]:
    """Text or bytes, with nulls and stray bytes among them; or captions that are numbers, with NaN among them."""

    kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    rows = [[some(draw, urls(draw, row)), some(draw, texts(draw, wild="")), some(draw, "k")] for row in range(count)]
    arrays = []
    for column, of in zip(zip(*rows, strict=True), (kinds, kinds, kinds[:2]), strict=True):
        kind = draw.choice(of)
        options = pc.CastOptions(kind, allow_invalid_utf8=True)
        values = pa.array(column, pa.large_binary()).cast(options=options)
        arrays.append(values.dictionary_encode() if draw.random() < 0.2 else values)
    if draw.random() < 0.3:
        numbers = [draw.choice((0.5, -7.25, float("nan"), float("inf"), float("-inf"), None)) for _ in rows]
        rows = [[row[0], None if n is None else repr(n).encode(), row[2]] for row, n in zip(rows, numbers, strict=True)]
        arrays[1] = pa.array(numbers, draw.choice((pa.float32(), pa.float64())))
    expected = []
    for number, row in enumerate(rows, 1):
        url, caption, kept = (None if value is None else value.decode("utf-8", "replace") for value in row)
        if b"\xff\xfe" in row:
            expected.append(Row(None, f"{url or ''}\t{caption or ''}", fault=f"row {number}"))
        else:
            expected.append(good(url, None if caption in {"nan", "inf", "-inf"} else caption, kept))
    pq.write_table(
        pa.table(dict(zip(COLUMNS, arrays, strict=True))), folder / "list.parquet", row_group_size=count // 2 + 1
    )
    return SourceSettings(paths=(str(folder / "list.parquet"),), keep=("kept",)), expected


def check(seed: int, folder: Path, most: int) -> int:
    """Make the list of a seed, of up to `most` rows; returns how many it has."""
    draw = random.Random(seed)
    count = int(10 * (most / 10) ** draw.random())
    settings, expected = draw.choice((written, written, written, array, parquet))(draw, folder, count)
    tables = list(Source(settings).tables())
    got = [
        Row(
            row["url"],
            row["caption"],
            row["captions"] and tuple(row["captions"]),
            row.get("kept"),
            row["fault"] and row["fault"].split(":")[0],
        )
        for table in tables
        for row in table.to_pylist()
    ]
    assert len(got) == sum(table.num_rows for table in tables) == len(expected), seed
    for place, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert one == other, (seed, settings.paths, place, one, other)
    return len(got)


@pytest.mark.parametrize(("block", "most", "seeds"), [(7, 40, 25), (100, 300, 25), (None, 300, 60)])
def test_random_lists_are_read_as_a_plain_reader_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int | None, most: int, seeds: int
) -> None:
    if block is not None:
        for name in ("text._BLOCK", "quoted._BLOCK", "parquet._ROWS", "objects._ROWS"):
            monkeypatch.setattr(f"ingest.sources.{name}", block)
    for seed in range(seeds):
        assert check(seed, tmp_path, most) >= 10


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
def test_a_thousand_lists_of_up_to_10_mb(tmp_path: Path, part: int) -> None:
    for seed in range(1000 + 100 * part, 1100 + 100 * part):
        assert check(seed, tmp_path, 100_000 if seed % 20 == 0 else 3000) >= 10
