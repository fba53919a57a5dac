"""What the user chooses for an ingest run. Everything that changes the output is in `identity`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from PIL import Image

from shards import UserError

RESIZE_MODES = ("keep_ratio", "keep_ratio_largest", "center_crop", "border", "no")
_PILLOW_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Pillow opens no image with more."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Where the rows come from. `paths` may hold globs and URLs; their order is the rows' order.

    `format`: "cc3m" (headerless TSV: caption, URL), "csv", "tsv", "parquet", or "auto" (by the file's ending).
    `keep` names further columns that travel into the ledger and each sample's JSON.
    """

    paths: tuple[str, ...]
    format: Literal["auto", "cc3m", "csv", "tsv", "parquet"] = "auto"
    url_column: str = "url"
    caption_column: str = "caption"
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are checked and stored.

    `size` in pixels and `resize_mode` as in img2dataset (keep_ratio: the shorter side becomes `size`; images are
    never enlarged). JPEG at `quality`. Files over `max_bytes` and images over `max_pixels` are
    refused once they are here: img2dataset's download itself has no limit.
    """

    size: int = 256
    resize_mode: str = "keep_ratio"
    quality: int = 95
    max_bytes: int = 50_000_000
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise UserError(f"resize mode {self.resize_mode!r} is unknown", do=f"Use one of {', '.join(RESIZE_MODES)}")
        if self.size < 1 or not 1 <= self.quality <= 100:
            raise UserError(f"image size {self.size} or quality {self.quality} is out of range")
        if self.max_bytes < 1 or not 1 <= self.max_pixels <= _PILLOW_PIXELS:
            raise UserError(
                f"a limit of {self.max_bytes} bytes or {self.max_pixels} pixels is out of range",
                do=f"Both are at least 1, and pixels at most {_PILLOW_PIXELS}",
            )


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """A whole ingest run. `timeout` is in seconds for each network step of one URL; `retries` are further tries."""

    source: SourceSettings
    out: str
    name: str
    shard_size: int = 1000
    image: ImageSettings = field(default_factory=ImageSettings)
    timeout: float = 10.0
    retries: int = 1
    threads: int = 32

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise UserError(f"shard size {self.shard_size} is not positive")
        if not 0 < self.timeout <= 3600 or self.retries < 0 or self.threads < 1:
            raise UserError(
                f"timeout {self.timeout:g}, retries {self.retries} or threads {self.threads} is out of range",
                do="The timeout is above 0 and at most 3600 seconds, retries at least 0, threads at least 1",
            )

    def identity(self) -> dict[str, Any]:
        """What decides the output: a run with another identity is another dataset.

        Paths are left out (the inputs' hashes stand for them), and so is what only changes how long work takes.
        """
        source = asdict(self.source)
        del source["paths"]
        source["keep"] = list(self.source.keep)
        return {"name": self.name, "shard_size": self.shard_size, "source": source, "image": asdict(self.image)}
