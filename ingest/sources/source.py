"""All of an input: which files, which columns, and the rows as they go into the plan.

paths → files, each with its reader → blocks of the columns needed → url, caption, filtered_by, digest, kept columns
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from ingest.ledger import HASHES, RESERVED
from ingest.settings import SourceSettings
from ingest.sources.columns import Chosen, Wanted, choose_columns
from ingest.sources.conditions import Condition
from ingest.sources.delimited import TsvReader, TxtReader
from ingest.sources.files import find_inputs, kind_of, look_at_input, read_so_far
from ingest.sources.parquet import ParquetReader
from ingest.sources.published import LAYOUTS, Layout
from ingest.sources.reader import Block, Reader
from ingest.sources.records import CsvReader, JsonlReader
from ingest.sources.yfcc import YfccReader
from shards import UserError

_OWN = ("url", "caption", "filtered_by", "digest")
_LOOKED_AT_ONCE = 16
"""Files whose columns are looked up at a time: on an object store each takes some round trips."""


class Source:
    """An input that can be read, once. Finds the files and looks at the columns of each before any row is read.

    Attributes:
        paths: the files that hold rows, in order.
        inputs: every file that decides the rows: `paths`, and the list of a subset.
        looks: what `look_at_input` says of each of `inputs`.
        schema: of the tables. `url` and `caption` are text, null if the row has none, the URL without white space
            around it. `filtered_by` is the text of the first condition that the row does not meet, or null; `digest`
            the hash that the original must have, in lower case, or null. After them come the kept columns, with types
            that hold the values of all files.

    Raises `UserError` for settings or files that cannot be used, and for columns that are not there.
    """

    def __init__(self, settings: SourceSettings) -> None:
        _check(settings)
        self._layout = LAYOUTS[settings.format]
        conditions = [Condition.parse(text) for text in settings.where]
        subset = find_inputs([settings.subset], lambda _: False) if settings.subset else []
        found = find_inputs(settings.paths, self._belongs)
        self.paths = [path for path in found if path not in subset]
        self.inputs = [*self.paths, *subset]
        self._kind = self._only_kind()
        with _explained(", ".join(subset), "tsv"):
            self._reader = _make_reader(self._kind, self._layout, subset)
        with ThreadPoolExecutor(_LOOKED_AT_ONCE) as pool:
            schemas = dict(zip(self.paths, pool.map(self._schema_of, self.paths), strict=True))
            self.looks = list(pool.map(look_at_input, self.inputs))
        self._chosen = {
            path: choose_columns(path, schema.names, settings, self._layout, conditions)
            for path, schema in schemas.items()
        }
        for path, schema in schemas.items():
            for condition, name in self._chosen[path].conditions:
                # Whether the two can be compared at all shows before hours of reading.
                condition.met_by(pa.chunked_array([], schema.field(name).type))
        self._names = _output_names(self._chosen.values())
        own = [pa.field(name, pa.string()) for name in _OWN]
        self.schema = pa.schema([*own, *self._kept_fields(schemas)])
        self._reading: tuple[int, int, int | None] = (0, 0, None)

    @property
    def digest_hash(self) -> str | None:
        """The hash after which the column of digests is named (`sha256`), if it is."""
        named = {(chosen.digest or "").lower() for chosen in self._chosen.values()}
        return next((name for name in HASHES if name in named), None)

    @property
    def grows(self) -> bool:
        """Whether rows may be added at the input's end: not where some rows come last because no file has them."""
        return self._kind != "yfcc"

    @property
    def kind(self) -> str:
        """The kind of all files."""
        return self._kind

    @property
    def captioned(self) -> bool:
        """Whether the rows are to have captions: a list of bare URLs has none."""
        return self._kind != "txt"

    def tables(self, skip: int = 0) -> Iterator[pa.Table]:
        """Every row from row `skip` on, in order, some MB at a time; tables may be empty, where rows are skipped.

        Raises `UserError` for a file that turns out to be unreadable.
        """
        for number, path in enumerate(self.paths):
            chosen = self._chosen[path]
            with _explained(path, self._kind):
                blocks, rows = self._reader.blocks(path, chosen.all), None
                if isinstance(self._reader, ParquetReader):
                    rows = self._reader.rows(path)
                    blocks = self._reader.blocks(path, chosen.all, skip) if skip < rows else iter(())
                read = min(skip, rows or 0)
                skip -= read
                for block in blocks:
                    read += block.table.num_rows
                    self._reading = (number, read, rows)
                    over = min(skip, block.table.num_rows)
                    skip -= over
                    # What is skipped is not worth working on.
                    whole = over == block.table.num_rows
                    yield self.schema.empty_table() if whole else self._finish(block, chosen).slice(over)
        self._reading = (len(self.paths), 0, None)
        for block in self._reader.rest(chosen.all):
            table = self._finish(block, chosen)
            over = min(skip, table.num_rows)
            skip -= over
            yield table.slice(over)

    @property
    def share_read(self) -> float:
        """How much of the files' bytes `tables` has come through, 0 to 1."""
        sizes = [look["bytes"] or 0 for look in self.looks[: len(self.paths)]]
        number, rows, total = self._reading
        done = float(sum(sizes[:number]))
        if number < len(sizes):
            done += sizes[number] * rows / total if total else read_so_far(self.paths[number])
        return min(1.0, done / max(1, sum(sizes)))

    def _belongs(self, file: str) -> bool:
        """Whether a file found in a folder is one of the input's."""
        kind = kind_of(file)
        if self._layout.kind == "yfcc":
            return kind == "tsv" or file.rsplit("/", 1)[-1].startswith("yfcc100m_dataset")
        return kind is not None and self._layout.kind in {None, kind}

    def _only_kind(self) -> str:
        kinds = [self._layout.kind or kind_of(path) for path in self.paths]
        for path, kind in zip(self.paths, kinds, strict=True):
            if kind is None:
                raise UserError("cannot tell the format from the file's ending", where=path, do="Give --format")
            if kind != kinds[0]:
                raise UserError(
                    f"this file is {kind}, those before it {kinds[0]}", where=path, do="Give --format, or fewer files"
                )
        return str(kinds[0])

    def _schema_of(self, path: str) -> pa.Schema:
        with _explained(path, self._kind):
            return self._reader.schema(path)

    def _kept_fields(self, schemas: dict[str, pa.Schema]) -> list[pa.Field]:
        merged = pa.schema([])
        for path, schema in schemas.items():
            kept = self._chosen[path].kept.items()
            here = pa.schema([pa.field(self._names[wanted], schema.field(name).type) for wanted, name in kept])
            try:
                merged = pa.unify_schemas([merged, here], promote_options="permissive")
            except pa.ArrowException as error:
                raise UserError(f"its columns do not fit the files before it ({error})", where=path) from None
        return [merged.field(name) for name in self._names.values()]

    def _finish(self, block: Block, chosen: Chosen) -> pa.Table:
        table = block.table
        url = pc.utf8_trim_whitespace(table[chosen.url].cast(pa.string()))
        caption = table[chosen.caption].cast(pa.string())
        if block.malformed is not None:
            caption = pc.coalesce(pa.chunked_array([block.malformed]), caption)
        nothing = pa.nulls(table.num_rows, pa.string())
        filtered_by = nothing
        for condition, name in reversed(chosen.conditions):
            filtered_by = pc.if_else(condition.met_by(table[name]), filtered_by, condition.text)
        if chosen.conditions:
            # A row without a URL fails for want of one, whatever its other columns are.
            filtered_by = pc.if_else(pc.is_valid(url), filtered_by, pa.scalar(None, pa.string()))
        digest = nothing
        if chosen.digest is not None:
            digest = pc.utf8_lower(pc.utf8_trim_whitespace(table[chosen.digest].cast(pa.string())))
            digest = pc.if_else(pc.equal(digest, ""), pa.scalar(None, pa.string()), digest)
        kept = {self._names[wanted]: table[name] for wanted, name in chosen.kept.items()}
        columns = [url, caption, filtered_by, digest, *(kept.get(name, nothing) for name in self._names.values())]
        finished = pa.table(columns, names=self.schema.names).cast(self.schema)
        finished.validate(full=True)
        return finished


