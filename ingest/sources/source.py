"""All of an input: which files, which columns, and the rows as they go into the plan.

paths → files, each with its reader → blocks of the columns needed → url, caption, filtered_by, digest, kept columns
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from ingest.formats import KINDS, LAYOUTS, Layout
from ingest.ledger import HASHES, RESERVED
from ingest.settings import SourceSettings
from ingest.sources.captions import is_list_of_text, several
from ingest.sources.columns import Chosen, Wanted, choose_columns
from ingest.sources.delimited import TsvReader
from ingest.sources.files import explained, find_inputs, head_of, kind_of, look_at_input, read_so_far
from ingest.sources.mistaken import refuse_content, refuse_file, refuse_ledger
from ingest.sources.parquet import ParquetReader
from ingest.sources.quoted import QuotedReader
from ingest.sources.reader import Block, Reader
from ingest.sources.text import codec_of
from ingest.sources.yfcc import YfccReader
from shards import UserError
from shards.conditions import Condition
from shards.lazy import resolve

_OWN = {
    "url": pa.string(),
    "caption": pa.string(),
    "captions": pa.list_(pa.string()),
    "filtered_by": pa.string(),
    "digest": pa.string(),
    "fault": pa.string(),
}
_LOOKED_AT_ONCE = 16
"""Files whose columns are looked up at a time: on an object store each takes some round trips."""


class Source:
    """An input that can be read, once. Finds the files and looks at the columns of each before any row is read.

    Attributes:
        paths: the files that hold rows, in order.
        files: whether the rows name files, or places in files, instead of URLs.
        inputs: every file that decides the rows: `paths`, and the list of a subset.
        looks: what `look_at_input` says of each of `inputs`.
        schema: of the tables. `url` and `caption` are text, null if the row has none, the URL without white space
            around it; `captions` the further ones of a row that has several, or null. `filtered_by` is the text of the
            first condition that the row does not meet, or null; `digest` the hash that the original must have, in
            lower case, or null. `fault` is null, or why the row is none and where it stands: then `caption` is its text
            and everything else null. After them come the kept columns, with types that hold the values of all files.

    Raises `UserError` for settings or files that cannot be used, and for columns that are not there.
    """

    def __init__(self, settings: SourceSettings) -> None:
        _check(settings)
        self.files = settings.files
        self._layout = LAYOUTS[settings.format]
        conditions = [Condition.parse(text) for text in settings.where]
        subset = find_inputs([settings.subset], lambda _: False) if settings.subset else []
        found = find_inputs(settings.paths, self._belongs, packing=settings.files)
        self.paths = [path for path in found if path not in subset]
        self.inputs = [*self.paths, *subset]
        self._kind = self._only_kind()
        with _explained(", ".join(subset), "tsv"):
            self._reader = _make_reader(self._kind, self._layout, settings, subset)
        with ThreadPoolExecutor(_LOOKED_AT_ONCE) as pool:
            schemas = dict(zip(self.paths, pool.map(self._schema_of, self.paths), strict=True))
            self.looks = list(pool.map(look_at_input, self.inputs))
        self._chosen = {
            path: choose_columns(path, schema, settings, self._layout, conditions) for path, schema in schemas.items()
        }
        for path, schema in schemas.items():
            refuse_ledger(path, schema.names, settings)
            _check_types(path, schema, self._chosen[path])
            for condition, name in self._chosen[path].conditions:
                # Whether the two can be compared at all shows before hours of reading.
                condition.met_by(pa.chunked_array([], schema.field(name).type))
        self._names = _output_names(self._chosen.values())
        self._roots = {path: settings.root or _folder_of(path) for path in self.paths} if settings.files else {}
        self._captions = settings.captions and self._kind != "txt"
        self.schema = pa.schema([*_OWN.items(), *self._kept_fields(schemas)])
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
        return self._captions

    def tables(self, skip: int = 0) -> Iterator[pa.Table]:
        """Every row from row `skip` on, in order, some MB at a time; tables may be empty, where rows are skipped.

        Raises `UserError` for a file that turns out to be unreadable.
        """
        for number, path in enumerate(self.paths):
            chosen = self._chosen[path]
            with _explained(path, self._kind):
                blocks, rows = self._reader.blocks(path, chosen), None
                if isinstance(self._reader, ParquetReader):
                    rows = self._reader.rows(path)
                    blocks = self._reader.blocks(path, chosen, skip) if skip < rows else iter(())
                read = min(skip, rows or 0)
                skip -= read
                for block in blocks:
                    read += block.table.num_rows
                    self._reading = (number, read, rows)
                    over = min(skip, block.table.num_rows)
                    skip -= over
                    # What is skipped is not worth working on.
                    whole = over == block.table.num_rows
                    first = read - block.table.num_rows
                    yield self.schema.empty_table() if whole else self._finish(block, chosen, path, first).slice(over)
                if rows is not None and read < rows:
                    # Columns of different lengths are read as far as the shortest.
                    raise EOFError(f"it has {read} rows instead of {rows}")
        self._reading = (len(self.paths), 0, None)
        for block in self._reader.rest(chosen):
            table = self._finish(block, chosen, "")
            over = min(skip, table.num_rows)
            skip -= over
            yield table.slice(over)

    @property
    def share_read(self) -> float:
        """How much of the files' bytes `tables` has come through, 0 to 1."""
        sizes = [look.bytes or 0 for look in self.looks[: len(self.paths)]]
        number, rows, total = self._reading
        done = float(sum(sizes[:number]))
        if number < len(sizes):
            # A reader that is at an end may have closed its file already.
            done += (
                sizes[number] * rows / total if total else read_so_far(self.paths[number]) or sizes[number] * bool(rows)
            )
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
                refuse_file(path, packing=self.files)
                raise UserError("cannot tell the format from the file's ending", where=path, do="Give --format")
            if kind != kinds[0]:
                raise UserError(
                    f"this file is {kind}, those before it {kinds[0]}", where=path, do="Give --format, or fewer files"
                )
        return str(kinds[0])

    def _schema_of(self, path: str) -> pa.Schema:
        with _explained(path, self._kind):
            if path.startswith("file:"):
                refuse_content(path, head_of(path), self._kind, packing=self.files)
            try:
                return self._reader.schema(path)
            except UserError:
                # Elsewhere looking takes a request, and most files are lists.
                refuse_content(path, head_of(path), self._kind, packing=self.files)
                raise

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

    def _finish(self, block: Block, chosen: Chosen, path: str, first: int = 0) -> pa.Table:
        """The block's rows as they go into the plan; the first of them is row `first` of the file."""
        table, rows = block.table, block.table.num_rows
        nothing = pa.nulls(rows, pa.string())
        if chosen.url is None:
            numbers = pa.array(range(first, first + rows)).cast(pa.string())
            url = pc.binary_join_element_wise(f"{path.removeprefix('file://')}#{chosen.image}/", numbers, "")
        elif self._roots:
            url = located(table[chosen.url].cast(pa.string()), self._roots[path])
        else:
            url = pc.utf8_trim_whitespace(table[chosen.url].cast(pa.string()))
        caption, captions = several(table[chosen.caption]) if chosen.caption else (pa.repeat("", rows), None)
        fault = nothing
        if block.faults:
            texts, whys = block.columns_of_faults()
            caption = pc.coalesce(texts, caption)
            place = "" if len(self.paths) == 1 else f"{path.rsplit('/', 1)[-1]}, "
            fault = pc.binary_join_element_wise(place, whys, "")
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
        own = [url, caption, captions, filtered_by, digest, fault]
        columns = [pa.nulls(rows) if column is None else column for column in own]
        columns += [kept.get(name, pa.nulls(rows)) for name in self._names.values()]
        assert all(len(column) == rows for column in columns)
        finished = pa.table(columns, names=self.schema.names).cast(self.schema)
        finished.validate()
        return finished


