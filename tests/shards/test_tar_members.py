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
        entries = [entry for entry in tar if entry.isfile() or entry.issym()]
        wanted = [(entry.name, entry.offset, entry.offset_data, entry.size, entry.issym()) for entry in entries]
    assert [(found.name, found.start, found.offset, found.size, found.link) for found in tar_members(data)] == wanted


def test_what_follows_the_end_is_refused() -> None:
    """Readers stop at the first empty block: of two tars in one file the second one's members would be lost."""
    one = written(tarfile.USTAR_FORMAT)
    end = len(one.rstrip(b"\0")) // 512 * 512 + 512
    with pytest.raises(TarError, match=rf"ends at byte {end:,}, yet more stands at byte {len(one):,}.*\(after link"):
        list(tar_members(one + one))
    damaged = one[:1024] + bytes(512) + one[1536:]
    with pytest.raises(TarError, match=r"ends at byte 1,024, yet more stands at byte"):
        list(tar_members(damaged))


def pax(**told: str) -> bytes:
    """A member of three bytes after an extended header."""
    entry = tarfile.TarInfo("a.txt")
    entry.size, entry.pax_headers = 3, dict(told)
    return entry.tobuf(tarfile.PAX_FORMAT) + b"abc".ljust(512, b"\0")


def test_what_readers_differ_in_is_refused() -> None:
    (told,) = tar_members(pax(path="b.txt", size="2"))
    assert (told.name, told.size) == ("b.txt", 2)
    twice = pax(path="b.txt")[:1024] + pax(path="c.txt")
    with pytest.raises(TarError, match="two extended headers tell the path of one member"):
        list(tar_members(twice))
    shared = tarfile.TarInfo.create_pax_global_header({"path": "b.txt"})
    with pytest.raises(TarError, match="one name or size for all members"):
        list(tar_members(shared + pax()))
    assert [found.name for found in tar_members(tarfile.TarInfo.create_pax_global_header({"comment": "x"}) + pax())]


def test_a_folder_by_its_name_has_no_bytes() -> None:
    entry = tarfile.TarInfo("folder/")
    entry.type = tarfile.AREGTYPE
    assert list(tar_members(entry.tobuf(tarfile.USTAR_FORMAT))) == []
    entry.size = 3
    with pytest.raises(TarError, match=r"folder/, a folder by its name, has 3 bytes"):
        list(tar_members(entry.tobuf(tarfile.USTAR_FORMAT) + b"abc".ljust(512, b"\0")))


def test_a_piece_from_a_members_start_to_its_end_is_read_alone() -> None:
    data = written(tarfile.PAX_FORMAT, 0.5)
    for member in tar_members(data):
        (alone,) = tar_members(data[member.start : member.end])
        assert (alone.name, alone.size) == (member.name, member.size)


def test_what_is_cut_or_no_tar_is_refused() -> None:
    data = written(tarfile.PAX_FORMAT, 0.5)
    last = [member for member in tar_members(data) if not member.link][-1]
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
    last = [member for member in tar_members(data) if not member.link][-1]
    for end in (last.start + 1024, last.start + 700):
        with pytest.raises(TarError, match=r"truncated|damaged"):
            list(tar_members(data[:end]))
    with pytest.raises(TarError, match="a member should follow"):
        list(tar_members(data[: last.start + 1024] + bytes(1024)))
