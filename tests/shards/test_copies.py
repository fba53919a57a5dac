"""Copies of a store's files stay within their bound, and what is in use stays there."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards import Dataset, Folder, UserError, copies

SIZE = 1000


@pytest.fixture
def far(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Eight files of 1000 bytes, 0 to 7; three of them fit here, and of the paths handed out one is held."""
    monkeypatch.setenv("CLIPSTILL_CACHE_BYTES", "3.5e3")
    monkeypatch.setattr("shards.copies._RECENT", 1)
    folder = Folder(f"{bucket}/data")
    for number in range(8):
        folder.publish(str(number), payload(number))
    return folder


def payload(number: int) -> bytes:
    return bytes([number]) * SIZE


def digest(number: int) -> str:
    return hashlib.sha256(payload(number)).hexdigest()


def fetch(folder: Folder, number: int) -> Path:
    path = folder.fetch(str(number), digest(number))
    assert path.read_bytes() == payload(number)
    return path


def here() -> set[int]:
    names = {digest(number): number for number in range(8)}
    return {names[path.name] for path in copies.root().iterdir()}


def test_the_copy_used_longest_ago_goes_first(far: Folder) -> None:
    for number in (0, 1, 2):
        fetch(far, number)
    assert here() == {0, 1, 2}
    fetch(far, 0)
    fetch(far, 3)
    assert here() == {0, 2, 3}
    for number in (4, 0, 5, 0, 6, 0, 7):
        fetch(far, number)
    assert here() == {0, 6, 7}


def test_a_copy_in_use_stays_whatever_the_bound(far: Folder) -> None:
    path = fetch(far, 0)
    held = copies.use(path)
    assert held is not None
    for number in range(1, 8):
        fetch(far, number)
    assert here() == {0, 6, 7}
    os.close(held)
    fetch(far, 5)
    assert 0 not in here()
    assert copies.use(path) is None


def test_what_shards_have_mapped_stays_until_they_let_go(
    bucket: str, monkeypatch: pytest.MonkeyPatch, make_dataset: Callable[..., Dataset]
) -> None:
    monkeypatch.setenv("CLIPSTILL_CACHE_BYTES", "1")
    monkeypatch.setattr("shards.copies._RECENT", 1)
    dataset = make_dataset(f"{bucket}/shards", (3, 3, 3))
    first, *others = dataset.shards
    captions = [first.caption(row) for row in range(3)]
    names = {first.record.file(suffix).sha256 for suffix in (".tar", ".index.arrow")}
    for shard in others:
        assert [shard.caption(row) for row in range(3)]
        shard.release()
        assert names <= {path.name for path in copies.root().iterdir()}
    first.release()
    others[0].fetch()
    assert not names & {path.name for path in copies.root().iterdir()}
    assert [first.caption(row) for row in range(3)] == captions


def test_of_several_who_want_a_file_one_copies_it(far: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    copy = Folder._copy

    def counting(self: Folder, name: str, sha256: str, root: Folder) -> None:
        copied.append(name)
        copy(self, name, sha256, root)

    monkeypatch.setattr(Folder, "_copy", counting)
    start = threading.Barrier(6)

    def want(number: int) -> bytes:
        start.wait(timeout=60)
        return Folder(far.url).fetch(str(number), digest(number)).read_bytes()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(want, [0, 1, 0, 1, 0, 0]))
    assert found == [payload(number) for number in (0, 1, 0, 1, 0, 0)]
    assert sorted(copied) == ["0", "1"]
    assert here() == {0, 1}


@pytest.mark.parametrize("text", ["much", "0", "-5", "nan", "inf"])
def test_a_bound_that_is_none_is_refused(far: Folder, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CLIPSTILL_CACHE_BYTES", text)
    with pytest.raises(UserError, match=rf"\$CLIPSTILL_CACHE_BYTES: '{text}' is no number of bytes"):
        far.fetch("0", digest(0))


def test_half_of_the_disk_is_the_bound_unless_set(far: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPSTILL_CACHE_BYTES")
    for number in range(8):
        fetch(far, number)
    assert here() == set(range(8))
    assert copies.limit() > 8 * SIZE
