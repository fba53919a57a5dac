"""Lists of samples by name: keys in a text or Parquet file, and DataComp's subsets, which are uids in a `.npy`."""

from __future__ import annotations

import io
import tokenize
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError, one_line
from shards.reader import Dataset
from shards.selection.columns import Columns, digests_of
from shards.storage import Folder

_UID = np.dtype("u8,u8")
"""DataComp's: the two halves of 32 hexadecimal digits, sorted."""


_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, MemoryError, pa.ArrowException),
    *(SyntaxError, tokenize.TokenError),
)
"""What damaged files make of their readers; an array's header is an expression of Python's, which numpy parses."""


class WantedKeys:
    """The names in such a file; `hold` says which samples of a shard have one."""

    def __init__(self, url: str, keys: npt.NDArray[np.uint64] | None, uids: npt.NDArray[np.void] | None) -> None:
        self.url, self._keys, self._uids = url, keys, uids

    @staticmethod
    def read(url: str) -> WantedKeys:
        """Raises `UserError` for a file that is none of these."""
        parent, _, name = url.rpartition("/")
        try:
            data = Folder(parent or ("/" if url.startswith("/") else ".")).read(name)
            if name.endswith(".npy"):
                with warnings.catch_warnings():
                    # A header by Python 2 is read more slowly, which need not be said.
                    warnings.simplefilter("ignore", UserWarning)
                    found = np.load(io.BytesIO(data))
                if found.dtype != _UID or found.ndim != 1:
                    raise ValueError(f"an array of {found.dtype} in {found.ndim} dimensions, DataComp's have {_UID}")
                return WantedKeys(url, None, np.unique(found))
            if name.endswith(".parquet"):
                file = pq.ParquetFile(pa.BufferReader(data))
                table = file.read(columns=["key"])
                table.validate(full=True)
                if len(table) != file.metadata.num_rows:
                    raise ValueError(f"it has {len(table)} rows instead of {file.metadata.num_rows}")
                keys = table["key"].cast(pa.string()).to_pylist()
            else:
                keys = [line.strip() for line in data.decode().splitlines() if line.strip()]
        except _UNREADABLE as error:
            raise UserError(
                f"no keys can be read here ({one_line(str(error))})",
                where=url,
                do="Give a text file with a key a line, Parquet with a column key, or DataComp's .npy of uids",
            ) from None
        return WantedKeys(url, np.unique(digests_of([key for key in keys if key is not None])), None)

    def __len__(self) -> int:
        return len(self._keys if self._keys is not None else self._uids if self._uids is not None else ())

    def hold(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """(n,): which samples of a shard are named."""
        if self._uids is not None:
            return np.isin(uids_of(columns), self._uids)
        assert self._keys is not None
        return np.isin(digests_of(columns["key"].to_pylist()), self._keys)

    def refuse_if_none(self, kept: int, dataset: Dataset) -> None:
        """Raise `UserError` where not one sample is named: the file is of another dataset."""
        if not kept:
            what = "uids" if self._uids is not None else "keys"
            first = next(shard.keys[0] for shard in dataset.shards if shard.count)
            raise UserError(
                f"none of its {len(self):,} {what} is in {dataset.folder}, whose first key is {first}", where=self.url
            )


def uids_of(columns: Columns) -> npt.NDArray[np.void]:
    """(n,) of two uint64: the metadata's `uid`, 32 hexadecimal digits. Raises `UserError` where it is none."""
    found = np.empty(columns.shard.count, _UID)
    for row, uid in enumerate(columns["uid"].to_pylist()):
        try:
            assert len(uid) == 32
            found[row] = (int(uid[:16], 16), int(uid[16:], 16))
        except (AssertionError, TypeError, ValueError):
            raise UserError(
                f"the uid of {columns.shard.keys[row]} is {uid!r}, not 32 hexadecimal digits",
                where=str(columns.shard.folder),
                do="Ingest with --keep uid",
            ) from None
    return found


def write_uids(dataset: Dataset, path: Path) -> int:
    """Write the uids of a dataset as DataComp's subsets are: a sorted `.npy`; returns how many."""
    parts: Sequence[npt.NDArray[np.void]] = [uids_of(Columns(shard, ())) for shard in dataset.shards if shard.count]
    uids = np.sort(np.concatenate(parts))
    with path.open("wb") as file:
        np.save(file, uids)
    return len(uids)
