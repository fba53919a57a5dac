"""Image files from the internet, read strictly: which kind a file is, what its header says, and its pixels.

What is truncated, too large or of an unwanted kind is refused with its cause (`RefusedError`), before it costs anything
where its header tells. Ingest reads originals through `opening.py`, the cache its views through the parts below it.

Read `opening.py` first (magic numbers; bytes to `Jpeg` or `Other`), then `jpeg_header.py` and `containers.py` (what a
header says, nothing decoded), `turbo.py` and `pillow.py` (the decoders), `jpeg.py` and `others.py` (their pixels).
"""

from pictures.refusal import RefusedError

__all__ = ["RefusedError"]
