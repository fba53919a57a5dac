"""The ingest shard task: one planned shard in, one tar with its ledger, statistics and record out."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.img2dataset_engine import Img2datasetEngine
from ingest.ledger import RESULT_FIELDS, Fetched
from ingest.plan import PLAN
from ingest.settings import IngestSettings
from shards import Folder, ShardRecord, ShardWriter, Spec
from shards.publication import Publication

_OUTAGE = 50
"""From this many rows on, a shard of which no host could be reached is taken for an outage."""


class IngestTask:
    """`facts` is the dataset's plan, as `make_plan` returns it."""

    name = "ingest"

    def __init__(self, settings: IngestSettings, facts: dict[str, Any]) -> None:
        self._settings, self._shards, self._fingerprint = settings, facts["shards"], facts["fingerprint"]

    def specs(self) -> Iterator[Spec]:
        out = Folder(self._settings.out)
        for shard in range(self._shards):
            yield Spec(shard, out, self._fingerprint)

    def open(self) -> _IngestWorker:
        return _IngestWorker(Img2datasetEngine(self._settings))


class _IngestWorker:
    def __init__(self, engine: Img2datasetEngine) -> None:
        self._engine = engine

    def run(self, spec: Spec) -> ShardRecord:
        rows = pq.read_table(io.BytesIO(spec.folder.child(PLAN).read(f"{spec.shard:05d}.parquet")))
        results = self._fetch(rows)
        _refuse_outage(results)
        publication = Publication(spec)
        kept = 0
        with publication.file(".tar") as path, ShardWriter(path) as tar:
            for row, fetched in zip(_each(rows), results, strict=True):
                if fetched.image is not None:
                    tar.add(row["key"], fetched.image, "jpg", row["caption"], _meta(row, fetched))
            kept = len(tar)
        with publication.file(".index.arrow") as path:
            tar.write_index(path)
        with publication.file(".parquet") as path:
            pq.write_table(_ledger(rows, results), path, compression="zstd")
        causes = Counter(fetched.error_class for fetched in results if fetched.error_class)
        statuses = Counter(fetched.status for fetched in results)
        with publication.file("_stats.json") as path:
            path.write_text(json.dumps(_img2dataset_stats(rows.num_rows, statuses, causes), indent=1))
        stats = {"rows": rows.num_rows, **{f"failed.{cause}": count for cause, count in sorted(causes.items())}}
        return publication.finish(kept, stats)

    def _fetch(self, rows: pa.Table) -> list[Fetched]:
        """What came of each row; rows that cannot be fetched or used never reach the network."""
        results: dict[int, Fetched] = {}
        urls = rows["url"].to_pylist()
        for row, (url, caption) in enumerate(zip(urls, rows["caption"].to_pylist(), strict=True)):
            if not url or not url.lower().startswith(("http://", "https://")):
                results[row] = Fetched(error_class="bad_url", error_message=f"not an http(s) URL: {url!r}")
            elif not caption or not caption.strip():
                results[row] = Fetched(error_class="no_caption", error_message="the caption is empty")
        wanted = [row for row in range(len(urls)) if row not in results]
        results.update(zip(wanted, self._engine.fetch([urls[row] for row in wanted]), strict=True))
        return [results[row] for row in range(len(urls))]


def _refuse_outage(results: list[Fetched]) -> None:
    """Raise `OSError` if not one of many hosts could be reached: that says nothing of the rows, so try them again."""
    tried = [fetched for fetched in results if fetched.error_class not in {"bad_url", "no_caption"}]
    if len(tried) >= _OUTAGE and all(fetched.error_class in {"dns", "connect", "timeout"} for fetched in tried):
        raise OSError(f"none of {len(tried)} URLs could be reached; is the network down?")


def _each(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in rows.to_batches():
        yield from batch.to_pylist()


def _meta(row: dict[str, Any], fetched: Fetched) -> dict[str, Any]:
    kept = {name: value for name, value in fetched.result().items() if not name.startswith("error_")}
    plain = {name: value if _is_json(value) else str(value) for name, value in row.items()}
    return {**plain, **kept}


def _is_json(value: Any) -> bool:
    # JSON knows no NaN; a table's missing number may be one.
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _ledger(rows: pa.Table, results: list[Fetched]) -> pa.Table:
    columns = [fetched.result() for fetched in results]
    for field in RESULT_FIELDS:
        values = pa.array([values[field.name] for values in columns], field.type)
        rows = rows.append_column(field, values)
    return rows


def _img2dataset_stats(rows: int, statuses: Counter[str], causes: Counter[str]) -> dict[str, Any]:
    """img2dataset's per-shard file, without its clock times: equal shards give equal bytes."""
    return {
        "count": rows,
        "successes": statuses["success"],
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": statuses["failed_to_resize"],
        "status_dict": {"success": statuses["success"], **causes},
    }