def located(paths: pa.ChunkedArray, root: str) -> pa.ChunkedArray:
    """Paths as they can be opened: those that are relative are below `root`."""
    alone = pc.or_(pc.starts_with(paths, "/"), pc.match_substring(paths, "://"))
    found = pc.if_else(alone, paths, pc.binary_join_element_wise(root.rstrip("/"), paths, "/"))
    return pc.if_else(pc.equal(paths, ""), pa.scalar(None, pa.string()), found)


def _folder_of(path: str) -> str:
    path = path.removeprefix("file://")
    return path.rpartition("/")[0] or ("." if not path.startswith("/") else "/")


def _check(settings: SourceSettings) -> None:
    for name in settings.keep:
        if name in RESERVED:
            raise UserError(f"cannot keep a column named {name!r}: the ledger has its own", do="Rename it in the input")
    if len({name.lower() for name in settings.keep}) != len(settings.keep):
        raise UserError(f"a column is kept twice: {', '.join(settings.keep)}", do="Name each column once")
    if len(set(settings.columns)) != len(settings.columns) or "" in settings.columns:
        raise UserError(f"columns {','.join(settings.columns)}", do="Give each column a name of its own")
    if settings.caption_column is not None and not settings.captions:
        raise UserError(f"--caption-column {settings.caption_column} with --no-captions", do="Leave one of them out")
    if (settings.format == "yfcc15m") != (settings.subset is not None):
        raise UserError(
            f"format {settings.format} with subset {settings.subset}",
            do="--format yfcc15m needs OpenAI's list of photos as --subset, and no other format has one",
        )


def _check_types(path: str, schema: pa.Schema, chosen: Chosen) -> None:
    for name in chosen.texts:
        kind = schema.field(name).type
        none = pa.types.is_nested(kind) or (name == chosen.caption and pa.types.is_boolean(kind))
        if none and not (name == chosen.caption and is_list_of_text(kind)):
            raise UserError(f"column {name!r} is no text but {kind}", where=path, do="Name another column")


def _make_reader(kind: str, layout: Layout, settings: SourceSettings, subset: Sequence[str]) -> Reader:
    encoding = codec_of(settings.encoding)
    headers = (settings.columns,) if settings.columns else layout.headers
    if settings.quoted and (kind != "tsv" or (layout.headers and not settings.columns)):
        raise UserError(f"--quoted with {kind} of format {settings.format}", do="It is for TSV: CSV always is")
    if settings.columns and kind not in {"csv", "tsv"}:
        raise UserError(f"--columns with {kind}", do="It is for CSV and TSV; other files name their columns themselves")
    if kind == "yfcc":
        return YfccReader(subset[0], encoding)
    if kind == "csv" or settings.quoted:
        return QuotedReader("," if kind == "csv" else "\t", headers[0] if headers else None, encoding)
    if kind == "tsv":
        return TsvReader(headers, encoding)
    reader: Reader = resolve(KINDS[kind].reader)(encoding)
    return reader


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
    with explained(path):
        try:
            yield
        except (pa.ArrowException, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot be read as {kind} ({reason})", where=path, do="Check the file and --format"
            ) from None
