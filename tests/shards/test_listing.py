"""Listings of an S3 server, in as many answers as it takes, against the names that were put there."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import s3fs
from moto.s3 import responses

from shards import Folder
from shards.listing import _take_out, entries

ODD = ("37", "370.tar", "3:", "9z", "99", "99\U0001f600", "a&b <c>.tar", "é ü+%41", "~", "-", "0", "0000", ":", "zz")


@pytest.fixture(params=[2, 7])
def short_answers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer holds so few names."""
    monkeypatch.setattr(responses.settings, "get_s3_default_max_keys", lambda: request.param)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    handle = responses.S3Response.list_objects_v2

    def counted(self: responses.S3Response) -> object:
        asked.append(self.bucket_name)
        return handle(self)

    monkeypatch.setattr(responses.S3Response, "list_objects_v2", counted)
    return asked


@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize(("base", "seed"), [("", 0), ("/a folder/é", 1)])
def test_every_name_is_told_once_with_its_size(bucket: str, base: str, seed: int) -> None:
    draw = random.Random(seed)
    names = {
        f"{draw.randrange(10 ** draw.choice([2, 3, 5, 6])):05d}{draw.choice(['.tar', '.parquet', ''])}"
        for _ in range(30)
    }
    names |= {*draw.sample(ODD, 9), "37-", "37!", "37!!"} - {"37"}
    put = {name: draw.randrange(50) for name in names}
    folders = {"_records", "37", "37.d", "0", "zz"} - names
    fs, folder = s3fs.S3FileSystem(), Folder(bucket + base)
    before = time.time()
    for name, size in put.items():
        fs.pipe_file(f"{bucket}{base}/{name}", bytes(size))
    for name in folders:
        for number in range(3):
            fs.pipe_file(f"{bucket}{base}/{name}/{number}", b"deep")
    fs.pipe_file(f"{bucket}/a folde", b"beside")
    beside = set() if base else {"a folde"}
    found = sorted(folder.names())
    assert found == sorted(names | folders | beside)
    sizes = folder.sizes()
    assert {name: sizes[name] for name in put} == put
    assert set(sizes) == names | beside
    assert all(before - 2 <= when <= time.time() + 2 for when in folder.times().values())
    assert set(folder.times()) == names | beside
    for prefix in ("3", "37", "0", "a&", "\U0001f600"):
        assert folder.names(prefix) == [name for name in found if name.startswith(prefix)]


@pytest.mark.usefixtures("short_answers")
def test_what_is_listed_is_what_the_library_lists(bucket: str) -> None:
    fs, folder = s3fs.S3FileSystem(), Folder(f"{bucket}/here")
    for number in range(30):
        fs.pipe_file(f"{bucket}/here/{number:05d}.tar", bytes(number))
    # Of its own, before anything is registered.
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    told = {
        entry["name"].rsplit("/")[-1]: (entry["size"], entry["LastModified"], entry["ETag"])
        for entry in fs.ls(f"{bucket}/here", detail=True)
    }
    ours = {entry.name: (entry.size, entry.times[0]) for entry in entries(fs, f"{bucket[5:]}/here", folder.url)}
    assert ours == {name: (size, when) for name, (size, when, _) in told.items()}
    # And the library's own listings stay as they were.
    again = fs.ls(f"{bucket}/here", detail=True, refresh=True)
    assert {
        entry["name"].rsplit("/")[-1]: (entry["size"], entry["LastModified"], entry["ETag"]) for entry in again
    } == told


def test_a_short_folder_is_one_request(bucket: str, requests: list[str]) -> None:
    folder = Folder(f"{bucket}/here")
    for number in range(20):
        folder.publish(f"{number:05d}.tar", b"x")
    requests.clear()
    assert len(folder.sizes()) == 20
    assert len(requests) == 1
    assert len(folder.names("00001.")) == 1
    assert len(requests) == 2


HEAD = '<?xml version="1.0"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
FILE = (
    "<Contents>\n<Key>a&amp;&lt;b.tar</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
    "<ETag>&quot;70ee&quot;</ETag><Size>{size}</Size><Owner><ID>x</ID></Owner><StorageClass>STANDARD</StorageClass></Contents>"
)
TAIL = "<IsTruncated>false</IsTruncated></ListBucketResult>"


def test_an_answer_of_s3_is_read_as_it_is_written() -> None:
    answer, taken = {"status_code": 200, "body": (HEAD + FILE.format(size=7) + TAIL).encode()}, dict[str, Any]()
    _take_out(answer, taken)
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert taken["Contents"] == [
        {"Key": "a&<b.tar", "LastModified": when, "ETag": '"70ee"', "Size": 7, "StorageClass": "STANDARD"}
    ]
    assert answer["body"] == (HEAD + TAIL).encode()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, HEAD + FILE.format(size=7) + TAIL),
        (200, "<Error><Code>InternalError</Code></Error>"),
        (200, HEAD + FILE.format(size=7)),
        (200, HEAD + FILE.format(size=7)[:60]),
        (200, HEAD + FILE.format(size="many") + TAIL),
        (200, HEAD + "<Contents><Key>x</Key></Contents>" + TAIL),
        (200, HEAD + FILE.format(size=7).replace("<Contents>", '<Contents xmlns="">') + TAIL),
        (200, HEAD + TAIL),
        (200, ""),
    ],
)
def test_what_is_no_answer_is_left_to_the_library(status: int, body: str) -> None:
    answer, taken = {"status_code": status, "body": body.encode()}, dict[str, Any]()
    _take_out(answer, taken)
    assert (answer["body"], taken) == (body.encode(), {})


def test_what_was_taken_out_is_not_taken_for_nothing() -> None:
    answer, taken = {"status_code": 200, "body": (HEAD + FILE.format(size=7) + TAIL).encode()}, dict[str, Any]()
    _take_out(answer, taken)
    _take_out(answer, taken)
    assert len(taken["Contents"]) == 1


class DirectoryBucket:
    """What S3's directory buckets answer, which no server here does: in no order, and from no name on."""

    protocol, version_aware, req_kw = ("s3", "s3a"), False, dict[str, str]()
    s3 = SimpleNamespace(meta=SimpleNamespace(events=SimpleNamespace(register=lambda *_, **__: None)))

    def __init__(self, names: list[str]) -> None:
        self._pages = [names[first : first + 10] for first in range(0, len(names), 10)]

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, **asked: Any) -> dict[str, Any]:
        assert (method, asked.get("StartAfter")) == ("list_objects_v2", None)
        page = int(asked.get("ContinuationToken", 0))
        answer = {"Contents": [{"Key": f"d/{name}", "Size": 1} for name in self._pages[page]]}
        more = page + 1 < len(self._pages)
        return {**answer, "IsTruncated": more, **({"NextContinuationToken": str(page + 1)} if more else {})}


def test_a_bucket_that_sorts_nothing_is_listed_whole() -> None:
    names = [f"{number:05d}.tar" for number in range(300)]
    random.Random(0).shuffle(names)
    found = entries(DirectoryBucket(names), "b--x-s3/d", "s3://b--x-s3/d")
    assert [entry.name for entry in found] == names
