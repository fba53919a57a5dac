"""The ingest shard task: one planned shard in, one tar with its ledger, statistics and record out.

plan rows → what need not be fetched is settled → engine → a spool on disk, in order of completion
          → tar, index, ledger, statistics, record, in the plan's order
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest import plan
from ingest.engines.engine import Engine
from ingest.faces import Boxes, read_boxes
from ingest.fetched import Fetched, Request
from ingest.ledger import MEASURED, PLAN_COLUMNS, result_fields
from ingest.outage import OutageDetector
from ingest.settings import IngestSettings
from shards import Folder, ShardRecord, Spec
from shards.dataset import DatasetPlan, Stage
from shards.publication import Publication

_MOST_OPEN, _LEAST_OPEN, _ROWS_OPEN = 8, 2, 8000
"""Shards open at once, and how many rows they should have. A row that hangs for 30 seconds then costs a worker nothing
below 270 rows a second, one of 10 seconds below 800."""
_IN_MEMORY = 1_000_000
_NOT_IN_JSON = frozenset(
    {"duplicate_of", "filtered_by", "digest", "fault", "error_class", "error_message", "host", "bytes", *MEASURED}
)


@dataclass
class IngestTask:
    """Fetches the shards of a stage, or all that a `planning` comes to.

    The planning stays where the task was made: workers find the rows of a shard in the folder.
    """

    settings: IngestSettings
    stage: Stage
    name: str = "ingest"
    planning: plan.Planning | None = None
    overlap: int = field(init=False)

    def __post_init__(self) -> None:
        # While the last rows of one shard wait, those of the next ones are fetched. img2dataset's engine cannot.
        most = _MOST_OPEN if self.settings.engine == "clipstill" else 1
        self.overlap = min(most, max(_LEAST_OPEN, _ROWS_OPEN // self.settings.shard_size))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "planning": None}

    @property
    def rows(self) -> int:
        """The rows that are planned by now."""
        return self.stage.rows if self.planning is None else self.planning.rows

    def outlook(self) -> tuple[int, str]:
        """How many shards are planned by now, and how far planning has got."""
        return (self.stage.shards, "") if self.planning is None else self.planning.outlook()

    def specs(self) -> Iterator[Spec | None]:
        if self.planning is not None:
            yield from self.planning.specs()
            return
        out = Folder(self.settings.out)
        for shard in self.stage.numbers:
            yield Spec(shard, out, self.stage.fingerprint)

    def open(self) -> _IngestWorker:
        return _IngestWorker(self.settings, self.stage, _open_engine(self.settings))


def _open_engine(settings: IngestSettings) -> Engine:
    # Only workers need any of them, and they are slow to import.
    if settings.engine == "files":
        from ingest.engines.files_engine import FilesEngine  # noqa: PLC0415

        return FilesEngine(settings)
    if settings.engine == "img2dataset":
        from ingest.engines.img2dataset_engine import Img2datasetEngine  # noqa: PLC0415

        return Img2datasetEngine(settings)
    from ingest.engines.clipstill_engine import ClipstillEngine  # noqa: PLC0415

    return ClipstillEngine(settings)


class _IngestWorker:
    """Fetches shards, several at once."""

    def __init__(self, settings: IngestSettings, stage: Stage, engine: Engine) -> None:
        self._stage, self._engine = stage, engine
        self._hash = settings.image.hash
        self._faces = settings.image.blur_faces
        self._fields = result_fields(self._hash)
        self._retries: list[Stage] | None = None
        watched = settings.stop_on_collapse and settings.engine != "files"
        self._watch = OutageDetector(stage.witnesses) if watched else None

    def run(self, spec: Spec) -> ShardRecord:
        rows = plan.read_rows(spec.folder, self._stage, spec.shard)
        with _Spool() as spool:
            results = self._fetch(rows, self._in_later_rounds(spec, rows), spool, careful=spec.careful)
            publication = Publication(spec)
            kinds = {
                field.name: field.type for field in [*rows.schema, *self._fields] if field.name not in _NOT_IN_JSON
            }
            with publication.samples() as tar:
                for place, row in enumerate(_each(rows)):
                    fetched = results[place]
                    if fetched.error_class is None:
                        caption = row["caption"] or ""
                        meta = self._meta(row, fetched, kinds)
                        tar.add(row["key"], spool.read(place), fetched.extension, caption, meta)
                kept = len(tar)
        statuses = Counter(fetched.status for fetched in results)
        causes = Counter(fetched.error_class for fetched in results if fetched.error_class)
        with publication.file("_stats.json") as path:
            path.write_text(json.dumps(_img2dataset_stats(rows.num_rows, statuses, causes), indent=1))
        with publication.beside(".parquet") as path:
            pq.write_table(self._ledger(rows, results), path, compression="zstd", write_page_checksum=True)
        stats = {"rows": rows.num_rows, **{f"failed.{cause}": count for cause, count in sorted(causes.items())}}
        return publication.finish(kept, stats)

    def close(self) -> None:
        self._engine.close()

    def _in_later_rounds(self, spec: Spec, rows: pa.Table) -> set[str]:
        """Keys that stand in a retry after this shard: it is made again, and the retry has what became of them."""
        if self._retries is None:
            # No retry begins while shards are made.
            self._retries = DatasetPlan.read(spec.folder, unfinished=True).retries
        found: set[str] = set()
        wanted = rows["key"].combine_chunks()
        for part in [part for retry in self._retries if retry.first > spec.shard for part in retry.parts]:
            for batch in plan.read_part(spec.folder, part, ["key"]):
                found.update(batch.filter(pc.is_in(batch["key"], wanted))["key"].to_pylist())
        return found

    def _fetch(self, rows: pa.Table, later: set[str], spool: _Spool, *, careful: bool) -> list[Fetched]:
        """What came of each row, its image left in the spool; rows that need no fetch never reach the network."""
        more = [self._faces] if self._faces is not None else []
        planned = list(_each(rows.select([*PLAN_COLUMNS, *more])))
        faces = [_boxes(row[self._faces]) if self._faces is not None else () for row in planned]
        boxes = [found if isinstance(found, tuple) else () for found in faces]
        with self._watch.shard() if self._watch is not None else nullcontext() as watch:
            while True:
                results = [_known_before(row, self._stage.captioned, later) for row in planned]
                for place, found in enumerate(faces):
                    if isinstance(found, Fetched) and results[place] is None:
                        results[place] = found
                wanted = [place for place, settled in enumerate(results) if settled is None]
                requests = [Request(planned[place]["url"], planned[place]["digest"], boxes[place]) for place in wanted]
                collapsed = False
                with closing(self._engine.fetch(requests, careful=careful)) as answers:
                    for number, fetched in answers:
                        place = wanted[number]
                        if fetched.image is not None:
                            spool.add(place, fetched.image)
                        results[place] = replace(fetched, image=None)
                        if watch is not None and (collapsed := watch.see(requests[number], fetched)):
                            break
                if watch is not None and (collapsed or watch.finish()):
                    watch.confirm(self._engine)
                if not collapsed:
                    complete = [result for result in results if result is not None]
                    assert len(complete) == len(planned), "the engine gave no answer for a row"
                    return complete
                if watch is not None:
                    watch.restart()

    def _ledger(self, rows: pa.Table, results: list[Fetched]) -> pa.Table:
        columns = [fetched.result(self._hash) for fetched in results]
        for column in self._fields:
            values = [fetched[column.name] for fetched in columns]
            rows = rows.append_column(column, pa.array(values, column.type))
        return rows

    def _meta(self, row: dict[str, Any], fetched: Fetched, kinds: dict[str, pa.DataType]) -> dict[str, Any]:
        """The sample's JSON: img2dataset's, and the captions of the URL's other rows.

        Every sample has the same fields, and a field the same type or null: readers infer both from a few samples.
        """
        values = {**row, "captions": row["captions"] or [], **fetched.result(self._hash)}
        return {name: _plain(values[name], kind) for name, kind in kinds.items()}


class _Spool:
    """Encoded images in order of completion; on disk beyond `_IN_MEMORY`, for several shards are open at once."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="clipstill-")  # noqa: SIM115 - closed on exit
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, place: int, image: bytes) -> None:
        self._file.write(image)
        self._places[place] = (self._end, len(image))
        self._end += len(image)

    def read(self, place: int) -> bytes:
        start, size = self._places[place]
        self._file.seek(start)
        return self._file.read(size)


