"""Plan the list in a folder, each shard taken for made: `python -m benchmarks.plan.run LIST OUT`.

Says `{"first": seconds}` when the first shard could be fetched, `{"rows": so far}` now and then, and in the end all.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from ingest import IngestSettings, SourceSettings
from ingest.plan import Planning
from shards.record import RECORDS, ShardRecord

WHERE = ("similarity >= 0.3", "NSFW == UNLIKELY")


def main(listing: str, out: str) -> None:
    began = time.monotonic()
    source = SourceSettings(paths=(listing,), format="laion", where=WHERE)
    records = Path(out, RECORDS)
    records.mkdir(parents=True, exist_ok=True)
    known, shards = 0, 0
    with Planning(IngestSettings(source=source, out=out, name="laion")) as planning:
        for spec in planning.specs():
            if spec is None:
                continue
            if not shards:
                _say(first=time.monotonic() - began)
            record = ShardRecord(spec.shard, spec.fingerprint, "", 0, ())
            # Whole or not there, whenever this is killed; and not synced to disk, which would be most of the time.
            beside = records / ".record.tmp"
            beside.write_text(record.to_json())
            beside.rename(records / str(record.name))
            shards += 1
            if planning.rows != known:
                known = planning.rows
                _say(rows=known)
        planning.tidy()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _say(
        rows=known,
        shards=shards,
        seconds=time.monotonic() - began,
        cpu=usage.ru_utime + usage.ru_stime,
        memory=_peak(),
    )


def _peak() -> int:
    """The most bytes of memory that this program had at once. `ru_maxrss` would begin with that of its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _say(**values: float) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
