"""Tars that somebody else wrote, of every kind that writers make: read right, or refused by tar and member."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipstill.main import main
from shards import Dataset, Folder, IncompleteError, InProcess, UserError, verify_dataset
from shards.adopt import Adopted, AdoptSettings, adopt, find_tars
from shards.tar_members import TarError, tar_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def picture(shade: int, kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 2 * shade % 256, 255 - shade)).save(sink, kind)
    return sink.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], kind: str = "ustar") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def pairs(first: int, count: int) -> dict[str, bytes]:
    """As img2dataset writes them."""
    found: dict[str, bytes] = {}
    for number in range(first, first + count):
        found |= {f"{number:09d}.jpg": picture(number), f"{number:09d}.txt": f"picture {number}".encode()}
        found |= {f"{number:09d}.json": json.dumps({"key": f"{number:09d}", "url": f"http://x/{number}"}).encode()}
    return found


def adopted(out: Path, *patterns: str | Path, **more: object) -> Adopted:
    settings = AdoptSettings(patterns=tuple(map(str, patterns)), out=str(out), **more)  # type: ignore[arg-type]
    return adopt(settings, find_tars(settings.patterns), InProcess())


def refusals(out: Path) -> dict[str, str]:
    """Key → reason, of all ledgers."""
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["key"]: row["error_message"] for row in rows if row["status"] == "refused"}


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_are_read_where_they_lie(tmp_path: Path, kind: str) -> None:
    long = "folder-" * 12 + "/" + "name-" * 15
    deep = {f"{long}.png": picture(90, "PNG"), f"{long}.txt": "ein Hügel".encode()}
    write_tar(tmp_path / "tars" / "a.tar", pairs(0, 3), kind)
    write_tar(tmp_path / "tars" / "b.tar", pairs(3, 2) | deep, kind)
    found = adopted(tmp_path / "out", tmp_path / "tars")
    assert (found.tars, found.rows, found.refused.total()) == (2, 6, 0)
    first, second = Dataset.open(str(tmp_path / "out")).shards
    assert second.keys == ["000000003", "000000004", long]
    for shard, name in ((first, "a"), (second, "b")):
        with tarfile.open(tmp_path / "tars" / f"{name}.tar") as tar:
            for row, key in enumerate(shard.keys):
                image = tar.extractfile(f"{key}.{'png' if key == long else 'jpg'}")
                text = tar.extractfile(f"{key}.txt")
                assert image is not None
                assert text is not None
                assert shard.image_bytes(row) == image.read()
                assert shard.caption(row) == text.read().decode()
    assert first.meta(1) == {"key": "000000001", "url": "http://x/1"}
    assert second.meta(2) == {"key": long}
    assert verify_dataset(str(tmp_path / "out")).problems == ()
    # Nothing but an index of it was written.
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_second_run_reads_only_what_is_new(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", pairs(5 * number, 5))
    assert adopted(tmp_path / "out", tmp_path / "{0..1}.tar").summary.finished == 2
    again = adopted(tmp_path / "out", tmp_path / "?.tar")
    assert (again.summary.skipped, again.summary.finished, again.rows) == (2, 1, 15)
    assert len(Dataset.open(str(tmp_path / "out"))) == 15


def test_a_second_run_of_fewer_tars_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", pairs(5 * number, 5))
    adopted(tmp_path / "out", tmp_path / "?.tar")
    adopted(tmp_path / "out", tmp_path / "{1..2}.tar")
    assert [shard.keys[0] for shard in Dataset.open(str(tmp_path / "out")).shards] == ["000000005", "000000010"]
    assert verify_dataset(str(tmp_path / "out")).problems == ()


def test_each_way_to_write_a_sample(tmp_path: Path) -> None:
    caption_in_json = json.dumps({"caption": "from the JSON", "width": 16}).encode()
    members = [
        ("./a.jpg", picture(1)),
        ("b.jpg", picture(2)),
        ("./a.txt", b"not beside its picture"),
        ("b.json", caption_in_json),
        ("b.cls", b"7\n"),
        ("IMG.0001.JPG", picture(3)),
        ("IMG.0001.txt", b"a key with a dot"),
        ("a.mask.png", picture(4, "PNG")),
        ("__index__.txt", b"not a sample"),
        ("README", b"nor this"),
    ]
    found = adopted(tmp_path / "out", write_tar(tmp_path / "x.tar", members))
    (shard,) = Dataset.open(str(tmp_path / "out")).shards
    assert dict(zip(shard.keys, map(shard.caption, range(3)), strict=True)) == {
        "a": "not beside its picture",
        "b": "from the JSON",
        "IMG.0001": "a key with a dot",
    }
    assert shard.meta(1) == {"key": "b", "caption": "from the JSON", "width": 16, "label": 7}
    assert shard.image_bytes(2) == picture(3)
    assert found.others == {".mask.png": 1, "__index__.txt": 1, "README": 1}


def test_a_sample_that_cannot_be_used_is_refused_with_its_reason(tmp_path: Path) -> None:
    text = b"a caption"
    members = [
        ("fine.jpg", picture(1)),
        ("fine.txt", text),
        ("no-image.txt", text),
        ("no-caption.jpg", picture(2)),
        ("two.jpg", picture(3)),
        ("two.png", picture(3, "PNG")),
        ("two.txt", text),
        ("twice.jpg", picture(4)),
        ("twice.txt", text),
        ("twice.txt", b"another"),
        ("empty.jpg", b""),
        ("empty.txt", text),
        ("latin.jpg", picture(5)),
        ("latin.txt", "Hügel".encode("latin-1")),
        ("json.jpg", picture(6)),
        ("json.txt", text),
        ("json.json", b"{'key': 1}"),
        ("list.jpg", picture(7)),
        ("list.txt", text),
        ("list.json", b"[1]"),
        ("half.jpg", picture(9)),
        ("half.json", b'{"caption": "cut at \\ud83d"}'),
        ("class.jpg", picture(8)),
        ("class.txt", text),
        ("class.cls", b"cat"),
    ]
    found = adopted(tmp_path / "out", write_tar(tmp_path / "x.tar", members))
    assert (found.rows, found.refused.total()) == (11, 10)
    assert found.refused == {
        **dict.fromkeys(["no_image", "no_caption", "several_images", "member_twice", "empty_image"], 1),
        "bad_caption": 2,
        "bad_metadata": 2,
        "bad_label": 1,
    }
    assert refusals(tmp_path / "out") == {
        "no-image": "it has no image",
        "no-caption": "it has no caption",
        "two": "it has several images",
        "twice": "two members are called twice.txt",
        "empty": "its image is empty",
        "latin": "its caption is not UTF-8",
        "half": "its caption is not UTF-8",
        "json": "its metadata is no JSON",
        "list": "its metadata is no JSON object",
        "class": "its label b'cat' is no number",
    }
    assert Dataset.open(str(tmp_path / "out")).shards[0].keys == ["fine"]


def test_a_sample_with_a_link_is_refused_by_its_name(tmp_path: Path) -> None:
    """GNU tar stores the second of two names of one file as a link to the first."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for key in ("a", "b", "c"):
            for extension, data in {"jpg": picture(1), "txt": b"a caption"}.items():
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(data)
                if key == "b" or (key, extension) == ("c", "txt"):
                    entry.size, entry.type, entry.linkname = 0, tarfile.LNKTYPE, f"a.{extension}"
                tar.addfile(entry, io.BytesIO(data))
        entry = tarfile.TarInfo("latest")
        entry.type, entry.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(entry)
    found = adopted(tmp_path / "out", tmp_path / "x.tar")
    assert (found.refused, found.others) == ({"link": 2}, {"latest": 1})
    assert refusals(tmp_path / "out") == {
        "b": "b.jpg is a link, which is not followed",
        "c": "c.txt is a link, which is not followed",
    }
    assert Dataset.open(str(tmp_path / "out")).shards[0].keys == ["a"]
    assert verify_dataset(str(tmp_path / "out")).problems == ()


