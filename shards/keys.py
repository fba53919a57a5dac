"""Sample keys: unique across datasets, stable across runs, safe as the names of tar members.

webdataset splits a member's name at its first dot and groups neighbouring members with the same stem, so a dot in
a key, a repeated key or a key that does not fit a USTAR header silently loses samples. Keys made here cannot.
"""

from __future__ import annotations

import re

from shards.errors import UserError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")


def check_dataset_name(name: str) -> str:
    """Return `name` if it can begin every key of a dataset, else raise `UserError`."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"dataset name {name!r} cannot be part of a key",
            do="Use 1 to 48 lower-case letters, digits, '-' or '_', beginning with a letter or digit",
        )
    return name


def sample_key(dataset: str, row: int) -> str:
    """The key of input row `row` (counted from 0 over all input files): `cc3m-000001234`."""
    return f"{dataset}-{row:09d}"


def sample_row(dataset: str, key: str) -> int | None:
    """The row that `sample_key` made this key of, None if it is no key of this dataset."""
    digits = key.removeprefix(f"{dataset}-")
    row = int(digits) if digits.isascii() and digits.isdigit() else None
    return row if row is not None and key == sample_key(dataset, row) else None


def is_key(key: str) -> bool:
    """Whether `key` is 1 to 90 ASCII letters, digits, '-' or '_' (no dot, no slash; fits a USTAR name)."""
    return _KEY.fullmatch(key) is not None
