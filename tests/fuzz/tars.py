"""A tar of any kind is damaged or forged, and adopted: it is refused by name, or read as Python's tarfile reads it."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from shards import Dataset, IncompleteError, InProcess, UserError
from shards.adopt import AdoptSettings, adopt, find_tars
from shards.tar_members import TarError, tar_members
from tests.fuzz.jsons import damaged
from tests.fuzz.mutations import mutated

_BLOCK = 512
_KINDS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
_IMAGES, _OTHERS = ("jpg", "png"), ("txt", "json", "cls")
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)


def whole(chance: random.Random) -> bytes:
    """A tar of a few samples: names short, long, deep or not ASCII; folders, links; times in fractions."""
    sink = io.BytesIO()
    kind = chance.choice(_KINDS)
    mtime = chance.choice([0, 1_700_000_000, 1_700_000_000.25])
    with tarfile.open(fileobj=sink, mode="w", format=kind) as tar:
        for number in range(chance.choice([1, 3, 3, 6])):
            stem = chance.choice(["s{}", "./s{}", "folder/s{}", "é{}", "d" * 60 + "/" + "e" * 70 + "{}"])
            if kind != tarfile.USTAR_FORMAT and chance.random() < 0.2:
                stem = "n" * 130 + "{}"
            stem = stem.format(number)
            parts = {chance.choice(_IMAGES): chance.randbytes(chance.choice([1, 511, 512, 513, 3000]))}
            parts |= {"txt": f"picture {number}".encode()} if chance.random() < 0.8 else {}
            parts["json"] = json.dumps({"n": number, "caption": f"told {number}"}).encode()
            if chance.random() < 0.1:
                parts["json"] = damaged(parts["json"], chance)
            parts |= {"cls": chance.choice([b"7", b"7", b"x", b"", b"9" * 50, b"-1"])} if chance.random() < 0.3 else {}
            for extension, data in parts.items():
                _add(tar, f"{stem}.{extension}", data, mtime)
            if chance.random() < 0.2:
                _add_other(tar, chance, stem)
    return sink.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mtime: float = 0) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(data), mtime
    tar.addfile(entry, io.BytesIO(data))


def _add_other(tar: tarfile.TarFile, chance: random.Random, stem: str) -> None:
    entry = tarfile.TarInfo(chance.choice(["folder", "device", f"{stem}x.jpg", f"{stem}.extra.jpg"]))
    entry.type = chance.choice([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    if entry.type in _LINKS:
        entry.linkname = f"{stem}.jpg"[-100:]
    tar.addfile(entry)


_FIELDS = {"name": (0, 100), "size": (124, 12), "checksum": (148, 8), "kind": (156, 1), "magic": (257, 8)}
_FIELDS |= {"link": (157, 100), "mode": (100, 8), "time": (136, 12), "prefix": (345, 155)}
_SIZES = [b"77777777777\0", b"00000000000\0", b"7777777777 \0", b"-0000000001\0", b"\x80" + b"\xff" * 11]
_SIZES += [b"\xff" * 12, b"\x80" + bytes(7) + b"\0\0\2\0", b"\0" * 12, b" " * 12, b"0x10\0".ljust(12, b"\0")]
_SIZES += [b"%011o\0" % size for size in (1, 511, 512, 513, 1024, 5000)]
_NAMES = [b"\xff\xfe.jpg", b"", b"..", b"../../up.jpg", b"/abs.txt", b"s0.jpg", b"a\nb.txt", b"x" * 100, b"s0.JPG"]
_NAMES += [b"s0/", b"folder/", b"./", b".jpg", b"no extension", b"\x1b[31m.jpg", b"s1.a.b.txt", b"__s__.txt"]


def headers_of(data: bytes) -> list[int]:
    """Where headers begin, as far as they can be followed."""
    at, found = 0, []
    while at + _BLOCK <= len(data) and data[at : at + _BLOCK].strip(b"\0"):
        found.append(at)
        digits = data[at + 124 : at + 136].strip(b"\0 ")
        size = int(digits, 8) if digits and not digits.strip(b"01234567") else 0
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return found


def sealed(data: bytearray, at: int) -> None:
    """Have the header at a byte the checksum that its fields add up to."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + _BLOCK])


