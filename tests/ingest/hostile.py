"""Files made to cost a decoder time or memory, each by another way: name → body."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

MOST_BYTES = 50_000_000


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def plain(kind: str, side: int = 300, **options: Any) -> bytes:
    return encode(Image.new("RGB", (side, side), (200, 30, 30)), kind, **options)


def noise(width: int, height: int) -> Image.Image:
    tile = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    return Image.fromarray(np.tile(tile, (-(-height // 500), -(-width // 500), 1))[:height, :width])


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def with_header(*segments: bytes) -> bytes:
    body = plain("JPEG")
    return body[:2] + b"".join(segments) + body[2:]


def ifd(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """Of (tag, type, count, value or offset), little-endian."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def exif(block: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<I", 8) + block)


def overlapping_tags(tail: int, kind: int = 2) -> bytes:
    """Five thousand tags that all claim the same bytes: those of the segment, and `tail` behind the picture."""
    tags = [((0xB000 if tag < 0x1000 else 0x1000) + tag, kind, max(tail, 60_000), 8) for tag in range(5000)]
    return with_header(exif(ifd(tags))) + b"A" * tail


def chained_directories() -> bytes:
    """Directories that begin at every second byte, each with as many entries as fit, and follow one another."""
    count, most = 30_000, 5000
    block = bytearray(struct.pack("<H", most) * (count // 2 + most * 6))
    return with_header(exif(bytes(block[:65_000])))


def branching_directories() -> bytes:
    """Twenty directories with two pointers each to the next one: a million visits."""
    block = b""
    for level in range(20):
        following = 8 + 30 * (level + 1)
        block += ifd([(0x8769, 4, 1, following), (0x8825, 4, 1, following)])
    return with_header(exif(block))


def bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def progressive(side: int, scans: int, *, valid: bool) -> bytes:
    """Grey and blank; each scan is a hundred bytes, and a walk over all blocks for libjpeg."""

    def codes(kind: int, symbols: list[int]) -> bytes:
        return segment(0xC4, bytes([kind << 4, 0, len(symbols)]) + bytes(14) + bytes(symbols))

    def run(blocks: int) -> str:
        return "00" + format(blocks - 16_384, "014b")

    blocks = (-(-side // 8)) ** 2
    full, rest = divmod(blocks, 32_767)
    empty = bits(run(32_767) * full + (run(rest) if rest >= 16_384 else "01" * rest))
    body = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    body += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0") + codes(0, [0]) + codes(1, [0xE0, 0])
    body += segment(0xDA, bytes([1, 1, 0, 0, 0, 13])) + bits("00" * blocks)
    body += segment(0xDA, bytes([1, 1, 0, 1, 63, 13])) + empty
    for number in range(scans - 2):
        step = (13 - number) << 4 | 12 - number if valid and number < 13 else 0x10
        body += segment(0xDA, bytes([1, 1, 0, 1, 63, step])) + empty
    return body + b"\xff\xd9"


def arithmetic(side: int) -> bytes:
    """Arithmetic coding: a few bytes stand for any number of blocks, each decoded bit by bit."""
    body = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    body += segment(0xC9, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    return body + segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + bytes(1000) + b"\xff\xd9"


def between_scans(filler: bytes) -> bytes:
    """A progressive JPEG with `filler` before its last scan, as often as it fits."""
    body = plain("JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    return body[:last] + filler * ((MOST_BYTES - len(body)) // len(filler)) + body[last:]


# PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, pixels: list[bytes], *notes: bytes, lace: int = 0) -> bytes:
    """`pixels` are the data of the IDAT chunks, `colour` PNG's colour type."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace))
    data = b"".join(chunk(b"IDAT", part) for part in pixels)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(notes) + data + chunk(b"IEND", b"")


def blank(length: int, rows: int, filter: int = 0) -> bytes:
    """Compressed lines of `length` bytes."""
    packer = zlib.compressobj(9)
    line = bytes([filter]) + bytes(length)
    return b"".join(packer.compress(line) for _ in range(rows)) + packer.flush()


SMALL = blank(3 * 300, 300)


def png_with(*notes: bytes) -> bytes:
    return png(300, 300, 8, 2, [SMALL], *notes)


# Others


def gif_with(block: bytes) -> bytes:
    body = plain("GIF")
    image = 13 + (3 << (body[10] & 7) + 1 if body[10] & 128 else 0)
    return body[:image] + block * ((MOST_BYTES - len(body)) // len(block)) + body[image:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    data = b"".join(kind + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for kind, part in chunks)
    return b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data


def webp_of_frames(count: int) -> bytes:
    frame = plain("WEBP", 16)[12:]
    size = b"".join(struct.pack("<I", value)[:3] for value in (0, 0, 15, 15, 1))
    header = struct.pack("<I", 2) + struct.pack("<I", 15)[:3] * 2
    return riff((b"VP8X", header), (b"ANIM", bytes(6)), *[(b"ANMF", size + b"\0" + frame)] * count)


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """An RGB image of 300x300 with these entries besides its own; `tail` begins at byte 1,000,000."""
    own = [(256, 3, 1, 300), (257, 3, 1, 300), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    mine = {entry[0] for entry in entries}
    block = ifd(sorted([entry for entry in own if entry[0] not in mine] + entries))
    head = b"II*\0" + struct.pack("<I", 8) + block
    return head.ljust(1_000_000, b"\0") + tail


HOSTILE: dict[str, Callable[[], bytes]] = {
    "exif: tags that overlap": lambda: overlapping_tags(0),
    "exif: tags that claim the file": lambda: overlapping_tags(40_000_000),
    "exif: numbers that overlap": lambda: overlapping_tags(0, kind=3),
    "exif: directories in a chain": chained_directories,
    "exif: directories that branch": branching_directories,
    "exif: many segments": lambda: with_header(*[exif(bytes(65_000))] * 760),
    "jpeg: many comments": lambda: with_header(segment(0xFE, b"") * 12_000_000),
    "jpeg: nothing but fill bytes": lambda: b"\xff\xd8\xff" + b"\xff" * 49_000_000,
    "jpeg: profile in pieces": lambda: with_header(*[segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))] * 800),
    "jpeg: mpo directory": lambda: with_header(
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + ifd([(0xB000 + tag, 7, 60_000, 8) for tag in range(5000)]))
    ),
    "jpeg: empty scans": lambda: progressive(8000, 495, valid=True),
    "jpeg: a hundred megapixels, many scans": lambda: progressive(10_000, 12, valid=True),
    "jpeg: scans in no order": lambda: progressive(10_000, 12, valid=False),
    "jpeg: small, scans in no order": lambda: progressive(2000, 320, valid=False),
    "jpeg: arithmetic coding": lambda: arithmetic(10_000),
    "jpeg: tables between scans": lambda: between_scans(segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\0")),
    "jpeg: comments between scans": lambda: between_scans(segment(0xFE, b"")),
    "jpeg: noise of 50 MB": lambda: encode(noise(3400, 3400), "JPEG", quality=100, subsampling=0),
    "jpeg: hundred megapixels": lambda: encode(Image.new("RGB", (10_000, 10_000)), "JPEG"),
    "jpeg: restart at every block": lambda: encode(
        Image.new("RGB", (8000, 8000)), "JPEG", restart_marker_blocks=1, subsampling=0
    ),
    "png: text that unpacks": lambda: png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(400_000_000)))),
    "png: profile that unpacks": lambda: png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(400_000_000)))),
    "png: many texts": lambda: png_with(chunk(b"tEXt", b"a\0b") * 3_300_000),
    "png: many pieces": lambda: png(300, 300, 8, 2, [*[b""] * 4_000_000, SMALL]),
    "png: pieces of a byte": lambda: png(
        300,
        300,
        8,
        2,
        [bytes([byte]) for byte in zlib.compress(np.random.default_rng(0).bytes(300 * 901).replace(b"\5", b"\0"), 0)][
            :40_000
        ],
    ),
    "png: hundred megapixels": lambda: png(10_000, 10_000, 8, 2, [blank(30_000, 10_000, 4)]),
    "png: seven passes": lambda: png(10_000, 10_000, 8, 2, [blank(30_000, 18_750, 4)], lace=1),
    "png: sixteen bits": lambda: png(8000, 8000, 16, 2, [blank(48_000, 8000, 4)]),
    "png: transparent": lambda: png(6000, 6000, 8, 6, [blank(24_000, 6000, 4)]),
    "png: data behind its pixels": lambda: png(300, 300, 8, 2, [SMALL + zlib.compress(bytes(10**9))]),
    "gif: many comments": lambda: gif_with(b"!\xfe\1a\0"),
    "gif: one comment": lambda: gif_with(b"!\xfe" + b"\1a" * 10_000_000 + b"\0"),
    "gif: hundred megapixels": lambda: encode(Image.new("P", (10_000, 10_000)), "GIF"),
    "webp: hundred megapixels": lambda: encode(Image.new("RGB", (16_000, 6000)), "WEBP", lossless=True, quality=0),
    "webp: twenty megapixels of noise": lambda: encode(noise(5000, 4000), "WEBP", quality=50, method=0),
    "webp: lossless noise": lambda: encode(noise(4200, 3800), "WEBP", lossless=True, quality=0, method=0),
    "webp: many frames": lambda: webp_of_frames(49_000),
    "webp: too many frames": lambda: webp_of_frames(400_000),
    "tiff: tags that overlap": lambda: tiff(
        [(273, 4, 1, 1_000_000), (279, 4, 1, 90_000)] + [(1000 + tag, 7, 40_000_000, 8) for tag in range(20_000)],
        bytes(40_000_000),
    ),
    "tiff: many strips": lambda: tiff(
        [(273, 4, 6_000_000, 1_000_000), (279, 4, 6_000_000, 1_000_000), (278, 3, 1, 1)],
        struct.pack("<I", 1_000_000) * 6_000_000,
    ),
    "tiff: deflate": lambda: encode(Image.new("RGB", (7000, 7000)), "TIFF", compression="tiff_adobe_deflate"),
    "jpeg 2000: tiny tiles": lambda: plain("JPEG2000", 1000, tile_size=(4, 4), num_resolutions=3),
    "jpeg 2000: noise": lambda: encode(noise(1500, 1500), "JPEG2000"),
    "jpeg 2000: blank": lambda: encode(Image.new("RGB", (4000, 4000)), "JPEG2000"),
    "avif: twenty megapixels of noise": lambda: encode(noise(4000, 3000), "AVIF", speed=10, quality=90),
    "ppm: one comment": lambda: b"P6\n#" + b"a" * 49_000_000,
    "ppm: numbers": lambda: b"P3 4000 4000 255\n" + b"0 " * 24_000_000,
    "bmp: hundred megapixels": lambda: (
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 10_000, 10_000, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
}
