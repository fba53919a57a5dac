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
_LINKS = frozenset({b"1", b"2"})
_OTHERS = frozenset({b"3", b"4", b"5", b"6"})
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_EXTENDED = frozenset({_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PIECE = 1 << 20
_SHOWN = 100
"""Characters of a name that cannot be."""
_MOST_OF_A_NAME = 1 << 20
"""Bytes of an extended header or long name: a larger one is damage, not a name."""


class TarError(ValueError):
    """The tar is damaged, or of a kind that is not read; the message says at which byte."""


class Member(NamedTuple):
    """A plain file within a tar: its name as written, without a leading `./`, and `size` bytes at `offset`.

    Its headers begin at `start`, the next member's at `end`; `checksum` is the header's. A `link`, hard or symbolic,
    has no bytes of its own.
    """

    name: str
    offset: int
    size: int
    start: int
    end: int
    checksum: int
    link: bool = False


class _Header(NamedTuple):
    """A header at byte `at`, without names and sizes that extended headers before it may have told instead."""

    at: int
    name: bytes
    size: int
    kind: bytes
    prefix: bytes
    checksum: int


def tar_members(tar: memoryview | bytes, *, whole: bool = False) -> Iterator[Member]:
    """Every plain file of a tar and every link, in order. Folders and devices are passed over.

    Raises `TarError` for a truncated or damaged tar, a sparse member, a name that is not UTF-8 or holds control
    characters, and for anything but zeros after the empty block that ends it; if it is to be `whole`, also where no
    such block is, which some writers leave out. The message says after which member.
    """
    last = ""
    try:
        for member in _members(memoryview(tar), whole):
            yield member
            last = member.name
    except TarError as error:
        raise TarError(f"{error} (after {last})" if last else str(error)) from None


def _members(view: memoryview, whole: bool) -> Iterator[Member]:
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
        if plain or header.kind in _LINKS:
            name = told.get("path") or _text(_joined(header), at)
            # Of old, a folder is an empty file with a slash behind its name.
            folder = plain and name.endswith("/")
            if folder and length:
                raise TarError(f"damaged at byte {at:,}: {name}, a folder by its name, has {length:,} bytes")
            if not folder:
                yield Member(_tidy(name), start, length, first, end, header.checksum, not plain)
        at, first = end, None
    if first is not None:
        raise TarError(f"truncated at byte {at:,}: a member should follow its extended header")
    if whole and at == len(view):
        raise TarError(f"ends after a member, at byte {at:,}")
    if (further := _first_not_zero(view, at)) is not None:
        raise TarError(
            f"ends at byte {at:,}, yet more stands at byte {further:,}: damaged, or several tars in one file"
        )


def _first_not_zero(view: memoryview, at: int) -> int | None:
    for start in range(at, len(view), _PIECE):
        piece = bytes(view[start : start + _PIECE])
        if rest := piece.lstrip(b"\0"):
            return start + len(piece) - len(rest)
    return None


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
    if bytes(view[start + header.size : start + _padded(header.size)]).strip(b"\0"):
        # Some readers take all up to the first zero.
        raise TarError(f"damaged at byte {header.at:,}: an extended header that is longer than it says")
    found: dict[str, str] = {}
    if header.kind in {_PAX, _PAX_GLOBAL}:
        found = _pax(data, header.at)
    elif header.kind == _LONG_NAME:
        found = {"path": _text(data.rstrip(b"\0"), header.at)}
    if header.kind == _PAX_GLOBAL:
        if found.keys() & {"path", "size"}:
            raise TarError(f"damaged at byte {header.at:,}: one name or size for all members")
        shared |= found
    elif twice := found.keys() & own.keys() & {"path", "size"}:
        # Readers differ in which of the two they take.
        raise TarError(f"damaged at byte {header.at:,}: two extended headers tell the {min(twice)} of one member")
    else:
        own |= found


def _check_kind(header: _Header, told: dict[str, str]) -> None:
    if header.kind == _SPARSE or any(name.startswith("GNU.sparse") for name in told):
        raise TarError(f"the member at byte {header.at:,} is sparse, which is not read")
    if header.kind not in _PLAIN | _LINKS | _OTHERS:
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
        raise TarError(f"the member at byte {at:,} has a name that is not UTF-8: {raw[:_SHOWN]!r}") from None
    if not _tidy(text) or _CONTROL.search(text):
        raise TarError(f"the member at byte {at:,} has no usable name: {text[:_SHOWN]!r}")
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