def test_only_text_is_a_caption_in_metadata(tmp_path: Path) -> None:
    values = ["NaN", "null", "true", '{"a": 1}', "Infinity", '"nan"']
    members: dict[str, bytes] = {}
    for number, value in enumerate(values):
        members |= {f"{number}.jpg": picture(number), f"{number}.json": f'{{"caption": {value}}}'.encode()}
    members |= {"6.jpg": picture(6), "6.txt": b"nan"}
    found = adopted(tmp_path / "out", write_tar(tmp_path / "x.tar", members))
    assert found.refused == {"no_caption": 5}
    (shard,) = Dataset.open(str(tmp_path / "out")).shards
    assert {key: shard.caption(row) for row, key in enumerate(shard.keys)} == {"5": "nan", "6": "nan"}


def test_images_alone_are_a_dataset_without_captions(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.webp": picture(1, "WEBP"), "b.jpeg": picture(2)})
    with pytest.raises(UserError, match=r"0 of 2 samples have an image and a caption .* Use --no-captions"):
        adopted(tmp_path / "out", tmp_path / "x.tar")
    assert adopted(tmp_path / "out", tmp_path / "x.tar", captions=False).refused.total() == 0
    assert not Dataset.open(str(tmp_path / "out")).captioned


def test_where_nothing_fits_it_is_said_what_was_found_and_which_options_would_take_it(tmp_path: Path) -> None:
    members = {
        f"{n}.{kind}": data for n in range(4) for kind, data in (("input.jpg", picture(n)), ("output.txt", b"x"))
    }
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=r"found .*\.input\.jpg.*--image input\.jpg --caption output\.txt"):
        adopted(tmp_path / "out", path)
    assert adopted(tmp_path / "out", path, image="input.jpg", caption=".output.txt").refused.total() == 0
    assert Dataset.open(str(tmp_path / "out")).shards[0].keys == ["0", "1", "2", "3"]