def _check(settings: SourceSettings) -> None:
    for name in settings.keep:
        if name in RESERVED:
            raise UserError(f"cannot keep a column named {name!r}: the ledger has its own", do="Rename it in the input")
    if len({name.lower() for name in settings.keep}) != len(settings.keep):
        raise UserError(f"a column is kept twice: {', '.join(settings.keep)}", do="Name each column once")
    if (settings.format == "yfcc15m") != (settings.subset is not None):
        raise UserError(
            f"format {settings.format} with subset {settings.subset}",
            do="--format yfcc15m needs OpenAI's list of photos as --subset, and no other format has one",
        )


def _make_reader(kind: str, layout: Layout, subset: Sequence[str]) -> Reader:
    if kind == "yfcc":
        return YfccReader(subset[0])
    if kind == "tsv":
        return TsvReader(layout.header)
    readers: dict[str, type[TxtReader | CsvReader | JsonlReader | ParquetReader]] = {
        "txt": TxtReader,
        "csv": CsvReader,
        "jsonl": JsonlReader,
        "parquet": ParquetReader,
    }
    return readers[kind]()


def _output_names(chosen: Iterable[Chosen]) -> dict[Wanted, str]:
    """What each kept column is called in the plan: as the layout says, or as the first file that has it spells it."""
    names: dict[Wanted, str] = {}
    for one in chosen:
        for wanted, name in one.kept.items():
            names.setdefault(wanted, wanted.output or name)
    return names


@contextmanager
def _explained(path: str, kind: str) -> Iterator[None]:
    """Turn what readers raise about a file into a `UserError` that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error.reason})", where=path) from None
    except (pa.ArrowException, csv.Error, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        if "Invalid UTF8" in reason:
            raise UserError(f"not UTF-8 text ({reason})", where=path) from None
        raise UserError(f"cannot be read as {kind} ({reason})", where=path, do="Check the file and --format") from None
