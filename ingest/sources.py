"""Read metadata files as a stream of Arrow tables with the columns `url`, `caption` and those to keep.

TSV has no quoting (CC3M captions begin with quotes, and a quote-aware reader swallows the rows that follow); CSV is
quoted as in RFC 4180. Memory does not grow with the number of rows. A text row with the wrong number of fields comes
out with a null URL, so that it is counted, not lost.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.settings import SourceSettings
from shards import UserError

_BATCH = 10_000


def find_inputs(paths: Sequence[str]) -> list[str]:
    """The input files that `paths` name, globs expanded and sorted; raises `UserError` for one that is not there."""
    found: list[str] = []
    for path in paths:
        try:
            fs, plain = fsspec.core.url_to_fs(path)
            literal = fs.isfile(plain) or not any(sign in plain for sign in "*?[")
            matches = [plain] if literal else sorted(fs.glob(plain))
            missing = not matches or not all(fs.isfile(match) for match in matches)
        except (ValueError, ImportError, OSError) as error:
            raise UserError(f"cannot be opened ({error})", where=path) from None
        if missing:
            raise UserError("no such input file", where=path, do="Check the path")
        found += [fs.unstrip_protocol(match) for match in matches]
    return found


def describe_input(path: str) -> dict[str, Any]:
    """Name, size in bytes and SHA-256 of an input file. Raises `UserError` if it cannot be read."""
    digest = hashlib.sha256()
    size = 0
    try:
        with fsspec.open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(f"cannot be read ({error})", where=path) from None
    return {"name": path.rsplit("/", 1)[-1], "bytes": size, "sha256": digest.hexdigest()}


def read_input(path: str, source: SourceSettings) -> Iterator[pa.Table]:
    """The rows of one file, in order. Raises `UserError` for an unreadable file or a missing column."""
    kind = _kind(path) if source.format == "auto" else source.format
    try:
        if kind == "parquet":
            yield from _parquet(path, source)
        else:
            yield from _text(path, source, kind)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error.reason})", where=path) from None
    except (pa.ArrowException, csv.Error, zlib.error, EOFError, OSError) as error:
        raise UserError(f"cannot be read as {kind} ({error})", where=path, do="Check the file and --format") from None


def _kind(path: str) -> str:
    ending = path.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if ending not in {"csv", "tsv", "parquet"}:
        raise UserError(f"cannot tell the format from the ending {ending!r}", where=path, do="Give --format")
    return ending


def _need(path: str, have: list[str], source: SourceSettings) -> list[str]:
    if not have:
        raise UserError("the file is empty", where=path)
    wanted = [source.url_column, source.caption_column, *source.keep]
    for name in wanted:
        if name not in have:
            raise UserError(
                f"no column {name!r}; the columns are {', '.join(map(repr, have))}",
                where=path,
                do="Name the right ones with --url-column, --caption-column and --keep",
            )
        if have.count(name) > 1:
            raise UserError(f"has {have.count(name)} columns {name!r}", where=path, do="Rename one of them")
    return wanted


def _parquet(path: str, source: SourceSettings) -> Iterator[pa.Table]:
    with fsspec.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        wanted = _need(path, parquet.schema_arrow.names, source)
        for batch in parquet.iter_batches(_BATCH, columns=wanted):
            table = pa.Table.from_batches([batch]).select(wanted)
            for place in (0, 1):
                table = table.set_column(place, wanted[place], table[place].cast(pa.string()))
            yield _named(table, source)


def _text(path: str, source: SourceSettings, kind: str) -> Iterator[pa.Table]:
    # newline="" leaves line ends inside quoted fields alone; only "\n" ends a TSV row.
    newline = "" if kind == "csv" else "\n"
    with (
        fsspec.open(path, "rb", compression="infer") as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline) as lines,
    ):
        # Strict, because a quote that never closes would swallow the rows after it.
        rows = csv.reader(lines, strict=True) if kind == "csv" else (line.rstrip("\r\n").split("\t") for line in lines)
        header = [source.caption_column, source.url_column] if kind == "cc3m" else next(rows, [])
        wanted = _need(path, header, source)
        places = [header.index(name) for name in wanted]
        while block := list(islice(rows, _BATCH)):
            columns: list[list[str | None]] = [[] for _ in wanted]
            for fields in block:
                whole = len(fields) == len(header)
                for column, place in zip(columns, places, strict=True):
                    column.append(fields[place] if whole else None)
                if not whole:
                    columns[1][-1] = "\t".join(fields)
            yield _named(pa.table([pa.array(column, pa.string()) for column in columns], names=wanted), source)


def _named(table: pa.Table, source: SourceSettings) -> pa.Table:
    return table.rename_columns(["url", "caption", *source.keep])
