"""How an embedding is stored: what it costs in bytes, and how it comes back.

    float16   2 B a number; the default
    bfloat16  2 B; float32's range at three digits. Arrow has no such type: the upper halves of float32s, as uint16
    float32   4 B
    int8      1 B, and 4 B a row: round(127 · row / max |row|), with the factor that undoes it beside

Readers make every row unit again, as losses expect; rounding alone moves norms by 1e-4 (float16) to 1e-3 (bfloat16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from shards.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Dtype = Literal["float16", "bfloat16", "float32", "int8"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

_STORED: dict[str, type[np.generic]] = {
    "float16": np.float16,
    "bfloat16": np.uint16,
    "float32": np.float32,
    "int8": np.int8,
}


class Stored(NamedTuple):
    """Embeddings as they lie in a file: `values` (n, D), and for int8 `scales` (n,) float32."""

    values: npt.NDArray[np.generic]
    scales: npt.NDArray[np.float32] | None


def check_dtype(name: str) -> None:
    if name not in _STORED:
        raise UserError(f"embeddings cannot be stored as {name!r}", do=f"Use {', '.join(DTYPES)}")


def arrow_type(dtype: Dtype) -> pa.DataType:
    import pyarrow as pa  # noqa: PLC0415 - settings name dtypes, and need no Arrow

    return pa.from_numpy_dtype(_STORED[dtype])


def numpy_type(dtype: Dtype) -> type[np.generic]:
    return _STORED[dtype]


def row_bytes(dtype: Dtype, width: int) -> int:
    """What one embedding of D = `width` takes on disk."""
    return width * np.dtype(_STORED[dtype]).itemsize + (4 if dtype == "int8" else 0)


def store(rows: npt.NDArray[np.float32], dtype: Dtype) -> Stored:
    """(n, D) float32 of unit norm, rounded to the nearest."""
    if dtype == "int8":
        scales = np.abs(rows).max(axis=1) / np.float32(127)
        factors = np.where(scales > 0, scales, np.float32(1))
        return Stored(np.rint(rows / factors[:, None]).astype(np.int8), scales)
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
        # To the nearest, ties to even: half of the lower part, and one more where the upper part is odd.
        return Stored(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), None)
    return Stored(rows.astype(_STORED[dtype]), None)


def load(values: npt.NDArray[np.generic], dtype: Dtype) -> npt.NDArray[np.float32]:
    """(n, D) stored values → (n, D) float32 of unit norm; rows of zeros (a sample without an embedding) stay zeros."""
    import torch  # noqa: PLC0415 - only when rows are read; numpy converts halves a number at a time

    # An int8's factor a row is undone by making the row unit.
    wide = torch.from_numpy(widened(values, dtype))
    unit: npt.NDArray[np.float32] = wide.div_(wide.norm(dim=1, keepdim=True).clamp_min_(1e-20)).numpy()
    return unit


def widened(values: npt.NDArray[np.generic], dtype: Dtype) -> npt.NDArray[np.float32]:
    """(n, D) float32 of its own, as stored; of int8 without the factor."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float16":
        import torch  # noqa: PLC0415

        # A copy of what is mapped read-only: torch refuses it.
        wide: npt.NDArray[np.float32] = torch.from_numpy(np.require(values, requirements="W")).float().numpy()
        return wide
    return values.astype(np.float32)
