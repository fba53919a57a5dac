"""Two runs at the same shards of an output on S3, one of which was taken for dead: one record, the other's bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import Folder, InProcess, Spec, UserError, lease, published_records, read_records
from shards.publication import Publication, SupersededError

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
