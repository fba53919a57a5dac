"""What a writer writes others read, byte for byte the same each time; what is not whole is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from shards import Dataset, Folder, ShardWriter, Spec, UserError
from shards.publication import Publication

CAPTIONS = ["a cat", "", "ünïcode 🐈\nline\ttab", "x" * 100_000, "'quotes\" \\ \0"]


def jpeg(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8 + number, 9), (40 * number, 10, 200)).save(sink, "JPEG")
    return sink.getvalue()


SAMPLES: list[tuple[str, bytes, str, str, dict[str, Any]]] = [
    (f"set-{row:09d}", jpeg(row), "jpg", caption, {"key": f"set-{row:09d}", "score": row / 3, "note": None})
    for row, caption in enumerate(CAPTIONS)
]


def write(path: Path, samples: list[Any] = SAMPLES) -> ShardWriter:
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(*sample)
    writer.write_index(path.with_suffix(".arrow"))
    return writer


def test_tarfile_reads_what_was_added_in_order(tmp_path: Path) -> None:
    writer = write(tmp_path / "0.tar")
    assert len(writer) == len(SAMPLES)
    with tarfile.open(tmp_path / "0.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    expected = []
    for key, image, extension, caption, meta in SAMPLES:
        expected += [(f"{key}.{extension}", image), (f"{key}.txt", caption.encode())]
        expected += [(f"{key}.json", members[len(expected)][1])]
        assert json.loads(expected[-1][1]) == meta
    assert members == expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's own open file
def test_webdataset_reads_what_was_added_in_order(tmp_path: Path) -> None:
    write(tmp_path / "0.tar")
    read = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False).decode("pil")
    for sample, (key, image, extension, caption, meta) in zip(read, SAMPLES, strict=True):
        assert sample["__key__"] == key
        assert sample[extension].tobytes() == Image.open(io.BytesIO(image)).convert("RGB").tobytes()
        assert sample["txt"] == caption
        assert sample["json"] == meta


def test_the_index_gives_each_members_place(tmp_path: Path) -> None:
    write(tmp_path / "0.tar")
    rows = pa.ipc.open_file(str(tmp_path / "0.arrow")).read_all().to_pylist()
    with tarfile.open(tmp_path / "0.tar") as tar:
        members = tar.getmembers()
    assert len(rows) == len(SAMPLES)
    for row, (key, *_), start in zip(rows, SAMPLES, range(0, len(members), 3), strict=True):
        places = [value for member in members[start : start + 3] for value in (member.offset_data, member.size)]
        assert list(row.values()) == [key, *places]


def test_equal_samples_give_equal_bytes_whoever_writes_them_and_when(tmp_path: Path) -> None:
    write(tmp_path / "0.tar")
    turned = [(*sample, dict(reversed(meta.items()))) for *sample, meta in SAMPLES]
    write(tmp_path / "1.tar", turned)
    for ending in (".tar", ".arrow"):
        assert (tmp_path / f"0{ending}").read_bytes() == (tmp_path / f"1{ending}").read_bytes()
    with tarfile.open(tmp_path / "0.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar.getmembers()}
    assert facts == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize("key", ["a.b", "a/b", SAMPLES[0][0]])
def test_a_key_that_would_lose_samples_is_never_written(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path / "0.tar") as writer:
        writer.add(*SAMPLES[0])
        with pytest.raises(AssertionError):
            writer.add(key, *SAMPLES[1][1:])


def publish(folder: Folder, shards: list[list[Any]], **facts: Any) -> None:
    """A dataset by hand: each shard's tar and index, then `dataset.json`."""
    for number, samples in enumerate(shards):
        publication = Publication(Spec(number, folder, "f" * 16))
        with publication.file(".tar") as path, ShardWriter(path) as writer:
            for sample in samples:
                writer.add(*sample)
        with publication.file(".index.arrow") as path:
            writer.write_index(path)
        publication.finish(len(samples), {})
    facts = {"schema": 1, "name": "set", "shards": len(shards), "rows": 0, "fingerprint": "f" * 16, **facts}
    folder.publish("dataset.json", json.dumps(facts).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "set")
    publish(folder, [SAMPLES[:2], [], SAMPLES[2:]])
    return folder


def test_every_sample_comes_back_one_seek_away(folder: Folder) -> None:
    dataset = Dataset.open(folder.url)
    assert (dataset.name, len(dataset)) == ("set", len(SAMPLES))
    assert [shard.count for shard in dataset.shards] == [2, 0, 3]
    assert [shard.keys for shard in dataset.shards][1] == []
    read = [
        (shard.keys[row], shard.image_bytes(row), "jpg", shard.caption(row), shard.meta(row))
        for shard in dataset.shards
        for row in reversed(range(shard.count))
    ]
    assert sorted(read, key=lambda sample: sample[0]) == SAMPLES


