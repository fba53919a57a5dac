"""Which kind of file an image is, by its first bytes."""

from __future__ import annotations

import re

_KINDS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WebP", rb"RIFF....WEBP"),
    ("GIF", rb"GIF8[79]a"),
    ("AVIF or HEIF", rb"....ftyp"),
    ("BMP", rb"BM"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("JPEG 2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
)
_ANY = re.compile(b"|".join(b"(%s)" % pattern for _, pattern in _KINDS), re.DOTALL)
_UNREAD = (
    ("it is empty", rb"\Z"),
    ("a web page", rb"\s*<(?i:!doctype html|html)"),
    ("SVG", rb"\s*<(?:svg|(?:\?xml|!--|!DOCTYPE svg).{,1000}?<svg)"),
    ("HEIC", rb"....ftyp(?!.{,56}avi[fs])(?:he[iv]|mif1|msf1)"),
    ("a video", rb"....ftyp(?!.{,56}avi[fs])|\x1a\x45\xdf\xa3"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("an icon", rb"\0\0\x01\0"),
    ("PDF", rb"%PDF"),
)
"""What lists and folders have in place of pictures, or as pictures that are not read."""
NO_IMAGE = "no image"
ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""What names of pictures end in, in lower case: of the kinds that are read, and of HEIC, which is refused by name."""


def kind_of(body: bytes) -> str:
    """The name of the format; `NO_IMAGE` for what does not begin as any of them."""
    found = _ANY.match(body)
    return NO_IMAGE if found is None or found.lastindex is None else _KINDS[found.lastindex - 1][0]


def unidentified(body: bytes) -> str:
    """Why there is no picture in these bytes, with what they seem to be."""
    known = (name for name, pattern in _UNREAD if re.match(pattern, body[:2000], re.DOTALL))
    name = next(known, None)
    return "cannot identify image file" if name is None else f"cannot identify image file ({name})"
