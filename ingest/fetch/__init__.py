"""URLs in, bodies out, safely: the one place that talks to strangers.

Read `fetcher.py` first (the order of things), then `names.py` (lookups, ahead of requests), `hosts.py` (who is next),
`transfer.py` (one answer), `addresses.py` (where we may connect) and `opt_out.py` (who does not want us).
"""

from ingest.fetch.answer import Answer
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.limits import make_room

__all__ = ["Answer", "Fetcher", "make_room"]