def _known_before(row: dict[str, Any], captioned: bool, later: set[str]) -> Fetched | None:
    """What is known of a row before any fetch, None if it must be fetched."""
    if row["key"] in later:
        return Fetched(error_class="other", error_message="fetched again in a later round")
    if row["filtered_by"] is not None:
        return Fetched(error_class="filtered_where", error_message=f"not {row['filtered_by']}")
    if not row["url"]:
        cause = "bad_url" if row["fault"] is None else "bad_row"
        return Fetched(error_class=cause, error_message=row["fault"] or "the row has no URL")
    if row["duplicate_of"] is not None:
        return Fetched(error_class="duplicate", error_message=f"the same URL as {row['duplicate_of']}")
    if captioned and not (row["caption"] or "").strip():
        return Fetched(error_class="no_caption", error_message="the caption is empty")
    return None


def _boxes(value: Any) -> Boxes | Fetched:
    """The faces to blur, or the cause why the row cannot be fetched."""
    try:
        return read_boxes(value)
    except (ValueError, RecursionError) as error:
        return Fetched(error_class="bad_boxes", error_message=f"the boxes of faces cannot be read: {error}")


def _each(rows: pa.Table) -> Iterator[dict[str, Any]]:
    names = rows.column_names
    for start in range(0, rows.num_rows, 1000):
        part = rows.slice(start, 1000)
        for values in zip(*map(_values, part.columns), strict=True):
            yield dict(zip(names, values, strict=True))


def _values(column: pa.ChunkedArray) -> list[Any]:
    # Tables know times that Python does not.
    values: list[Any] = (column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist()
    return values


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A column's value in JSON: a number, a truth value or a text, as the column's type says, or null."""
    if value is None:
        return None
    if pa.types.is_nested(kind):
        return json.dumps(_finite(value), default=str, ensure_ascii=False)
    if pa.types.is_floating(kind):
        return _finite(value)
    return value if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else str(value)


def _finite(value: Any) -> Any:
    """JSON knows no NaN; a table's missing number may be one."""
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _img2dataset_stats(rows: int, statuses: Counter[str], causes: Counter[str]) -> dict[str, Any]:
    """img2dataset's per-shard file, without its clock times: equal shards give equal bytes."""
    return {
        "count": rows,
        "successes": statuses["success"],
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": statuses["failed_to_resize"],
        "status_dict": {"success": statuses["success"], **causes},
    }
