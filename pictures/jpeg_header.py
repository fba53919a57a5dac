"""What a JPEG says of itself before its pixels, and how much work its scans are; nothing is decoded.

Decoders are given the headers that they need and never the rest (EXIF, comments, colour profiles), which may be of any
number and length.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from pictures.refusal import RefusedError

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_NONE = frozenset([0x00, 0xFF])
"""What is no marker: stuffing, and padding before one."""
_IN_DATA = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker among entropy-coded bytes, where restart markers are part of the data."""
_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])
"""Markers that no length follows."""
_SCAN, _END = 0xDA, 0xD9
_FRAMES = frozenset([*range(0xC0, 0xD0)]) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
USUAL_FRAMES = frozenset([0xC0, 0xC1, 0xC2])
"""What browsers show: Huffman codes, baseline or progressive."""
_TABLES = frozenset([0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE])
"""Tables, restart interval, and the two segments that tell the colour space."""
_NEEDED = _FRAMES | _TABLES | {_SCAN}
_MOST_SEGMENTS = 2000
_MOST_SCANS = 500
_MOST_VISITS = 20_000_000
"""How often all scans together may go over a block of 8x8 samples: a second of work. A usual progressive file has 8
visits for each block of its pixels in 4:2:0, 14 in 4:4:4; this is 13 at 100 megapixels, more for smaller ones."""
_FEW_VISITS = 5_000_000