def test_a_key_in_two_tars_is_refused_unless_keys_begin_with_their_tars_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", pairs(0, 2))
    with pytest.raises(UserError, match=r"the key '000000000' is in .*a\.tar too \(2 keys .*--keys-of-tars"):
        adopted(tmp_path / "out", tmp_path / "{a,b}.tar")
    adopted(tmp_path / "out", tmp_path / "{a,b}.tar", keys_of_tars=True)
    found = Dataset.open(str(tmp_path / "out"))
    assert [shard.keys for shard in found.shards] == [["a/000000000", "a/000000001"], ["b/000000000", "b/000000001"]]
    assert verify_dataset(str(tmp_path / "out")).problems == ()


def test_a_tar_that_was_written_to_since_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", pairs(0, 3))
    adopted(tmp_path / "out", path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[600] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match=r"x\.tar was written to since it was adopted"):
        Dataset.open(str(tmp_path / "out")).shards[0].image_bytes(0)
    (problem,) = verify_dataset(str(tmp_path / "out")).problems
    assert "x.tar hashes to" in problem
    path.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=rf"x\.tar has {len(whole) - 512} bytes, its record says {len(whole)}"):
        Dataset.open(str(tmp_path / "out")).shards[0].image_bytes(0)
    path.write_bytes(whole)
    assert adopted(tmp_path / "out", path).summary.finished == 1
    assert Dataset.open(str(tmp_path / "out")).shards[0].caption(1) == "picture 1"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:3000], "truncated"),
        (lambda data: data.replace(b"000000002.txt", b"000000003.txt"), "no header of a tar stands there"),
    ],
)
def test_a_damaged_tar_is_named_and_the_others_are_adopted(
    tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    write_tar(tmp_path / "a.tar", pairs(0, 2))
    path = write_tar(tmp_path / "b.tar", pairs(2, 2))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(IncompleteError, match=rf"b\.tar: .*{reason}"):
        adopted(tmp_path / "out", tmp_path / "{a,b}.tar")
    with pytest.raises(UserError, match="no dataset here"):
        Dataset.open(str(tmp_path / "out"))


def test_what_is_no_tar_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(UserError, match=r"x\.tar: .*See that it is a whole tar, not compressed"):
        adopted(tmp_path / "out", tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.tar: truncated"):
        adopted(tmp_path / "out", tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", {})
    with pytest.raises(UserError, match=r"0 of 0 samples .*it has no files"):
        adopted(tmp_path / "out", tmp_path / "x.tar")
    for pattern in ("absent.tar", "*.tgz", "{0..3}.tar"):
        with pytest.raises(UserError):
            adopted(tmp_path / "out", tmp_path / "elsewhere" / pattern)


def test_tars_on_an_object_store_are_read_from_there(bucket: str, tmp_path: Path) -> None:
    store = Folder(bucket)
    for number in range(2):
        data = write_tar(tmp_path / f"{number}.tar", pairs(4 * number, 4)).read_bytes()
        store.child("tars").publish(f"{number}.tar", data)
    for out, patterns in (
        (tmp_path / "here", f"{bucket}/tars/{{0..1}}.tar"),
        (f"{bucket}/there", f"{bucket}/tars/*.tar"),
    ):
        assert adopted(out, patterns).rows == 8  # type: ignore[arg-type]
        found = Dataset.open(str(out))
        assert [shard.caption(3) for shard in found.shards] == ["picture 3", "picture 7"]
        assert found.shards[1].image_bytes(0) == picture(4)
        assert verify_dataset(str(out)).problems == ()
    with pytest.raises(UserError, match="no tar is there"):
        adopted(tmp_path / "none", f"{bucket}/tars/x*.tar")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:webdataset")
def test_what_webdatasets_own_writer_makes_is_read(tmp_path: Path) -> None:
    import webdataset  # noqa: PLC0415

    with webdataset.ShardWriter(f"{tmp_path}/w-%03d.tar", maxcount=2, verbose=0) as sink:
        for number in range(5):
            sample = {"__key__": f"s{number}", "jpg": picture(number), "txt": f"no. {number}", "json": {"n": number}}
            sink.write(sample | {"cls": number})
    found = adopted(tmp_path / "out", tmp_path / "w-{000..002}.tar")
    shards = Dataset.open(str(tmp_path / "out")).shards
    assert (found.rows, [shard.count for shard in shards]) == (5, [2, 2, 1])
    assert shards[1].caption(1) == "no. 3"
    assert shards[1].meta(1) == {"key": "s3", "n": 3, "label": 3}


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "x.tar", pairs(0, 3) | {"9.txt": b"alone", "000000000.mask.npy": b"x"})
    out = tmp_path / "out"
    assert main(["shards", "adopt", str(path), "--out", str(out), "--in-process"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "4 samples in 1 tars: 3 adopted, 1 refused",
        "         1  no_image",
        "members that are no part of a sample: 1 .mask.npy",
    ]
    assert main(["shards", "verify", str(out)]) == 0
    capsys.readouterr()
    assert main(["shards", "ls", str(out)]) == 0
    size = path.stat().st_size / 1e6
    assert capsys.readouterr().out.splitlines() == [
        f"00000         3 samples  {size:>10,.1f} MB  {path}",
        f"out: 3 samples in 1 shards, {size:,.1f} MB",
    ]
    assert main(["shards", "cat", str(out), "000000001", "--image", str(tmp_path / "1.jpg")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["caption"], told["meta"]["url"], told["tar"]) == ("picture 1", "http://x/1", str(path))
    assert (tmp_path / "1.jpg").read_bytes() == picture(1)
    assert path.read_bytes()[told["offset"] : told["offset"] + told["bytes"]] == picture(1)
    assert main(["shards", "cat", str(out), "none"]) == 2
    assert "no sample 'none'; the first of 3 is '000000000'" in capsys.readouterr().err
    assert main(["shards", "verify", str(tmp_path)]) == 2
    assert f"clipstill shards adopt {tmp_path} --out DATASET" in capsys.readouterr().err


@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_is_done_to_a_tar_its_members_are_within_it_or_it_is_refused(tmp_path: Path, kind: str) -> None:
    whole = write_tar(
        tmp_path / "x.tar", pairs(0, 2) | ({"z" * 200: b"z"} if kind != "ustar" else {}), kind
    ).read_bytes()
    chance = random.Random(11)
    read = refused = 0
    for _ in range(3400):
        data = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.choice([0, 1, 3])):
            if data:
                header = chance.randrange(len(data)) // 512 * 512
                data[min(header + chance.randrange(512), len(data) - 1)] = chance.randrange(256)
        try:
            members = list(tar_members(bytes(data)))
        except TarError:
            refused += 1
        else:
            read += 1
            assert all(member.offset + member.size <= len(data) for member in members)
    assert min(read, refused) > 100


def test_verify_names_the_tar_and_what_is_wrong_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = pairs(0, 4) | {"000000001.txt": b"  ", "000000002.jpg": picture(2)[:-40]}
    tar, out = write_tar(tmp_path / "theirs.tar", members), tmp_path / "out"
    adopted(out, tar)
    report = verify_dataset(str(out))
    (problem,) = report.problems
    assert problem.startswith(f"shard 00000 ({tar}): the image of 000000002 does not decode")
    assert report.captionless == 1
    assert main(["shards", "verify", str(out)]) == 1
    assert "1 samples have an empty caption" in capsys.readouterr().out
    assert main(["shards", "verify", str(out), "--no-decode"]) == 0
    # Bytes that are no text, beyond the first: the index was made of another tar of the same size and time.
    start, size = Dataset.open(str(out)).shards[0].places(3)[1]
    data = bytearray(tar.read_bytes())
    data[start + size - 1] = 0xFF
    seen = tar.stat().st_mtime_ns
    tar.write_bytes(data)
    os.utime(tar, ns=(seen, seen))
    assert "hashes to" in verify_dataset(str(out)).problems[0]
