"""Members found by their headers, beside the standard library's reader."""

from __future__ import annotations

import io
import tarfile

import pytest

from teacher_cache.exchange.headers import members


def written(form: int, mtime: float = 0) -> bytes:
    """Plain and long names, folders and links in between, sizes around a block's, one non-ASCII name."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        names = ["a.txt", "folder/b.jpg", "d" * 60 + "/" + "e" * 80 + ".json", "é.txt"]
        names += [] if form == tarfile.USTAR_FORMAT else ["n" * 300 + ".npz"]
        for number, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = (0, 511, 512, 513, 3000)[number], mtime
            tar.addfile(entry, io.BytesIO(bytes([number]) * entry.size))
            link = tarfile.TarInfo(f"link{number}")
            link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
            tar.addfile(link)
    return sink.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1700000000.25])
def test_members_are_those_of_the_standard_library(form: int, mtime: float) -> None:
    data = written(form, mtime)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        wanted = [(entry.name, entry.offset, entry.offset_data, entry.size) for entry in tar if entry.isfile()]
    assert [(found.name, found.start, found.data, found.size) for found in members(data)] == wanted


def test_a_piece_from_a_members_start_to_its_end_is_read_alone() -> None:
    data = written(tarfile.PAX_FORMAT, 0.5)
    for member in members(data):
        (alone,) = members(data[member.start : member.end], whole=False)
        assert (alone.name, alone.size) == (member.name, member.size)


def test_what_is_cut_or_no_tar_is_refused() -> None:
    data = written(tarfile.PAX_FORMAT, 0.5)
    last = list(members(data))[-1]
    for end in (700, last.data + 5, last.end - 3, last.start + 100, last.end):
        with pytest.raises(ValueError, match="ends"):
            list(members(data[:end]))
    for wrong in (b"x" * 2000, data[:148] + b"\xff" * 8 + data[156:], data[100:]):
        with pytest.raises(ValueError, match=r"no header|invalid literal"):
            list(members(wrong))