def test_a_dataset_on_an_object_store_reads_the_same(
    folder: Folder, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    publish(Folder(f"{bucket}/set"), [SAMPLES[:2], [], SAMPLES[2:]])
    there, here = Dataset.open(f"{bucket}/set"), Dataset.open(folder.url)
    assert there.content == here.content
    assert [shard.keys_digest for shard in there.shards] == [shard.keys_digest for shard in here.shards]
    assert there.shards[2].image_bytes(1) == SAMPLES[3][1]
    tar = there.shards[2].record.file(".tar")
    assert hashlib.sha256((tmp_path / "copies" / tar.sha256).read_bytes()).hexdigest() == tar.sha256


def test_a_shard_crosses_processes_without_its_maps(folder: Folder) -> None:
    shard = Dataset.open(folder.url).shards[0]
    assert shard.caption(0) == CAPTIONS[0]
    copy = pickle.loads(pickle.dumps(shard))
    assert set(vars(copy)) == {"folder", "record"}
    assert copy.caption(1) == CAPTIONS[1]


def read_all(folder: Folder) -> list[bytes]:
    return [shard.image_bytes(row) for shard in Dataset.open(folder.url).shards for row in range(shard.count)]


def refusal(folder: Folder) -> str:
    with pytest.raises(UserError) as raised:
        read_all(folder)
    return str(raised.value)


@pytest.mark.parametrize("ending", [".tar", ".index.arrow"])
def test_a_truncated_or_missing_file_is_refused_by_name(folder: Folder, ending: str) -> None:
    path = folder.path / f"00002{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    text = refusal(folder)
    assert f"00002{ending} has {len(whole) - 1} bytes, its record says {len(whole)}" in text
    assert "Run the command that made it again" in text
    path.unlink()
    assert f"00002{ending} is missing, its record says {len(whole)}" in refusal(folder)


def test_missing_shards_are_named(folder: Folder) -> None:
    for path in folder.child("_records").path.glob("0000[02].*"):
        path.unlink()
    text = refusal(folder)
    assert "2 of 3 shards are missing (00000, 00002)" in text
    assert "ingest" in text


def test_a_shard_that_an_earlier_plan_left_counts_as_missing(folder: Folder) -> None:
    facts = json.loads(folder.read("dataset.json"))
    folder.publish("dataset.json", json.dumps({**facts, "fingerprint": "e" * 16}).encode())
    assert "3 of 3 shards are missing" in refusal(folder)


def test_shards_beyond_the_plan_are_not_read(folder: Folder) -> None:
    facts = json.loads(folder.read("dataset.json"))
    folder.publish("dataset.json", json.dumps({**facts, "shards": 2}).encode())
    assert [shard.id for shard in Dataset.open(folder.url).shards] == [0, 1]


def test_a_dataset_without_a_sample_is_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "none")
    publish(folder, [[], []])
    assert "empty" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (None, "no dataset here"),
        (b'{"schema": 2, "shards": 3}', "has schema 2, this version reads 1"),
        (b'{"images": []}', "damaged or not ours"),
        (b"[1, 2]", "damaged or not ours"),
        (b'{"schema": 1', "damaged or not ours"),
        (b"\xff\xfe\x00", "damaged or not ours"),
    ],
)
def test_what_is_no_dataset_is_refused(folder: Folder, content: bytes | None, saying: str) -> None:
    if content is None:
        folder.delete("dataset.json")
    else:
        folder.publish("dataset.json", content)
    assert saying in refusal(folder)
    assert folder.url in refusal(folder)


@pytest.mark.parametrize(
    ("facts", "saying"),
    [
        ({"shards": 10**12}, r"damaged or not ours \(shards"),
        ({"shards": "3"}, r"damaged or not ours \(shards"),
        ({"rows": 10**12}, r"damaged or not ours \(1000000000000 rows in 3 shards"),
        ({"name": None}, r"damaged or not ours \(name"),
        ({"inputs": [{"name": 1}]}, r"damaged or not ours \(inputs.0.name"),
    ],
)
def test_numbers_that_no_dataset_has_are_refused_at_once(folder: Folder, facts: dict[str, Any], saying: str) -> None:
    told = json.loads(folder.read("dataset.json"))
    folder.publish("dataset.json", json.dumps({**told, **facts}).encode())
    with pytest.raises(UserError, match=saying):
        Dataset.open(folder.url)


def test_an_index_with_a_flipped_bit_hands_out_no_other_bytes(folder: Folder) -> None:
    path = folder.path / "00002.index.arrow"
    whole = path.read_bytes()
    with pa.OSFile(str(path)) as file:
        offset = pa.ipc.open_file(file).read_all()["image_offset"][1].as_py()
    at = whole.index(offset.to_bytes(8, "little"))
    path.write_bytes(whole[:at] + (offset ^ 512).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(UserError, match=r"00002\.index\.arrow hashes to [0-9a-f]{16}\.\.\., its record says"):
        read_all(folder)
