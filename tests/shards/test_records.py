"""Records: what is done is told by names alone, and the manifest is never more than a shortcut."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from shards import FileEntry, Folder, ShardRecord, Spec, UserError, fingerprint, published_records, read_records
from shards.publication import Publication, SupersededError
from shards.record import RecordName, compact

WANTED = "0123456789abcdef"


def publish(folder: Folder, shard: int, payload: bytes = b"payload", fingerprint: str = WANTED) -> ShardRecord:
    publication = Publication(Spec(shard, folder, fingerprint), parent="p")
    with publication.file(".bin") as path:
        path.write_bytes(payload)
    return publication.finish(len(payload), {"bytes": len(payload), "rate": 0.25})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("shard", [0, 42, 99_999, 1_234_567])
def test_a_record_survives_its_text_and_its_name(shard: int) -> None:
    record = ShardRecord(shard, WANTED, "parent", 3, (FileEntry("a.tar", 5, "0" * 64),), {"rows": 4, "share": 0.1})
    assert ShardRecord.from_json(record.to_json()) == record
    assert RecordName.parse(str(record.name)) == record.name == (shard, WANTED, record.content)


@pytest.mark.parametrize(
    "name", ["manifest.jsonl", "00001.json", "x.a.b.json", "00001.a.b.json.tmp", "1.a.b.c.json", ""]
)
def test_other_names_are_not_records(name: str) -> None:
    assert RecordName.parse(name) is None


def test_content_depends_on_the_payload_alone() -> None:
    files = (FileEntry("a.tar", 5, "0" * 64), FileEntry("a.bin", 6, "1" * 64))
    one = ShardRecord(1, "f", "p", 1, files, {"rows": 1})
    odd = (FileEntry('a "é\n.tar', 5, "0" * 64), *files)
    assert ShardRecord(1, "f", "p", 1, odd).content == fingerprint(
        [[file.name, file.bytes, file.sha256] for file in odd]
    )
    assert ShardRecord(2, "g", "q", 9, files, {}).content == one.content
    changed = [
        (FileEntry("b.tar", 5, "0" * 64), files[1]),
        (FileEntry("a.tar", 6, "0" * 64), files[1]),
        (FileEntry("a.tar", 5, "2" * 64), files[1]),
        files[::-1],
        files[:1],
    ]
    contents = {ShardRecord(1, "f", "p", 1, entries, {}).content for entries in changed}
    assert len(contents) == len(changed)
    assert one.content not in contents


def test_one_listing_tells_what_is_done(folder: Folder) -> None:
    assert published_records(folder) == {}
    records = {shard: publish(folder, shard, b"x" * shard) for shard in (7, 0, 3)}
    folder.child("_records").publish("notes.txt", b"")
    # The names decide: what is inside is not looked at.
    for path in folder.child("_records").path.glob("*.json"):
        path.write_text("unreadable")
    assert published_records(folder) == {shard: record.name for shard, record in records.items()}


def test_records_come_back_in_order_with_and_without_the_manifest(folder: Folder) -> None:
    records = {shard: publish(folder, shard) for shard in (2, 0, 1)}
    assert list(read_records(folder).items()) == [(shard, records[shard]) for shard in (0, 1, 2)]
    assert compact(folder) == records
    for path in folder.child("_records").path.glob("*.json"):
        path.write_text("the manifest is enough")
    assert read_records(folder) == records


def test_a_stale_manifest_is_not_believed(folder: Folder) -> None:
    old = [publish(folder, shard) for shard in range(3)]
    compact(folder)
    new = publish(folder, 1, b"other payload", fingerprint="f" * 16)
    folder.child("_records").delete(str(old[2].name))
    added = publish(folder, 3)
    assert read_records(folder) == {0: old[0], 1: new, 3: added}


def test_the_manifest_can_be_rebuilt(folder: Folder) -> None:
    for shard in range(3):
        publish(folder, shard)
    compact(folder)
    whole = folder.child("_records").read("manifest.jsonl")
    assert [json.loads(line)["shard"] for line in whole.splitlines()] == [0, 1, 2]
    folder.child("_records").delete("manifest.jsonl")
    compact(folder)
    assert folder.child("_records").read("manifest.jsonl") == whole


def test_two_records_for_one_shard_are_refused_with_both_names(folder: Folder) -> None:
    record = publish(folder, 5)
    other = RecordName(5, "f" * 16, record.content)
    folder.child("_records").publish(str(other), record.to_json().encode())
    with pytest.raises(UserError) as raised:
        published_records(folder)
    assert "shard 00005 has two records" in str(raised.value)
    assert str(record.name) in str(raised.value)
    assert str(other) in str(raised.value)


def test_a_record_under_another_records_name_is_refused(folder: Folder) -> None:
    record = publish(folder, 5)
    folder.child("_records").delete(str(record.name))
    folder.child("_records").publish(str(record.name), publish(folder, 6).to_json().encode())
    with pytest.raises(UserError, match=str(record.name)):
        read_records(folder)


def test_payload_comes_first_and_the_record_last(folder: Folder) -> None:
    publication = Publication(Spec(0, folder, WANTED))
    with publication.file(".a") as path:
        path.write_bytes(b"a")
    with publication.file(".b") as path:
        path.write_bytes(b"b")
        assert folder.names() == ["00000.a"]
    assert published_records(folder) == {}
    publication.finish(1, {})
    assert folder.names() == ["00000.a", "00000.b", "_records"]


def test_the_old_record_is_withdrawn_before_its_payload_is_replaced(folder: Folder) -> None:
    old = publish(folder, 0, b"old")
    neighbour = publish(folder, 1, b"kept")
    publication = Publication(Spec(0, folder, "f" * 16))
    with publication.file(".bin") as path:
        path.write_bytes(b"new")
        assert published_records(folder)[0] == old.name
        assert folder.read("00000.bin") == b"old"
    # Between payload and record the shard counts as not done.
    assert folder.read("00000.bin") == b"new"
    assert published_records(folder) == {1: neighbour.name}
    new = publication.finish(3, {})
    assert published_records(folder) == {0: new.name, 1: neighbour.name}


def test_work_that_fails_leaves_the_old_record_standing(folder: Folder) -> None:
    old = publish(folder, 0, b"old")

    def fail() -> None:
        with Publication(Spec(0, folder, "f" * 16)).file(".bin") as path:
            path.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert published_records(folder) == {0: old.name}
    assert folder.read("00000.bin") == b"old"


def test_what_another_worker_published_meanwhile_is_found(folder: Folder) -> None:
    spec = Spec(0, folder, WANTED)
    assert Publication(spec).standing() is None
    record = publish(folder, 0)
    assert Publication(spec).standing() == record
    assert Publication(Spec(0, folder, "f" * 16)).standing() is None
    assert Publication(Spec(1, folder, WANTED)).standing() is None


def test_a_record_of_the_very_same_work_is_never_withdrawn(folder: Folder) -> None:
    late = Publication(Spec(0, folder, WANTED))
    record = publish(folder, 0, b"first")

    def write() -> None:
        with late.file(".bin") as path:
            path.write_bytes(b"second")

    with pytest.raises(SupersededError) as raised:
        write()
    assert raised.value.record == record
    assert published_records(folder) == {0: record.name}
    assert folder.names() == ["00000.bin", "_records"]
    assert folder.read("00000.bin") == b"first"


def test_workers_that_race_for_a_shard_leave_one_record_that_fits_the_payload(folder: Folder) -> None:
    """Every worker publishes all of the same shards at once, as after a driver that was taken for dead."""
    begin = threading.Barrier(4)
    records: list[list[ShardRecord]] = [[] for _ in range(4)]

    def work(place: int) -> None:
        begin.wait()
        for shard in range(15):
            try:
                record = publish(Folder(folder.url), shard, b"same" * shard)
            except SupersededError as error:
                record = error.record
            records[place].append(record)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records == [records[0]] * 4
    assert list(read_records(folder).values()) == records[0]
    assert all(folder.read(f"{shard:05d}.bin") == b"same" * shard for shard in range(15))


def forged(path: Path, **facts: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.mark.parametrize(
    "facts",
    [
        {"count": "3"},
        {"count": -1},
        {"count": 10**30},
        {"count": True},
        {"stats": {"rows": float("inf")}},
        {"files": [{"name": "x.tar", "bytes": 1, "sha256": "../../etc/passwd"}]},
        {"beside": "name"},
        {"more": 1},
    ],
)
def test_a_record_with_a_value_of_another_kind_is_refused_by_its_name(folder: Folder, facts: dict[str, object]) -> None:
    record = publish(folder, 4)
    path = folder.path / "_records" / str(record.name)
    forged(path, **facts)
    with pytest.raises(UserError, match=rf"record {record.name} is damaged \(.*{next(iter(facts))}.*Delete it"):
        read_records(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"null", b"\xff"])
def test_a_record_that_is_no_json_is_refused_by_its_name(folder: Folder, text: bytes) -> None:
    record = publish(folder, 4)
    (folder.path / "_records" / str(record.name)).write_bytes(text)
    with pytest.raises(UserError, match=rf"record {record.name} is damaged"):
        read_records(folder)


def test_of_a_damaged_line_of_the_manifest_the_record_itself_is_read(folder: Folder) -> None:
    records = {shard: publish(folder, shard) for shard in range(3)}
    compact(folder)
    path = folder.path / "_records" / "manifest.jsonl"
    first, second, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, second[:30], third.replace(b'"count": 7', b'"count": []'), b"null"]))
    assert read_records(folder) == records


def test_a_path_that_is_no_utf8_survives_its_text() -> None:
    entry = FileEntry("a.tar", 5, "0" * 64, "/data/caf\udce9/a.tar", 3)
    record = ShardRecord(1, WANTED, "", 3, (entry,), {"rows": 4})
    assert ShardRecord.from_json(record.to_json()) == record


def test_a_record_on_a_store_may_be_long_and_an_empty_one_is_damaged(bucket: str) -> None:
    folder = Folder(f"{bucket}/set")
    files = tuple(FileEntry(f"{number:0200d}", 1, "0" * 64) for number in range(6000))
    long = ShardRecord(0, WANTED, "", 3, files, {"rows": 4})
    assert len(long.to_json()) > 1 << 20
    short = ShardRecord(1, WANTED, "", 3, files[:1], {"rows": 4})
    for record in (long, short):
        folder.child("_records").publish(str(record.name), record.to_json().encode())
    assert read_records(folder) == {0: long, 1: short}
    folder.child("_records").publish(str(short.name), b"")
    with pytest.raises(UserError, match=rf"record {short.name} is damaged"):
        read_records(folder)
