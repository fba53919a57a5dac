"""Verification finds every kind of damage, and calls a sound dataset sound."""

from __future__ import annotations

import io
import json
import os
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards import Dataset, Folder, ShardWriter, Spec, UserError, verify_dataset
from shards.keys import sample_key
from shards.publication import Publication

Sample = tuple[str, bytes, str, str, dict[str, Any]]


def jpeg(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 12), (number * 20, 60, 120)).save(sink, "JPEG")
    return sink.getvalue()


def sample(row: int) -> Sample:
    key = f"set-{row:09d}"
    return key, jpeg(row), "jpg", f"caption {row}", {"key": key}


def publish(
    folder: Folder,
    shard: int,
    samples: list[Sample],
    *,
    failed: int = 1,
    kept: list[str] | None = None,
    count: int | None = None,
    rewrite: Callable[[Path], None] | None = None,
    index: list[Sample] | None = None,
) -> None:
    """One shard in place of what was there, with hashes that fit, sound unless told otherwise."""
    for record in folder.child("_records").names(f"{shard:05d}."):
        folder.child("_records").delete(record)
    publication = Publication(Spec(shard, folder, "f" * 16))
    with publication.file(".tar") as path:
        with ShardWriter(path) as writer:
            for entry in samples:
                writer.add(*entry)
        if rewrite is not None:
            rewrite(path)
    with publication.file(".index.arrow") as path:
        if index is not None:
            with ShardWriter(path) as writer:
                for entry in index:
                    writer.add(*entry)
        writer.write_index(path)
    keys = [key for key, *_ in samples] if kept is None else kept
    ledger = {
        "key": [*keys, *(f"failed-{shard}-{number}" for number in range(failed))],
        "status": ["success"] * len(keys) + ["failed_to_download"] * failed,
    }
    with publication.beside(".parquet") as path:
        table = pa.table({name: pa.array(values, pa.string()) for name, values in ledger.items()})
        pq.write_table(table, path, write_page_checksum=True)
    publication.finish(len(samples) if count is None else count, {"rows": len(ledger["key"])})


def publish_rows(folder: Folder, shard: int, rows: list[int], *, stats: bool = True) -> None:
    """A shard as ingest makes it: every second row became a sample, the others failed."""
    publication = Publication(Spec(shard, folder, "f" * 16))
    with publication.file(".tar") as path, ShardWriter(path) as writer:
        for row in rows[::2]:
            writer.add(*sample(row))
    with publication.file(".index.arrow") as path:
        writer.write_index(path)
    status = ["failed_to_download" if place % 2 else "success" for place in range(len(rows))]
    with publication.beside(".parquet") as path:
        pq.write_table(pa.table({"key": [sample_key("set", row) for row in rows], "status": status}), path)
    publication.finish(len(rows[::2]), {"rows": len(rows)} if stats else {})


