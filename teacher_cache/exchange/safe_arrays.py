"""Arrays out of files that somebody else made: nothing in them is executed, and none takes more memory than allowed.

A sample of DataCompDR is 0.3 MB of numbers; the limits here leave room for ensembles a hundred times as large.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import pickle
import struct
import zipfile
import zlib

import numpy as np
import numpy.typing as npt

LIMIT = 64 * 2**20
"""Bytes that the arrays of one sample may take, unpacked."""

Arrays = dict[str, npt.NDArray[np.float32]]
"""Name → (rows, D), finite."""

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError)
"""What unpacking raises; RuntimeError is an encrypted entry, or a packing that Python does not know."""


def read_npz(data: bytes) -> Arrays:
    """The arrays of an `.npz` file. Raises `ValueError` if it is damaged, too large, or holds objects."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as held:
            if sum(entry.file_size for entry in held.infolist()) > LIMIT:
                raise ValueError(f"it unpacks to more than {LIMIT} bytes")
            # The reader of an entry stops at the size that was added up, whatever the packed bytes go on to say.
            parts = {entry.filename.removesuffix(".npy"): held.read(entry) for entry in held.infolist()}
    except _DAMAGED as error:
        raise ValueError(f"it is damaged ({error})") from None
    return {name: _checked(name, _npy(name, part)) for name, part in parts.items()}


def _npy(name: str, data: bytes) -> npt.NDArray[np.generic]:
    """One array; `np.load` would reserve what the header promises before it looks at what is there."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"{name} has npy version {version}")
    try:
        shape, by_column, dtype = read_header[version](file)
    except Exception as error:  # noqa: BLE001 - numpy parses it as Python, which fails in many ways
        raise ValueError(f"{name} has a damaged header ({error})") from None
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are never read")
    rest = data[file.tell() :]
    if any(type(side) is not int for side in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"{name} of shape {shape} and type {dtype} cannot be {len(rest)} bytes")
    flat = np.frombuffer(rest, dtype)
    return flat.reshape(shape[::-1]).T if by_column else flat.reshape(shape)


def read_pth_gz(data: bytes) -> Arrays:
    """The tensors of a gzipped `torch.save` of a dictionary. Raises `ValueError` as `read_npz` does, and for any pickle
    that asks for more than tensors.
    """
    import torch  # noqa: PLC0415 - slow to load, and only this form needs it

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            plain = packed.read(LIMIT + 1)
    except _DAMAGED as error:
        raise ValueError(f"it is damaged ({error})") from None
    if len(plain) > LIMIT:
        raise ValueError(f"it unpacks to more than {LIMIT} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(plain)) as held:
            entries = held.infolist()
    except _DAMAGED as error:
        raise ValueError(f"it is no file of torch.save ({error})") from None
    # torch.save packs nothing: an entry that is packed could hold a second bomb.
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > LIMIT for entry in entries):
        raise ValueError("it is no file of torch.save (its entries are packed)")
    try:
        loaded = torch.load(io.BytesIO(plain), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = str(error).split("\n", maxsplit=1)[0]
        raise ValueError(f"its pickle asks for more than tensors and was not run ({asked})") from None
    except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"it is damaged ({error})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"it holds a {type(loaded).__name__}, not a dictionary of tensors")  # noqa: TRY004 - the file's
    found: Arrays = {}
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{name} is no plain tensor")
        # Strides of 0 make a large tensor out of few bytes.
        if tensor.numel() * 4 > LIMIT or tensor.is_complex():
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}")
        found[str(name)] = _checked(str(name), tensor.detach().float().numpy())
    return found


def _checked(name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}, wanted are rows of numbers")
    wide = array.astype(np.float32)
    if not np.isfinite(wide).all():
        raise ValueError(f"{name} is not finite")
    return wide
