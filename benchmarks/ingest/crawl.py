"""What a published crawl found: how its URLs ended, how large its pictures were, and in which formats the web has them.

- How URLs end: one shard of LAION-400M, 10,000 rows, downloaded by img2dataset in February 2023
  (github.com/rom1504/img2dataset/issues/277). 9,706 of its rows are listed there by cause as far as we could read it;
  the shares are of these.
- Sizes: LAION-400M's own counts of the longer side (laion.ai/blog/laion-400-open-dataset, 2021).
- Formats: all images that the HTTP Archive's crawl saw (Web Almanac 2022, chapter Media), vector images left out; and
  that 7 % of JPEGs are progressive (7 million JPEGs of the HTTP Archive, blog.patrickmeenan.com, June 2013).

No share of redirects was found: that a tenth of what answers is reached by one is our assumption.
"""

from __future__ import annotations

import random

from benchmarks.ingest.images import KINDS, SIDES

_PICTURE = "picture"
ENDS = {
    _PICTURE: 8542,
    "http://{host}/status/404": 594 + 14,
    "http://{host}/status/403": 141,
    "http://gone{number}.example/photo/{number}": 139,  # Name or service not known
    "http://{host}/html/{number}": 83,  # Image decoding error
    "https://{host}/photo/{number}": 31 + 18 + 1 + 5,  # certificates that expired or are another host's
    "http://{host}/status/400": 31,
    "http://{host}/noai/{number}": 30,
    "http://{host}/status/503": 11 + 17 + 4 + 1,
    "http://{host}/status/500": 12,
    "http://93.184.0.1:81/photo/{number}": 10,  # Connection refused
    "http://{host}/status/401": 9,
    "http://5.6.{a}.{b}/photo/{number}": 8,  # No route to host
    "http://{host}/silent/{number}": 5,  # Remote end closed connection without response
}
_MOVED = 0.1
# Millions of pictures: of 413 all in all, 268, 112 and 26 have a longer side of 256, 512 and 1024 pixels or more.
_SIZES = dict(zip(SIDES, (413 - 268, 268 - 112, 112 - 26, 26), strict=True))
_JPEG, _PROGRESSIVE = 40.3, 0.07
_FORMATS = dict(zip(KINDS, (_JPEG * (1 - _PROGRESSIVE), _JPEG * _PROGRESSIVE, 28.2, 8.9, 15.9), strict=True))


def crawl(count: int, hosts: int) -> tuple[list[str], int]:
    """`count` URLs by these shares, ever the same, over so many hosts; and how many of them are pictures."""
    rng = random.Random("crawl")
    ends = rng.choices([*ENDS], [*ENDS.values()], k=count)
    urls = [_url(end, number, hosts, rng) for number, end in enumerate(ends)]
    return urls, ends.count(_PICTURE)


def _url(end: str, number: int, hosts: int, rng: random.Random) -> str:
    if end == _PICTURE:
        side, kind = (rng.choices([*shares], [*shares.values()])[0] for shares in (_SIZES, _FORMATS))
        moved = "moved/" if rng.random() < _MOVED else ""
        end = f"http://{{host}}/{moved}{side}_{kind}/{{number}}"
    return end.format(host=f"h{number % hosts}.example", number=number, a=number // 250 % 250, b=1 + number % 250)
