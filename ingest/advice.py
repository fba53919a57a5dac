"""What to do where no row of a list became a sample."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ingest.ledger import read_ledger
from shards import Folder
from shards.dataset import DatasetPlan

LOCAL_PATH = r"(?i)^(file:|/|\./|\.\./|~/|[a-z]:\\|[^:?&\s]*\.(jpe?g|png|webp|gif|bmp|tiff?)$)"
PACK = "`clipstill shards pack` makes shards of files"
_HELP = {
    "filtered_where": "No row meets all conditions: check their spelling",
    "blocked_address": "If the machines are yours, give `--allow-address ADDRESS` to `clipstill ingest retry`",
    "no_file": "Check the paths; relative ones are below --root, or else the list's own folder",
    "bad_row": "Check --format, --columns, --quoted and --encoding",
    "no_caption": "Check --caption-column, or take images alone with --no-captions",
    "dns": "Check the network and its resolver",
    "connect": "Check the network, then `ingest retry OUT`",
    "opt_out": "Their owners forbid it",
    "robots_txt": "Their owners forbid it",
}


def advice_on(out: Folder, cause: str, shard: int) -> str:
    """What to do about the cause of most rows; `shard` is one that has such rows."""
    if cause != "bad_url":
        return _HELP.get(cause, "error_message in the ledgers says more of each")
    packed = bool(DatasetPlan.read(out, unfinished=True).settings["source"].get("files"))
    ledger = read_ledger(out, shard)
    urls = ledger.filter(pc.equal(ledger["error_class"], cause))["url"].cast(pa.string()).to_pylist()
    given = [url for url in urls if url]
    if not given:
        column, what = ("--column", "paths") if packed else ("--url-column", "URLs")
        return f"Nothing stands in the column of {what}: check {column}"
    if packed:
        return f"They are on the web, as {given[0]!r}: `clipstill ingest` fetches them"
    paths = pc.match_substring_regex(pa.array(given), LOCAL_PATH).to_pylist()
    if any(paths):
        return f"They name local files, such as {given[paths.index(True)]!r}: {PACK}"
    return f"Only http and https are fetched, not {given[0]!r}: check --url-column"