def forged_field(data: bytearray, chance: random.Random) -> None:
    headers = headers_of(data)
    if not headers:
        return
    at = chance.choice(headers)
    field = chance.choice(["name", "size", "size", "kind", "kind", "magic", "prefix", "link", "mode", "time"])
    start, width = _FIELDS[field]
    if field == "size":
        value = chance.choice(_SIZES)
    elif field == "name":
        value = chance.choice(_NAMES)
    elif field == "kind":
        value = bytes([chance.choice(b"\x000123456789LKxgSDMVNAX~")])
    elif field == "magic":
        value = chance.choice([b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\x0099"])
    else:
        value = chance.choice([bytes(width), chance.randbytes(width), b"1234567"[: width - 1]])
    data[at + start : at + start + width] = value.ljust(width, b"\0")[:width]
    sealed(data, at)


def moved_blocks(data: bytearray, chance: random.Random) -> None:
    """Blocks go missing, come twice, change places or are emptied, as sectors do."""
    count = len(data) // _BLOCK
    if count < 2:
        return
    one, other = (_BLOCK * chance.randrange(count) for _ in range(2))
    kept = data[one : one + _BLOCK]
    how = chance.randrange(4)
    if how == 0:
        del data[one : one + _BLOCK]
    elif how == 1:
        data[other:other] = kept
    elif how == 2:
        data[one : one + _BLOCK], data[other : other + _BLOCK] = data[other : other + _BLOCK], kept
    else:
        data[one : one + _BLOCK] = bytes(_BLOCK)


def member_again(data: bytearray, chance: random.Random) -> None:
    """Header and data of a member once more, somewhere else or at the end."""
    headers = headers_of(data)
    if len(headers) < 2:
        return
    place = chance.randrange(len(headers) - 1)
    piece = data[headers[place] : headers[place + 1]]
    at = chance.choice([*headers, len(data)])
    data[at:at] = piece


def extended(data: bytearray, chance: random.Random) -> None:
    """An extended header before a member: PAX records and GNU long names, sound and forged."""
    headers = headers_of(data)
    if not headers:
        return
    pairs = [("path", "told.jpg"), ("size", "3"), ("size", "9" * 15), ("size", "-1"), ("path", ""), ("mtime", "1.5")]
    pairs += [("GNU.sparse.major", "1"), ("GNU.sparse.name", "s0.jpg"), ("comment", "x" * 600), ("path", "s0.txt")]
    pairs += [("size", "9" * 5000), ("path", "a/b\0c.jpg"), ("linkpath", "s0.jpg"), ("hdrcharset", "BINARY")]
    body = b"".join(record(*chance.choice(pairs)) for _ in range(chance.choice([1, 1, 2])))
    kind = chance.choice(b"xxxgL")
    if kind == ord("L"):
        body = chance.choice(
            [b"long.jpg\0", b"long.txt", b"", b"a\0b.jpg\0", b"\xff\xff.jpg\0", b"n" * 700 + b".jpg\0"]
        )
    if chance.random() < 0.3:
        body = bytes(mutated(body, chance)) if body else body
    header = bytearray(tarfile.TarInfo("extended").tobuf(tarfile.USTAR_FORMAT))
    header[156] = kind
    header[124:136] = b"%011o\0" % (len(body) if chance.random() < 0.9 else chance.choice([1 << 30, 0, 1 << 21]))
    sealed(header, 0)
    at = chance.choice(headers)
    data[at:at] = header + body + bytes(-len(body) % _BLOCK)


def record(name: str, value: str) -> bytes:
    """`LENGTH NAME=VALUE\\n`, where the length counts itself."""
    rest = len(f" {name}={value}\n".encode())
    length = rest
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return f"{length} {name}={value}\n".encode()


def bytes_of_any_file(data: bytearray, chance: random.Random) -> None:
    data[:] = mutated(bytes(data), chance)


TARS: list[Callable[[bytearray, random.Random], None]] = [
    *(forged_field, forged_field, forged_field, moved_blocks, member_again, extended, extended, bytes_of_any_file),
]


def case_bytes(seed: int) -> bytes:
    """The tar of a seed. Every fiftieth is sound."""
    chance = random.Random(seed)
    data = bytearray(whole(chance))
    if seed % 50:
        for _ in range(chance.choice([1, 1, 2])):
            if data:
                chance.choice(TARS)(data, chance)
    return bytes(data)


class Entry(NamedTuple):
    """A plain file or a link, as tarfile tells it."""

    name: str
    offset: int
    size: int
    link: bool


def told_by_tarfile(data: bytes) -> tuple[list[Entry], bool]:
    """What tarfile finds; and whether it came to the archive's end, and not to what it does not understand."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="strict") as tar:
            for entry in tar:
                name = entry.name
                head = data[entry.offset_data - _BLOCK : entry.offset_data]
                prefix = head[345:500].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                if head[257:263] != b"ustar\0" and prefix:
                    # Only USTAR has the rest of a name there; GNU tar has times, which tarfile takes for names.
                    name = name.removeprefix(f"{prefix}/")
                while name.startswith("./"):
                    name = name[2:]
                if name.endswith("/") and not entry.size:
                    continue
                if entry.isreg() or entry.type in _LINKS:
                    size = entry.size if entry.isreg() else 0
                    found.append(Entry(name, entry.offset_data, size, entry.type in _LINKS))
            end = data[tar.offset : tar.offset + _BLOCK]
    except (tarfile.TarError, UnicodeDecodeError, ValueError, OverflowError, IndexError):
        return found, False
    return found, not end.strip(b"\0") and not data[tar.offset :].strip(b"\0")


def ours(data: bytes) -> list[Entry] | str:
    """What our reader finds, or why it refuses."""
    try:
        return [Entry(found.name, found.offset, found.size, found.link) for found in tar_members(data)]
    except TarError as error:
        return str(error)


def case(seed: int, folder: Path) -> str:
    data = case_bytes(seed)
    read = ours(data)
    told, ended = told_by_tarfile(data)
    if not isinstance(read, str):
        assert read[: len(told)] == told, (read, told)
        if ended:
            assert read == told, (read, told)
    elif not seed % 50:
        raise AssertionError(f"a sound tar is refused: {read}")
    path = folder / "x.tar"
    path.write_bytes(data)
    settings = AdoptSettings(patterns=(str(path),), out=str(folder / "out"))
    refused = ""
    try:
        found = adopt(settings, find_tars(settings.patterns), InProcess())
    except (UserError, IncompleteError) as error:
        refused = str(error)
    if refused:
        assert "x.tar" in refused
        assert " ".join((read if isinstance(read, str) else "0 of").split()) in refused, (read, refused)
        return refused
    assert not isinstance(read, str), read
    _compare(read, data, folder / "out", found.others)
    return "read"


def _compare(members: list[Entry], data: bytes, out: Path, others: Counter[str]) -> None:
    """Every member is a sample's, a refused sample's, or counted; each sample has its members' bytes."""
    by_name = {entry.name: data[entry.offset : entry.offset + entry.size] for entry in members}
    rows = pq.read_table(out / "00000.parquet").to_pylist()
    (shard,) = Dataset.open(str(out)).shards
    assert shard.keys == [row["key"] for row in rows if row["status"] == "success"]
    for at, key in enumerate(shard.keys):
        parts = {
            name.removeprefix(f"{key}.").lower(): value for name, value in by_name.items() if name.startswith(f"{key}.")
        }
        assert shard.image_bytes(at) in [parts[kind] for kind in _IMAGES if kind in parts]
        meta = json.loads(parts["json"]) if "json" in parts else {}
        told = [meta[name] for name in ("caption", "text") if isinstance(meta.get(name), str)]
        assert shard.caption(at) == (parts["txt"].decode() if "txt" in parts else told[0])
        meta |= {"key": key} | ({"label": int(parts["cls"])} if "cls" in parts else {})
        # As text: NaN is no other NaN's equal.
        assert repr(shard.meta(at)) == repr(meta)
    keys = [row["key"] for row in rows]
    lost = [entry for entry in members if not any(entry.name.startswith(f"{key}.") for key in keys)]
    assert len(lost) <= others.total(), (lost, others)
