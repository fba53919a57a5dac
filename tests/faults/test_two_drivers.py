"""Two runs at the same shards of an output on S3, one of which was taken for dead: one record, the other's bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import Folder, InProcess, Spec, UserError, lease, published_records, read_records
from shards.publication import Publication, SupersededError
from shards.stores import located
from tests.faults.faulty_store import FaultyStore

ROWS, SHARD = 12, 4


def command(listing: Path, out: str) -> list[str | Path]:
    options = f"--format cc3m --name set --shard-size {SHARD} --image-size 32 --allow-address 127.0.0.1 --in-process"
    return ["ingest", listing, "--out", out, *options.split()]


def test_a_driver_whose_lease_is_lost_leaves_the_shards_to_the_one_that_has_it(
    bucket: str, pictures: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Both have planned the same shards and wait for the same pictures when it is lost."""
    start, wait_until, snapshot = map(request.getfixturevalue, ("start", "wait_until", "snapshot"))
    listing = pictures.write_list(tmp_path / "list.tsv", ROWS)
    source = SourceSettings(paths=(str(listing),), format="cc3m")
    near = IngestSettings(
        source=source,
        out=str(tmp_path / "near"),
        name="set",
        shard_size=SHARD,
        image=ImageSettings(size=32),
        network=NetworkSettings(allow_addresses=("127.0.0.1",)),
    )
    ingest(near, InProcess())
    pictures.held_from = 0
    out = f"{bucket}/set"
    first = start(*command(listing, out))
    wait_until(lambda: pictures.waiting == ROWS)
    # As if it had not been renewed for long.
    s3fs.S3FileSystem().rm_file(f"{out}/{lease.NAME}")
    second = start(*command(listing, out))
    wait_until(lambda: pictures.waiting == 2 * ROWS)
    pictures.release.set()
    (lost, _, why), (status, _, err) = first.finish(), second.finish()
    assert (lost, status) == (2, 0), (why, err)
    assert f"{out}: another run took over here" in why.splitlines()[-1]
    assert len(Folder(out).child("_records").names("0")) == len(published_records(Folder(out))) == ROWS // SHARD
    s3fs.S3FileSystem().get(out, str(tmp_path / "far"), recursive=True)
    found, expected = snapshot(tmp_path / "far"), snapshot(tmp_path / "near")
    assert {name: data for name, data in found.items() if "_seen/" not in name} == {
        name: data for name, data in expected.items() if "_seen/" not in name
    }


Step = Callable[[], object]


def steps(spec: Spec, body: bytes, act_as: Callable[[], None]) -> Iterator[str]:
    """A worker's publication of two files and their record, a step at a time; how each step went."""
    publication = Publication(spec)

    def attempt(step: Step) -> str:
        act_as()
        try:
            step()
        except (SupersededError, UserError) as error:
            return type(error).__name__
        return "done"

    def write(suffix: str) -> None:
        with publication.file(suffix) as path:
            path.write_bytes(body + suffix.encode())

    for step in (lambda: write(".tar"), lambda: write(".parquet"), lambda: publication.finish(1, {})):
        went = attempt(step)
        yield went
        if went != "done":
            return


