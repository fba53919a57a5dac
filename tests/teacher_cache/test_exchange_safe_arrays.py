"""Files made to do harm: none is executed, none takes more memory than a limit."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from teacher_cache.exchange import safe_arrays
from teacher_cache.exchange.safe_arrays import read_npz, read_pth_gz

LIMIT = 2**20
"""Instead of 64 times as much."""


class Harm:
    """Its unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def pth_gz(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return gzip.compress(sink.getvalue())


def npz(entries: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", packing) as held:
        for name, data in entries.items():
            held.writestr(name, data)
    return sink.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, **options)
    return sink.getvalue()


def test_plain_files_are_read_exactly() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for stored in (rows, np.asfortranarray(rows), rows.astype(np.float16)):
        got = read_npz(npz({"a.npy": npy(stored)}))["a"]
        np.testing.assert_array_equal(got, stored.astype(np.float32))
    tensor = torch.from_numpy(rows).bfloat16()
    np.testing.assert_array_equal(read_pth_gz(pth_gz({"a": tensor}))["a"], tensor.float().numpy())


def test_a_pickle_that_asks_for_more_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "harm"
    with pytest.raises(ValueError, match="more than tensors and was not run"):
        read_pth_gz(pth_gz({"image_emb": Harm(target)}))
    with pytest.raises(ValueError, match=r"no file of torch\.save"):
        read_pth_gz(gzip.compress(pickle.dumps(Harm(target))))
    with pytest.raises(ValueError, match="pickled objects, which are never read"):
        read_npz(npz({"a.npy": npy(np.array([[Harm(target)]], object), allow_pickle=True)}))
    assert not target.exists()
    # It would have been made: the harm is real.
    pickle.loads(pickle.dumps(Harm(target)))
    assert target.exists()


def gzip_bomb() -> bytes:
    return gzip.compress(bytes(16 * LIMIT))


def nested_bomb() -> bytes:
    """Small when ungzipped; the zip within would unpack to more."""
    sink, repacked = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(2, 3)}, sink)
    with zipfile.ZipFile(sink) as old, zipfile.ZipFile(repacked, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return gzip.compress(repacked.getvalue())


def npz_bomb() -> bytes:
    return npz({"a.npy": bytes(16 * LIMIT)})


def promising_npz() -> bytes:
    """Its header promises 4 TB."""
    header = npy(np.zeros((0, 999999999), np.float32))
    return npz({"a.npy": header.replace(b"(0, 999999999)", b"(1001, 999999)")})


@pytest.mark.parametrize(
    ("read", "make"),
    [
        (read_pth_gz, gzip_bomb),
        (read_pth_gz, nested_bomb),
        (read_pth_gz, lambda: pth_gz({"a": torch.zeros(1, 1).expand(2**20, 2**12)})),
        (read_npz, npz_bomb),
        (read_npz, promising_npz),
    ],
    ids=["gzip", "zip in gzip", "strides", "npz", "header"],
)
def test_bombs_are_refused_within_memory(
    read: Callable[[bytes], object], make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_arrays, "LIMIT", LIMIT)
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"unpacks to more|are packed|has shape|cannot be"):
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1, 1)], "holds a list"),
        ({"a": 3}, "no plain tensor"),
        ({"a": torch.zeros(2)}, "wanted are rows of numbers"),
        ({"a": torch.full((2, 2), float("nan"))}, "not finite"),
    ],
)
def test_what_is_no_dictionary_of_rows_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pth_gz(pth_gz(value))


def encrypted() -> bytes:
    """Its entry says that a password is needed."""
    data = bytearray(npz({"a.npy": npy(np.zeros((1, 1), np.float32))}))
    for place in (6, data.index(b"PK\x01\x02") + 8):
        data[place] |= 1
    return bytes(data)


def broken_lzma() -> bytes:
    data = bytearray(npz({"a.npy": npy(np.random.default_rng(0).normal(size=(20, 20)))}, zipfile.ZIP_LZMA))
    # Past the 30 bytes before the name and the 5 of it: the filter's properties.
    data[30 + 5 + 4 : 30 + 5 + 9] = b"\xff" * 5
    return bytes(data)


def with_header(text: str) -> bytes:
    return npz({"a.npy": b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(4)})


@pytest.mark.parametrize(
    "data",
    [
        encrypted(),
        broken_lzma(),
        with_header("{'descr': ("),
        with_header("-" * 9000 + "1"),
        with_header("{[]: 1}"),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, True)}"),
    ],
    ids=["encrypted", "lzma", "open bracket", "deep", "unhashable", "bools"],
)
def test_what_cannot_be_unpacked_is_damaged_and_no_fault_of_the_program(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"damaged|cannot be"):
        read_npz(data)


def test_cut_and_flipped_files_are_refused() -> None:
    good = pth_gz({"a": torch.zeros(4, 8)}), npz({"a.npy": npy(np.zeros((4, 8), np.float32))})
    for read, data in zip((read_pth_gz, read_npz), good, strict=True):
        for end in range(0, len(data) - 1, max(1, len(data) // 40)):
            with pytest.raises(ValueError, match=r"."):
                read(data[:end])
        random = np.random.default_rng(1)
        for at in random.integers(0, len(data), 40):
            flipped = bytearray(data)
            flipped[at] ^= 1 << int(random.integers(8))
            with contextlib.suppress(ValueError):
                read(bytes(flipped))
