"""What a command says while it works: lines for people, or with $CLIPSTILL_LOG=json a JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from shards.credentials import without_credentials
from shards.errors import UserError, one_line

_PACKAGES = ("shards", "teacher_cache", "distill")
"""Those that say what takes time before there is progress to show."""


class JsonLines(logging.Formatter):
    """`time`, `level`, `from` and `message`; of a shard that failed also `folder`, `shard`, `key` (or null), `attempt`
    and `cause`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": one_line(record.getMessage()),
            **getattr(record, "facts", {}),
        }
        return without_credentials(json.dumps(line, ensure_ascii=False))


class Lines(logging.Formatter):
    """The message alone."""

    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record))


def start_logging() -> None:
    """Raises `UserError` for a form that there is not."""
    form = os.environ.get("CLIPSTILL_LOG", "text")
    if form not in {"text", "json"}:
        raise UserError(f"there is no log of the form {form!r}", where="$CLIPSTILL_LOG", do="Say text or json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Lines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG if form == "json" else logging.INFO)