@pytest.mark.parametrize("order", ["ddllll", "dldldl", "dlldld", "lddldl", "lldddl", "lldldd", "llldd", "dddlll"])
def test_whatever_the_order_of_their_requests_the_record_names_the_bytes_beside_it(
    bucket: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d: the worker of the run that was taken for dead; l: the one of the run that has the lease now.

    Their answers differ, as those of web sites do.
    """
    out = f"{bucket}/set"
    spec = Spec(0, Folder(out), "f" * 8)
    with Folder(out).alone():
        mine = lease.over(out)
        assert mine is not None

        def act_as(run: str) -> None:
            monkeypatch.setitem(lease._held, out, mine._replace(run=run))

        workers = {
            "d": steps(spec, b"dead", lambda: act_as("dead")),
            "l": steps(spec, b"living", lambda: act_as(mine.run)),
        }
        went: dict[str, list[str]] = {"d": [], "l": []}
        for who in order:
            went[who] += [word for word in (next(workers[who], None),) if word]
        act_as(mine.run)
    assert went["l"][-1] == "done"
    assert went["d"] != ["done"] * 3
    assert len(Folder(out).child("_records").names("0")) == 1
    (record,) = read_records(Folder(out)).values()
    bodies = {suffix: Folder(out).read(f"00000{suffix}") for suffix in (".tar", ".parquet")}
    assert bodies == {suffix: b"living" + suffix.encode() for suffix in bodies}
    assert {entry.name: entry.bytes for entry in record.files} == {
        f"00000{suffix}": len(body) for suffix, body in bodies.items()
    }


PART = 5 * 2**20
"""The least that S3 takes as a part; s3fs makes parts of ten times as much, of files from twice that on."""


class UploadsInTurn(FaultyStore):
    """Two uploads in parts end in the order in which they come to their ends, once both have."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self._change = threading.Condition()
        self.came = self.went = 0

    @contextlib.contextmanager
    def turn(self, command: str, path: str) -> Iterator[None]:
        is_end = command == "POST" and "uploadId=" in path
        with self._change:
            self.came += is_end
            place = self.came
            if is_end:
                self._change.notify_all()
                self._change.wait_for(lambda: self.came >= 2 and self.went == place - 1)
        yield
        with self._change:
            self.went += is_end
            self._change.notify_all()

    def wait_for(self, ends: int) -> None:
        """Until so many have come to their ends."""
        with self._change:
            assert self._change.wait_for(lambda: self.came >= ends, timeout=120)


@pytest.fixture
def uploads(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadsInTurn]:
    with UploadsInTurn(s3_endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: PART)
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("order", ["dl", "ld"])
def test_of_two_uploads_in_parts_that_end_at_once_the_holder_s_stays(
    bucket: str, uploads: UploadsInTurn, order: str, tmp_path: Path
) -> None:
    """d: of the run that was taken for dead; l: of the one that has the lease now."""
    fs, path = located(f"{bucket}/set/00000.tar")
    went = {}
    with Folder(f"{bucket}/set").alone():
        mine = lease.over(f"{bucket}/set")
        assert mine is not None

        def put(who: str) -> None:
            file = tmp_path / who
            file.write_bytes(who.encode() * 2 * PART)
            held = mine if who == "l" else mine._replace(run="dead")
            try:
                lease.put(fs, path, held, partial(fs.put_file, str(file), path))
            except UserError as error:
                went[who] = error.problem
            else:
                went[who] = "done"

        threads = [threading.Thread(target=put, args=(who,)) for who in order]
        for number, thread in enumerate(threads):
            thread.start()
            uploads.wait_for(number + 1)
        for thread in threads:
            thread.join()
    assert went["l"] == "done"
    assert went["d"] == "done" if order == "dl" else went["d"].startswith("another run took over here")
    fs.invalidate_cache()
    assert fs.info(path)["ETag"].strip('"').endswith("-2")
    assert fs.cat_file(path) == b"l" * 2 * PART
    # Nothing of the other is left for which somebody would pay.
    assert "Uploads" not in fs.call_s3("list_multipart_uploads", Bucket=bucket.removeprefix("s3://"))


class Forgetful(FaultyStore):
    """The answer to the end of the first upload is lost; asked again, it knows of no such upload."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.forgets = True
        self.posts = 0

    def fate(self, method: str) -> str:
        self.posts += method == "POST"
        return "lost" if method == "POST" and self.posts == 2 else super().fate(method)


@pytest.mark.parametrize("held", [True, False])
def test_an_upload_in_parts_whose_last_answer_is_lost_is_made_again(
    bucket: str, s3_endpoint: str, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(f"{bucket}/set")
    folder.publish("before", b"it answers")
    with Forgetful(s3_endpoint) as store, contextlib.ExitStack() as under:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: PART)
        s3fs.S3FileSystem.clear_instance_cache()
        if held:
            under.enter_context(folder.alone())
        with Folder(folder.url).staged("00000.tar", by_holder=held) as path:
            path.write_bytes(b"01" * PART)
        assert len(store.ended) == 2
        assert Folder(folder.url).read("00000.tar") == b"01" * PART