class JpegHeader(NamedTuple):
    """Sizes in pixels; `sampling` has each colour's number, samples across and samples down.

    `exif` and `xmp` are their segments without names, `b""` where there are none. `several`: other pictures follow
    (MPO). `scans` is 1 or a number that may be too large; `start` is where the first one's data begins.
    """

    frame: int
    width: int
    height: int
    sampling: tuple[tuple[int, int, int], ...]
    exif: bytes
    xmp: bytes
    several: bool
    scans: int
    start: int
    head: bytes

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def coefficients(self) -> int:
        """The samples of all colours together."""
        finest = max(h for _, h, _ in self.sampling) * max(v for _, _, v in self.sampling)
        return self.pixels * sum(h * v for _, h, v in self.sampling) // finest

    @property
    def is_cheap(self) -> bool:
        """Whether it may be decoded twice."""
        return self.scans * sum(self._blocks(h, v) for _, h, v in self.sampling) <= _FEW_VISITS or self.scans == 1

    def check_work(self, body: bytes) -> None:
        """Refuse a file whose scans go over its pixels too often: an empty scan is a few bytes, and seconds of work."""
        blocks = {number: self._blocks(h, v) for number, h, v in self.sampling}
        every = sum(blocks.values())
        if self.scans <= _MOST_SCANS and self.scans * every <= _MOST_VISITS:
            return
        scans, visits, at = 1, every, self.start
        for _ in range(_MOST_SEGMENTS + 4 * _MOST_SCANS):
            if scans > _MOST_SCANS or visits > _MOST_VISITS:
                break
            found = _IN_DATA.search(body, at)
            if found is None or body[found.end() - 1] == _END:
                return
            at = found.end()
            if body[at - 1] == _SCAN:
                colours = body[at + 3 : at + 3 + 2 * body[at + 2] : 2] if at + 2 < len(body) else b""
                scans += 1
                visits += sum(blocks.get(number, every) for number in colours)
            if body[at - 1] not in _ALONE:
                at += int.from_bytes(body[at : at + 2], "big")
        raise RefusedError("bomb", f"a JPEG whose scans go over its {self.pixels} pixels too often")

    def without_last_bits(self, body: bytes) -> bytes:
        """A progressive file without the scan that tells the last bit of each coefficient of its brightness, which is a
        third of its bytes and of the work. The file as it is where no such scan is, or no end of the picture.
        """
        if self.frame not in _PROGRESSIVE:
            return body
        last = bytes([0xFF, _SCAN, 0, 8, 1, self.sampling[0][0]])
        at, cut, inside = self.start, (0, 0), False
        for _ in range(4 * _MOST_SCANS):
            found = _IN_DATA.search(body, at)
            if found is None:
                return body
            begin, at = found.start(), found.end()
            if inside:
                cut, inside = (cut[0], begin), False
            marker = body[at - 1]
            if marker == _END:
                return body[: cut[0]] + body[cut[1] :] if cut[1] else body
            # All but the constant coefficient, from their last bit but one to the last.
            if body.startswith(last, begin) and body[begin + 7 : begin + 10] == b"\x01\x3f\x10":
                cut, inside = (begin, 0), True
            if marker not in _ALONE:
                at += int.from_bytes(body[at : at + 2], "big")
        return body

    def _blocks(self, across: int, down: int) -> int:
        most_across = max(h for _, h, _ in self.sampling)
        most_down = max(v for _, _, v in self.sampling)
        return -(-self.width * across // (8 * most_across)) * -(-self.height * down // (8 * most_down))


def read_header(body: bytes) -> JpegHeader:  # noqa: PLR0912 - a branch a kind of segment, read for every image
    """What stands before the pixels. Raises `RefusedError` where that is no JPEG's header."""
    frame: tuple[int, int, int, tuple[tuple[int, int, int], ...]] | None = None
    exif = xmp = b""
    several = False
    pieces = [b"\xff\xd8"]
    at, size = 2, len(body)
    for _ in range(_MOST_SEGMENTS):
        # One follows the other, nearly always.
        marker = body[at + 1] if at + 1 < size and body[at] == 0xFF else 0
        if marker in _NONE:
            found = _MARKER.search(body, at)
            if found is None:
                raise RefusedError("not_an_image", "a JPEG that ends in its header")
            at, marker = found.end() - 2, body[found.end() - 1]
        at += 2
        if marker in _ALONE:
            continue
        end = at + (body[at] << 8 | body[at + 1]) if at + 2 <= size else at
        if not at + 2 <= end <= size:
            raise RefusedError("not_an_image", "a JPEG that ends in its header")
        if marker in _NEEDED:
            pieces.append(body[at - 2 : end])
        if marker in _TABLES:
            pass
        elif marker in _FRAMES:
            if frame is not None:
                raise RefusedError("not_an_image", "a JPEG with more than one frame")
            frame = _frame(marker, body[at + 2 : end])
        elif marker == 0xE1 and not exif and body.startswith(b"Exif\0\0", at + 2):
            exif = body[at + 8 : end]
        elif marker == 0xE1 and not xmp and body.startswith(b"http://ns.adobe.com/xap/1.0/\0", at + 2):
            xmp = body[at + 31 : end]
        elif marker == 0xE2 and body.startswith(b"MPF\0", at + 2):
            several = True
        elif marker == _SCAN:
            if frame is None:
                raise RefusedError("not_an_image", "a JPEG without a frame")
            kind, width, height, sampling = frame
            once = kind not in _PROGRESSIVE and body[at + 2 : at + 3] == bytes([len(sampling)])
            # No data looks like the marker of a scan, though what follows the picture may.
            scans = 1 if once else 1 + body.count(b"\xff\xda", end)
            return JpegHeader(kind, width, height, sampling, exif, xmp, several, scans, end, b"".join(pieces))
        at = end
    raise RefusedError("bomb", f"a JPEG with more than {_MOST_SEGMENTS} segments before its pixels")


def _frame(marker: int, data: bytes) -> tuple[int, int, int, tuple[tuple[int, int, int], ...]]:
    if len(data) < 6 or len(data) < 6 + 3 * data[5]:
        raise RefusedError("not_an_image", "a JPEG that ends in its header")
    bits, height, width, colours = struct.unpack_from(">BHHB", data)
    if bits != 8 or colours not in {1, 3, 4} or not width or not height:
        raise RefusedError("not_an_image", f"a JPEG of {width}x{height} pixels in {colours} colours of {bits} bits")
    sampling = tuple([(data[i], data[i + 1] >> 4, data[i + 1] & 15) for i in range(6, 6 + 3 * colours, 3)])
    if not all(0 < across < 5 and 0 < down < 5 for _, across, down in sampling):
        raise RefusedError("not_an_image", "a JPEG whose colours have impossible sampling factors")
    return marker, width, height, sampling
