"""Where the members of somebody else's tar lie: USTAR, GNU and PAX headers, read from mapped memory.

Only headers are looked at, at a quarter of the time that Python's tarfile takes (which takes damage for the end of the
archive). Formats: POSIX.1-2017 (`pax`), and "Basic Tar Format"
of the GNU tar manual.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_FIELDS = struct.Struct("100s 24x 12s 12x 8s c 100x 8s 80x 155s 12x")
_PLAIN = frozenset({b"0", b"\0", b"7"})
_OTHERS = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_EXTENDED = frozenset({_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MOST_OF_A_NAME = 1 << 20
"""Bytes of an extended header or long name: a larger one is damage, not a name."""


class TarError(ValueError):
    """The tar is damaged, or of a kind that is not read; the message says at which byte."""


class Member(NamedTuple):
    """A plain file within a tar: its name as written, without a leading `./`, and `size` bytes at `offset`.

    Its headers begin at `start`, the next member's at `end`; `checksum` is the header's.
    """

    name: str
    offset: int
    size: int
    start: int
    end: int
    checksum: int


class _Header(NamedTuple):
    """A header at byte `at`, without names and sizes that extended headers before it may have told instead."""

    at: int
    name: bytes
    size: int
    kind: bytes
    prefix: bytes
    checksum: int


def tar_members(tar: memoryview | bytes, *, whole: bool = False) -> Iterator[Member]:
    """Every plain file of a tar, in order. Folders, links and devices are passed over.

    Raises `TarError` for a truncated or damaged tar, a sparse member, and a name that is not UTF-8 or holds control
    characters; if it is to be `whole`, also where no empty block stands at the end, which some writers leave out. What
    follows that block is padding.
    """
    view = memoryview(tar)
    # Where the headers of the member begin that is being read; None between members.
    first: int | None = None
    at = 0
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    while (header := _header(view, at) if at < len(view) or not at else None) is not None:
        start, first = at + _BLOCK, at if first is None else first
        if header.kind in _EXTENDED:
            _tell(header, view, shared, own)
            at = start + _padded(header.size)
            continue
        told = shared | own if shared or own else own
        size = _decimal(told["size"], at) if "size" in told else header.size
        plain = header.kind in _PLAIN
        if told or not plain:
            _check_kind(header, told)
            own = {}
        # Folders and links may name a size, and have no bytes.
        length = size if plain else 0
        if start + length > len(view):
            there = len(view) - start
            raise TarError(f"truncated: the member at byte {at:,} has {length:,} bytes, {there:,} are there")
        end = min(start + _padded(length), len(view))
        if plain:
            name = told.get("path") or _text(_joined(header), at)
            if not name.endswith("/"):
                yield Member(_tidy(name), start, length, first, end, header.checksum)
        at, first = end, None
    if first is not None:
        raise TarError(f"truncated at byte {at:,}: a member should follow its extended header")
    if whole and at == len(view):
        raise TarError(f"ends after a member, at byte {at:,}")


def _header(view: memoryview, at: int) -> _Header | None:
    """The header at a byte; None for the empty block that ends a tar."""
    block = bytes(view[at : at + _BLOCK])
    if len(block) < _BLOCK:
        raise TarError(f"truncated at byte {at:,}: a header should stand there")
    if block == _ZEROS:
        return None
    name, size, checksum, kind, magic, prefix = _FIELDS.unpack(block)
    told = checksum.strip(b"\0 ")
    # The field itself counts as eight spaces. The lower half of Adler-32 is a sum plus one, fifty times as fast.
    added = sum(checksum) - 8 * 32 + 1
    number = int(told, 8) if told and not told.strip(b"01234567") else -1
    if number < 0 or (number + added) % 65521 != zlib.adler32(block) & 0xFFFF:
        raise TarError(f"damaged at byte {at:,}: no header of a tar stands there")
    return _Header(at, name, _number(size, at), kind, prefix if magic.startswith(b"ustar\0") else b"", number)


def _tell(header: _Header, view: memoryview, shared: dict[str, str], own: dict[str, str]) -> None:
    """Add what an extended header tells of the members after it, or of the next one alone."""
    start = header.at + _BLOCK
    if header.size > _MOST_OF_A_NAME or start + header.size > len(view):
        raise TarError(f"damaged at byte {header.at:,}: an extended header of {header.size:,} bytes")
    data = bytes(view[start : start + header.size])
    if header.kind == _PAX_GLOBAL:
        shared |= _pax(data, header.at)
    elif header.kind == _PAX:
        own |= _pax(data, header.at)
    elif header.kind == _LONG_NAME:
        own["path"] = _text(data.rstrip(b"\0"), header.at)


def _check_kind(header: _Header, told: dict[str, str]) -> None:
    if header.kind == _SPARSE or any(name.startswith("GNU.sparse") for name in told):
        raise TarError(f"the member at byte {header.at:,} is sparse, which is not read")
    if header.kind not in _PLAIN and header.kind not in _OTHERS:
        raise TarError(f"damaged at byte {header.at:,}: a member of unknown kind {header.kind!r}")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _joined(header: _Header) -> bytes:
    name, prefix = header.name.split(b"\0", 1)[0], header.prefix.split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix else name


def _tidy(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name


def _text(raw: bytes, at: int) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise TarError(f"the member at byte {at:,} has a name that is not UTF-8: {raw!r}") from None
    if not text or _CONTROL.search(text):
        raise TarError(f"the member at byte {at:,} has no usable name: {text!r}")
    return text


def _number(raw: bytes, at: int) -> int:
    if raw[0] & 0x80:
        # GNU's, for what is too large for eleven octal digits.
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        if raw[0] == 0xFF:
            raise TarError(f"damaged at byte {at:,}: a negative size")
        return value
    text = raw.strip(b"\0 ")
    if text.strip(b"01234567"):
        raise TarError(f"damaged at byte {at:,}: the size {text!r} is no number")
    return int(text or b"0", 8)


def _decimal(text: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TarError(f"damaged at byte {at:,}: the size {text!r} is no number")
    return int(text)


def _pax(data: bytes, at: int) -> dict[str, str]:
    """`LENGTH NAME=VALUE\\n` records; only what bears on names and sizes is kept."""
    found: dict[str, str] = {}
    while data:
        digits, _, rest = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[:length]
        name, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not rest or len(record) != length or not equals or not record.endswith(b"\n"):
            raise TarError(f"damaged at byte {at:,}: no extended header stands there")
        if name in (b"path", b"size"):
            found[name.decode()] = _text(value, at)
        elif name.startswith(b"GNU.sparse"):
            found[name.decode("latin-1")] = ""
        data = data[length:]
    return found