PLANNED = [[0, 1, 2, 3], [4], [5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]
"""Shards hold as many rows as they need to have enough to fetch."""


INGEST = ["clipstill", "ingest", "/it's/l.csv", "--name", "set", "--shard-size", "3"]


@pytest.fixture
def ingested(tmp_path: Path) -> Folder:
    """A sound dataset of a list: fifteen rows in five shards of different lengths."""
    folder = Folder(tmp_path / "list")
    for shard, rows in enumerate(PLANNED):
        publish_rows(folder, shard, rows)
    facts = {"schema": 1, "name": "set", "shards": 5, "rows": 15, "fingerprint": "f" * 16, "settings": {}}
    facts["command"] = INGEST
    folder.publish("dataset.json", json.dumps({**facts, "inputs": [{"name": "l.csv"}]}).encode())
    assert problems(folder) == []
    return folder


SHARDS = [[sample(0), sample(1), sample(2)], [], [sample(3), sample(4)]]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A sound dataset: five samples and three failed rows in three shards, one of them without a sample."""
    folder = Folder(tmp_path / "set")
    for shard, samples in enumerate(SHARDS):
        publish(folder, shard, samples)
    facts = {"schema": 1, "name": "set", "shards": 3, "rows": 8, "fingerprint": "f" * 16}
    folder.publish("dataset.json", json.dumps(facts).encode())
    return folder


def problems(folder: Folder) -> list[str]:
    return list(verify_dataset(folder.url).problems)


def test_a_sound_dataset_has_no_problems_and_is_counted(folder: Folder) -> None:
    report = verify_dataset(folder.url)
    assert report.problems == ()
    size = sum(path.stat().st_size for path in folder.path.glob("0*") if path.suffix != ".parquet")
    assert (report.shards, report.rows, report.samples, report.bytes) == (3, 8, 5, size)


@pytest.mark.parametrize("ending", [".tar", ".index.arrow"])
@pytest.mark.parametrize("place", [0.0, 0.37, 0.62, 1.0])
def test_one_flipped_bit_is_found(folder: Folder, ending: str, place: float) -> None:
    path = folder.path / f"00002{ending}"
    data = bytearray(path.read_bytes())
    data[round(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
    (problem,) = problems(folder)
    assert problem.startswith(f"shard 00002: 00002{ending} hashes to")


def test_one_flipped_bit_in_any_page_of_the_ledger_is_found(folder: Folder) -> None:
    path = folder.path / "00002.parquet"
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column
    for pages in (column(0), column(1)):
        end = (
            pages.data_page_offset
            + pages.total_compressed_size
            - (pages.data_page_offset - pages.dictionary_page_offset)
        )
        for place in (end - 1, end - 5):
            data = bytearray(whole)
            data[place] ^= 0x10
            path.write_bytes(data)
            (problem,) = problems(folder)
            assert problem.startswith("shard 00002: 00002.parquet cannot be read")


def test_a_missing_or_cut_ledger_is_found(folder: Folder) -> None:
    path = folder.path / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems(folder)
    assert problem.startswith("shard 00000: 00000.parquet cannot be read")
    path.unlink()
    assert problems(folder) == ["shard 00000: 00000.parquet is missing"]


@pytest.mark.parametrize("ending", [".tar", ".index.arrow"])
def test_a_missing_longer_or_shorter_file_is_found(folder: Folder, ending: str) -> None:
    path = folder.path / f"00000{ending}"
    data = path.read_bytes()
    for change in (data[:-1], data + b"\0", b""):
        path.write_bytes(change)
        (problem,) = problems(folder)
        assert problem == (f"shard 00000: 00000{ending} has {len(change)} bytes, the record says {len(data)}")
    path.unlink()
    (problem,) = problems(folder)
    assert problem == f"shard 00000: 00000{ending} is missing, the record says {len(data)}"


def test_every_problem_of_every_shard_is_told(folder: Folder) -> None:
    (folder.path / "00000.tar").unlink()
    (folder.path / "00000.parquet").unlink()
    (folder.path / "00002.tar").unlink()
    assert [problem[:22] for problem in problems(folder)] == [
        "shard 00000: 00000.tar",
        "shard 00000: 00000.par",
        "shard 00002: 00002.tar",
    ]


def test_a_shard_that_is_not_published_or_not_planned_is_found(folder: Folder) -> None:
    (record,) = folder.child("_records").path.glob("00001.*")
    record.unlink()
    publish(folder, 3, [sample(9)])
    assert problems(folder) == ["shard 00001: not published", "shard 00003: published, but not in the plan"]


def test_a_shard_of_an_earlier_plan_is_found(folder: Folder) -> None:
    (record,) = folder.child("_records").path.glob("00001.*")
    text = record.read_text().replace("f" * 16, "e" * 16)
    record.unlink()
    (record.parent / record.name.replace("f" * 16, "e" * 16)).write_text(text)
    assert problems(folder) == ["shard 00001: published, but not in the plan"]


def test_rows_that_are_not_accounted_for_are_found(folder: Folder) -> None:
    publish(folder, 1, [], failed=0)
    assert problems(folder) == ["the ledgers hold 7 rows, the plan 8"]


def swap_contents(path: Path) -> None:
    """Exchange the captions' members of the first two samples, names and places kept."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        one, two = (tar.getmember(f"set-{row:09d}.txt") for row in range(2))
    assert one.size == two.size
    block = slice(one.offset_data, one.offset_data + 512), slice(two.offset_data, two.offset_data + 512)
    data[block[0]], data[block[1]] = data[block[1]], data[block[0]]
    path.write_bytes(data)


def swap_samples(path: Path) -> None:
    """Write the first two samples in the other order."""
    with ShardWriter(path) as writer:
        for row in (1, 0, 2):
            writer.add(*sample(row))


def swap_members(path: Path) -> None:
    """Write the caption before the image."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    members[0], members[1] = members[1], members[0]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))


def add_member(path: Path) -> None:
    with tarfile.open(path, "a", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("set-000000002.more"))


def break_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0:512] = b"\xff" * 512
    path.write_bytes(data)


def test_swapping_contents_changes_the_tar_and_is_found_by_its_hash(folder: Folder) -> None:
    swap_contents(folder.path / "00000.tar")
    (problem,) = problems(folder)
    assert "00000.tar hashes to" in problem


@pytest.mark.parametrize(
    ("rewrite", "found"),
    [
        (swap_samples, "row 0 of the tar holds ['set-000000001'], the index says set-000000000"),
        (swap_members, "the index gives other places for set-000000000 than the tar"),
        (add_member, "the tar has 10 members, the index says 9"),
        (break_header, "the tar cannot be read"),
    ],
)
def test_a_tar_that_does_not_fit_its_index_is_found_though_hashes_fit(
    folder: Folder, rewrite: Callable[[Path], None], found: str
) -> None:
    publish(folder, 0, SHARDS[0], rewrite=rewrite)
    assert any(problem.startswith(f"shard 00000: {found}") for problem in problems(folder))


def test_an_index_of_another_tar_is_found_though_hashes_fit(folder: Folder) -> None:
    longer = [(*SHARDS[0][0][:3], "c" * 600, SHARDS[0][0][4]), *SHARDS[0][1:]]
    publish(folder, 0, SHARDS[0], index=longer)
    assert problems(folder) == ["shard 00000: the index gives other places for set-000000000 than the tar"]
    publish(folder, 0, SHARDS[0], index=SHARDS[0][:2])
    assert problems(folder) == ["shard 00000: 00000.index.arrow has 2 rows, its record says 3"]


# The last one opens, and lacks its end.
@pytest.mark.parametrize("image", [b"", b"GIF89a", b"<html></html>", jpeg(1)[:-8]])
def test_an_image_that_does_not_decode_is_found(folder: Folder, image: bytes) -> None:
    key, _, extension, caption, meta = sample(3)
    publish(folder, 2, [(key, image, extension, caption, meta), sample(4)])
    (problem,) = problems(folder)
    assert problem.startswith("shard 00002: the image of set-000000003 does not decode")


def test_metadata_of_another_sample_is_found(folder: Folder) -> None:
    publish(folder, 2, [(*sample(3)[:4], {"key": "set-000000004"}), sample(4)])
    assert problems(folder) == ["shard 00002: the JSON of set-000000003 names another key: 'set-000000004'"]


def test_a_ledger_that_does_not_fit_the_tar_is_found(folder: Folder) -> None:
    publish(folder, 2, SHARDS[2], kept=["set-000000003"], failed=2)
    assert problems(folder) == ["shard 00002: the ledger counts 1 successes, the tar holds 2 samples"]
    publish(folder, 2, SHARDS[2], kept=["set-000000004", "set-000000003"])
    assert problems(folder) == ["shard 00002: success 0 of the ledger is set-000000004, of the tar set-000000003"]


def test_a_record_with_another_count_is_found(folder: Folder) -> None:
    publish(folder, 2, SHARDS[2], count=3)
    assert "shard 00002: 00002.index.arrow has 2 rows, its record says 3" in problems(folder)


def test_a_key_in_two_shards_is_found(folder: Folder) -> None:
    publish(folder, 2, [sample(0), sample(4)])
    assert problems(folder) == ["shard 00002: key set-000000000 is in an earlier shard too"]


def test_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset here"):
        verify_dataset(str(tmp_path / "nothing"))


def test_a_store_is_verified_itself_and_not_the_copies_of_it(
    folder: Folder, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    there = Folder(f"{bucket}/set")
    for path in (path for path in folder.path.rglob("*") if path.is_file()):
        there.publish(os.path.relpath(path, folder.path), path.read_bytes())
    assert Dataset.open(there.url).shards[0].image_bytes(0) == jpeg(0)
    assert verify_dataset(there.url) == verify_dataset(folder.url)
    data = bytearray(there.read("00000.tar"))
    data[700] ^= 1
    there.publish("00000.tar", bytes(data))
    (problem,) = problems(there)
    assert "00000.tar: downloaded bytes hash to" in problem


def test_rounds_belong_to_the_plan(folder: Folder) -> None:
    """Shards that were added to fetch again what had failed: a sample and a row that fails once more."""
    publish(folder, 3, [sample(9)])
    assert problems(folder) == ["shard 00003: published, but not in the plan"]
    added = {"first": 3, "shards": 1, "rows": 2, "fingerprint": "f" * 16}
    folder.child("_rounds").publish("001.json", json.dumps(added).encode())
    report = verify_dataset(folder.url)
    assert (report.problems, report.rows, report.samples) == ((), 10, 6)
    folder.child("_rounds").publish("001.json", json.dumps({**added, "shards": 2}).encode())
    assert problems(folder) == ["shard 00004: not published"]
    folder.child("_rounds").publish("001.json", json.dumps({**added, "rows": 3}).encode())
    assert problems(folder) == ["the ledgers hold 10 rows, the plan 11"]


DAMAGE: dict[str, Callable[[Folder, int], None]] = {
    "no tar": lambda folder, shard: (folder.path / f"{shard:05d}.tar").unlink(),
    "a cut tar": lambda folder, shard: os.truncate(folder.path / f"{shard:05d}.tar", 700),
    "no ledger": lambda folder, shard: (folder.path / f"{shard:05d}.parquet").unlink(),
    "a cut ledger": lambda folder, shard: os.truncate(folder.path / f"{shard:05d}.parquet", 100),
    "no record": lambda folder, shard: next(folder.child("_records").path.glob(f"{shard:05d}.*")).unlink(),
    "the ledger of another": lambda folder, shard: folder.publish(
        f"{shard:05d}.parquet", folder.read(f"{(shard + 2) % 5:05d}.parquet")
    ),
}


@pytest.mark.parametrize("shards", [[0], [2], [4], [0, 1], [1, 3]], ids=str)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_shard_casts_no_doubt_on_the_others(ingested: Folder, damage: str, shards: list[int]) -> None:
    for shard in shards:
        DAMAGE[damage](ingested, shard)
    assert {problem[: len("shard 00000")] for problem in problems(ingested)} == {f"shard {s:05d}" for s in shards}


def test_a_bad_shard_whose_record_tells_no_rows_casts_no_doubt_either(ingested: Folder) -> None:
    (next(ingested.child("_records").path.glob("00001.*"))).unlink()
    publish_rows(ingested, 1, PLANNED[1], stats=False)
    (ingested.path / "00001.parquet").unlink()
    assert problems(ingested) == ["shard 00001: 00001.parquet is missing"]


@pytest.mark.parametrize("rows", [[5, 6], [5, 7], [6, 7], [5, 6, 7, 8], [4, 5, 6]], ids=str)
def test_rows_that_are_not_the_plans_are_found_where_it_is(ingested: Folder, rows: list[int]) -> None:
    """Tar, ledger and record agree with each other, the plan had other rows."""
    next(ingested.child("_records").path.glob("00002.*")).unlink()
    publish_rows(ingested, 2, rows)
    found = problems(ingested)
    assert {problem[: len("shard 00000")] for problem in found} <= {"shard 00002", "shard 00003"}
    assert any("ledger row" in problem for problem in found)


def test_what_mends_is_named_and_nothing_where_nothing_is_wrong(ingested: Folder) -> None:
    def mend() -> str:
        return verify_dataset(ingested.url).mend

    again = f"{shlex.join(INGEST)} --out {ingested.url}"
    assert mend() == ""
    (ingested.path / "00003.tar").unlink()
    assert mend() == again
    ingested.publish("00001.tar", bytes(10240))
    assert mend() == f"rm {ingested.url}/_records/00001.* && {again}"
    (ingested.path / "00004.parquet").unlink()
    assert mend() == f"rm {ingested.url}/_records/00001.* {ingested.url}/_records/00004.* && {again}"


def test_a_round_is_mended_by_another_command_than_the_plan(ingested: Folder) -> None:
    command = ["clipstill", "ingest", "retry", "--allow-address", "10.0.0.1"]
    added = {"first": 5, "shards": 2, "rows": 3, "fingerprint": "f" * 16, "command": command}
    ingested.child("_rounds").publish("001.json", json.dumps(added).encode())
    publish_rows(ingested, 5, [1, 9])
    report = verify_dataset(ingested.url)
    assert report.problems == ("shard 00006: not published",)
    assert report.mend == f"clipstill ingest retry {ingested.url} --allow-address 10.0.0.1"
    tar = (ingested.path / "00001.tar").rename(ingested.path / "away")
    both = f"{shlex.join(INGEST)} --out {ingested.url} && {report.mend}"
    assert verify_dataset(ingested.url).mend == both
    tar.rename(ingested.path / "00001.tar")
    publish_rows(ingested, 6, [4])  # which was a sample at once
    assert problems(ingested) == ["shard 00006: key set-000000004 is in an earlier shard too"]


def test_what_a_list_had_grown_by_is_mended_from_the_list_as_it_is_by_now(ingested: Folder) -> None:
    inputs = [{"name": "l.csv"}, {"name": "more.csv"}]
    added = {"first": 5, "shards": 1, "rows": 2, "row": 15, "fingerprint": "f" * 16, "inputs": inputs}
    added["command"] = command = ["clipstill", "ingest", "l.csv", "more.csv", "--name", "set"]
    ingested.child("_rounds").publish("001.json", json.dumps(added).encode())
    again = f"{shlex.join(command)} --out {ingested.url}"
    assert verify_dataset(ingested.url).mend == again
    publish_rows(ingested, 5, [15, 16])
    assert verify_dataset(ingested.url).problems == ()
    (ingested.path / "00003.tar").unlink()
    assert verify_dataset(ingested.url).mend == again


def test_a_round_may_bring_rows_that_follow_on_the_last_and_no_others(ingested: Folder) -> None:
    added = {"first": 5, "shards": 2, "rows": 4, "fingerprint": "f" * 16}
    ingested.child("_rounds").publish("001.json", json.dumps(added).encode())
    publish_rows(ingested, 5, [3, 15])
    publish_rows(ingested, 6, [16, 17])
    assert problems(ingested) == []
    next(ingested.child("_records").path.glob("00006.*")).unlink()
    publish_rows(ingested, 6, [17, 18])
    (problem,) = problems(ingested)
    assert problem == "shard 00006: ledger row 0 is set-000000017, the input has 16 rows"
