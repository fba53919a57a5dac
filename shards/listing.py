"""What lies in a folder of an object store, from one listing; of S3 as fast as it goes.

S3 tells a thousand names at a time, so the half million of 100,000 shards take minutes one answer after the other. But
it begins after any name that it is asked to: what is left after some answers is asked for in ranges, side by side, cut
where the names of shards get another second digit. The ranges leave nothing between them, whatever the names are. Of
an answer botocore makes objects at 85 µs a name, most of it to find out how a time is written; what is registered here,
for an event that it has for such things, takes 3.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from html import unescape
from itertools import count
from typing import Any, NamedTuple

from shards.outages import ride_out

_ALONE = 4
"""So many answers come one after the other: fewer names are not worth some thirty requests."""
_AT_ONCE = 10
"""As many connections as botocore keeps."""
_CUTS = [f"{number:02d}" for number in range(100)]


class Entry(NamedTuple):
    """A file or a folder directly in a folder: its name there, its size in bytes, what the store says of its time."""

    name: str
    is_file: bool
    size: int
    times: tuple[Any, ...] = ()


def entries(fs: Any, path: str, url: str, prefix: str = "") -> list[Entry]:
    """What is directly in the folder at `path` of fsspec's `fs` and begins with `prefix`, in no order.

    With a prefix a store that is not S3's finds files only. Outages are ridden out, answer by answer where there are
    several. Raises `FileNotFoundError` if there is nothing and the store says so.
    """
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "s3" in protocols and not fs.version_aware:
        return list(_Listing(fs, path, url, prefix).entries())

    def listed() -> list[dict[str, Any]]:
        fs.invalidate_cache()
        return list(
            fs.find(path, maxdepth=1, prefix=prefix, detail=True).values() if prefix else fs.ls(path, detail=True)
        )

    marks = ("LastModified", "last_modified", "updated", "mtime")
    return [
        Entry(
            str(entry["name"]).rstrip("/").rsplit("/", 1)[-1],
            entry["type"] == "file",
            int(entry["size"] or 0),
            tuple(entry.get(mark) for mark in marks),
        )
        for entry in ride_out(url, listed)
    ]


class _Listing:
    """One listing of S3's ListObjectsV2. Names are told apart by bytes of UTF-8 there, as `str` compares them too."""

    def __init__(self, fs: Any, path: str, url: str, prefix: str) -> None:
        self._fs, self._url = fs, url
        bucket, key, _ = fs.split_path(path)
        self._folder = f"{key.strip('/')}/" if key.strip("/") else ""
        self._asked = {"Bucket": bucket, "Prefix": f"{self._folder}{prefix}", "Delimiter": "/", **fs.req_kw}

    def entries(self) -> Iterator[Entry]:
        last, token, in_order = "", None, True
        for answer in count(1):
            found, token = self._page({"ContinuationToken": token} if token else {})
            yield from found
            if not token:
                return
            places = list(map(_place, found)) or [last]
            # Directory buckets sort nothing.
            in_order = in_order and last <= min(places)
            last = max(last, *places)
            if in_order and answer >= _ALONE:
                break
        # Ranges up to where names with digits end, and no more of them than keep the connections busy.
        end = bisect_left(_CUTS, True, key=lambda cut: not self._has_number_after(cut))
        cuts = [cut for cut in _CUTS[:end] if cut > last]
        cuts = cuts[:: -(-len(cuts) // (2 * _AT_ONCE)) or 1]
        ranges = zip([last, *cuts], [*cuts, None], strict=True)
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            for part in pool.map(lambda bounds: list(self._range(*bounds)), ranges):
                yield from part
        finally:
            # An interrupt waits for none of them: in an outage that would be minutes.
            pool.shutdown(wait=False, cancel_futures=True)

    def _range(self, low: str, high: str | None) -> Iterator[Entry]:
        """What comes after the name `low`, up to and with `high`."""
        start = {"StartAfter": f"{self._folder}{low}"}
        while True:
            found, token = self._page(start)
            yield from (entry for entry in found if low < _place(entry) and (high is None or _place(entry) <= high))
            if not token or (high is not None and any(_place(entry) > high for entry in found)):
                return
            start = {"ContinuationToken": token}

    def _has_number_after(self, low: str) -> bool:
        found, _ = self._page({"StartAfter": f"{self._folder}{low}", "MaxKeys": 1})
        return any(entry.name[:1].isdigit() for entry in found)

    def _page(self, start: dict[str, Any]) -> tuple[list[Entry], str | None]:
        """An answer, and the token that the next one is asked for by."""

        def ask() -> dict[str, Any]:
            # Each time, as s3fs may have made another client; twice is once. With the star it comes before a handler of
            # botocore's that looks through all of the answer for an error.
            self._fs.s3.meta.events.register("before-parse.*.ListObjectsV2", _take_out, unique_id=__name__)
            answer: dict[str, Any] = self._fs.call_s3("list_objects_v2", **self._asked, **start)
            return answer

        answer = ride_out(self._url, ask)
        skip = len(self._folder)
        found = [
            Entry(file["Key"][skip:], is_file=True, size=int(file["Size"]), times=(file.get("LastModified"),))
            for file in answer.get("Contents", [])
            if len(file["Key"]) > skip
        ]
        found += [Entry(one["Prefix"][skip:-1], is_file=False, size=0) for one in answer.get("CommonPrefixes", [])]
        return found, answer.get("NextContinuationToken") if answer.get("IsTruncated") else None


def _place(entry: Entry) -> str:
    """By what S3 sorts it."""
    return entry.name if entry.is_file else f"{entry.name}/"


def _take_out(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_rest: Any) -> None:
    """Take the files out of an answer to ListObjectsV2, in the form that botocore would give them; leave it the rest.

    A handler of `before-parse`, whose arguments have these names. An answer that broke off, is an error or is written
    otherwise than S3 writes it is left as it is.
    """
    body: bytes = response_dict["body"]
    if response_dict["status_code"] != 200 or not body.rstrip().endswith(b"</ListBucketResult>"):
        return
    files: list[dict[str, Any]] = []
    try:
        start, *parts = body.decode().split("<Contents>")
        others = [start]
        for part in parts:
            told, _, other = part.partition("</Contents>")
            file = dict(_FIELD.findall(told))
            file |= {"Key": unescape(file["Key"]), "ETag": file["ETag"].replace("&quot;", '"').replace("&#34;", '"')}
            file |= {"Size": int(file["Size"]), "LastModified": datetime.fromisoformat(file["LastModified"])}
            files.append(file)
            others.append(other)
    except (KeyError, ValueError):
        return
    if not files:
        # Nor is one whose files are not called so, or were taken out before.
        return
    response_dict["body"] = "".join(others).encode()
    customized_response_dict["Contents"] = files


_FIELD = re.compile("<(Key|LastModified|ETag|Size|StorageClass)>([^<]*)</")
