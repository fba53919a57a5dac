"""Members found by their headers, beside the standard library's reader."""

from __future__ import annotations

import io
import tarfile

import pytest

from shards.tar_members import TarError, tar_members


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
    assert [(found.name, found.start, found.offset, found.size) for found in tar_members(data)] == wanted


def test_a_piece_from_a_members_start_to_its_end_is_read_alone() -> None:
    data = written(tarfile.PAX_FORMAT, 0.5)
    for member in tar_members(data):
        (alone,) = tar_members(data[member.start : member.end])
        assert (alone.name, alone.size) == (member.name, member.size)


def test_what_is_cut_or_no_tar_is_refused() -> None:
    data = written(tarfile.PAX_FORMAT, 0.5)
    last = list(tar_members(data))[-1]
    for end in (700, last.offset + 5, last.end - 3, last.start + 100, last.end):
        with pytest.raises(TarError, match=r"ends|truncated"):
            list(tar_members(data[:end], whole=True))
    for wrong in (b"x" * 2000, data[:148] + b"\xff" * 8 + data[156:], data[100:]):
        with pytest.raises(TarError, match="no header"):
            list(tar_members(wrong))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_empty_blocks_at_the_end_may_be_left_out(form: int) -> None:
    data = written(form)
    found = list(tar_members(data))
    end = data.rindex(b"link") // 512 * 512 + 512
    assert list(tar_members(data[:end])) == found
    with pytest.raises(TarError, match="ends after a member"):
        list(tar_members(data[:end], whole=True))


def test_sizes_beyond_eight_gigabytes_are_read() -> None:
    entry = tarfile.TarInfo("large.jpg")
    entry.size = 9 << 30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with pytest.raises(TarError, match=r"has 9,663,676,416 bytes, 0 are there"):
            list(tar_members(entry.tobuf(form)))


def test_a_tar_that_ends_after_an_extended_header_is_cut_whatever_that_says() -> None:
    # A header with a time alone names neither path nor size.
    data = written(tarfile.PAX_FORMAT, 0.5)
    (last, *_) = reversed(list(tar_members(data)))
    for end in (last.start + 1024, last.start + 700):
        with pytest.raises(TarError, match=r"truncated|damaged"):
            list(tar_members(data[:end]))
    with pytest.raises(TarError, match="a member should follow"):
        list(tar_members(data[: last.start + 1024] + bytes(1024)))
