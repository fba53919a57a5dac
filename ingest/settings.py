"""What the user chooses for an ingest run. Everything that changes the output is in `identity`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from PIL import Image

from shards import UserError

RESIZE_MODES = ("keep_ratio", "keep_ratio_largest", "center_crop", "border", "no")
Format = Literal[
    "auto", "cc3m", "cc12m", "yfcc15m", "laion", "datacomp", "txt", "csv", "tsv", "jsonl", "json", "parquet"
]
FORMATS: tuple[Format, ...] = get_args(Format)
OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex", "none")
"""The words of `X-Robots-Tag` that keep an image out of a dataset; `none` is short for `noindex, nofollow`."""
PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
USER_AGENT = "clipstill/0.1 (makes image-text datasets)"
_PILLOW_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Pillow opens no image with more."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Where the rows come from. `paths` may hold folders, globs and URLs; their order is the rows' order.

    `format`: a published list's ("cc3m", "cc12m", "yfcc15m", "laion", "datacomp"), a kind of file ("txt", "csv",
    "tsv", "jsonl", "json", "parquet"), or "auto" (by the file's ending). The columns' names are the list's own unless
    given; `columns` names them all, in order, for CSV and TSV that do not begin with them. `quoted`: TSV whose fields
    may be quoted, as CSV's. `encoding`: of text, by Python's name. Without `captions` there are images alone.
    `keep` names further columns that travel into the ledger and each sample's JSON. `hash_column` holds the hash that
    each original must have. `where` holds conditions on columns, such as `similarity >= 0.3`; rows that do not meet
    them all are not fetched. `subset` is the list of YFCC15M's photos, `paths` then YFCC100M's own files.
    With `files` the URL column has paths, relative ones below `root` (the list's own folder unless given), or in
    Parquet the images' bytes.
    """

    paths: tuple[str, ...]
    format: Format = "auto"
    url_column: str | None = None
    caption_column: str | None = None
    keep: tuple[str, ...] = ()
    hash_column: str | None = None
    where: tuple[str, ...] = ()
    subset: str | None = None
    columns: tuple[str, ...] = ()
    quoted: bool = False
    encoding: str = "utf-8"
    captions: bool = True
    files: bool = False
    root: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are checked and stored.

    `size` in pixels and `resize_mode` as in img2dataset (keep_ratio: the shorter side becomes `size`). Images are
    enlarged only with `enlarge`. `format` is what they are stored as, `quality` JPEG's and WebP's (1 to 100) or PNG's
    compression (0 to 9). `exact`: decode every pixel and average over areas, as img2dataset does, instead of decoding
    JPEG at a reduced scale. `skip_reencode`: store an original that needs no change as it came. Originals with a
    shorter side below `min_size`, more than `max_area` pixels, or sides further apart than `max_aspect_ratio` are
    filtered out; files over `max_bytes` and images over `max_pixels` are refused. `hash`: of the original bytes.
    `exif`: keep it, as JSON. `blur_faces`: the column with the boxes of faces (`faces.py`), which are blurred.
    """

    size: int = 256
    resize_mode: str = "keep_ratio"
    enlarge: bool = False
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = 95
    exact: bool = False
    skip_reencode: bool = False
    min_size: int = 0
    max_area: int | None = None
    max_aspect_ratio: float | None = None
    max_bytes: int = 50_000_000
    max_pixels: int = 100_000_000
    hash: Literal["md5", "sha256", "sha512"] = "sha256"
    exif: bool = True
    blur_faces: str | None = None

    def __post_init__(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise UserError(f"resize mode {self.resize_mode!r} is unknown", do=f"Use one of {', '.join(RESIZE_MODES)}")
        low, high = (0, 9) if self.format == "png" else (1, 100)
        if self.size < 1 or not low <= self.quality <= high:
            raise UserError(
                f"image size {self.size} or quality {self.quality} is out of range",
                do=f"The size is at least 1, the quality of {self.format} {low} to {high}",
            )
        if self.max_bytes < 1 or not 1 <= self.max_pixels <= _PILLOW_PIXELS:
            raise UserError(
                f"a limit of {self.max_bytes} bytes or {self.max_pixels} pixels is out of range",
                do=f"Both are at least 1, and pixels at most {_PILLOW_PIXELS}",
            )
        area, ratio = self.max_area, self.max_aspect_ratio
        if self.min_size < 0 or (area is not None and area < 1) or (ratio is not None and not ratio >= 1):
            raise UserError(
                f"a filter by size {self.min_size}, area {area} or aspect ratio {ratio} is out of range",
                do="The size is at least 0, the area and the aspect ratio at least 1",
            )


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """How URLs are fetched. Nothing here is part of a dataset's identity.

    `deadline` is in seconds for one URL with everything: redirects, body, waits and further tries; `connect_timeout`
    for one connection. `retries` are further tries, made only after what may pass. `connections` are open at once in
    a worker, `per_host` of them to one host, and a worker begins `per_host_rate` requests a second to it (0: any
    number). `allow_addresses` are addresses or networks that may be fetched from although they are not public.
    `opt_outs`: the words of `X-Robots-Tag` to honour; `robots_txt`: honour each host's robots.txt. `user_agent` is sent
    as it is; a site's rules for its first word before "/" apply to us. `ca_file`: certificates to trust instead of the
    usual ones. `proxy`: the URL of what to connect through; it looks names up, and which addresses it connects to
    nobody checks.
    """

    deadline: float = 30.0
    connect_timeout: float = 10.0
    retries: int = 2
    connections: int = 128
    per_host: int = 32
    per_host_rate: float = 100.0
    max_redirects: int = 10
    allow_addresses: tuple[str, ...] = ()
    opt_outs: tuple[str, ...] = OPT_OUTS
    robots_txt: bool = False
    user_agent: str = USER_AGENT
    ca_file: str | None = None
    # It may have a password in it, which belongs in no log.
    proxy: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.connect_timeout <= 3600 or not 0 < self.deadline <= 3600:
            raise UserError(
                f"a deadline of {self.deadline:g} s or connect time-out of {self.connect_timeout:g} s is out of range",
                do="Both are above 0 and at most 3600",
            )
        if min(self.connections, self.per_host) < 1 or min(self.retries, self.max_redirects) < 0:
            raise UserError(
                f"connections {self.connections}, per host {self.per_host}, retries {self.retries} or redirects "
                f"{self.max_redirects} is out of range",
                do="Connections are at least 1, retries and redirects at least 0",
            )
        if not (self.per_host_rate == 0 or 0.001 <= self.per_host_rate <= 1e6):
            raise UserError(
                f"{self.per_host_rate:g} requests a second to a host is out of range",
                do="Choose 0.001 to 1000000, or 0 for any number",
            )
        if not self.user_agent.isascii() or not self.user_agent.isprintable() or not self.user_agent.strip():
            raise UserError(f"user agent {self.user_agent!r} cannot be sent", do="Use printable ASCII")
        for word in self.opt_outs:
            if not re.fullmatch("[a-z][a-z0-9_-]*", word):
                raise UserError(
                    f"{word!r} is no directive of X-Robots-Tag", do=f"Name words such as {', '.join(OPT_OUTS)}"
                )
        if self.proxy is not None:
            _check_proxy(self.proxy)


def _check_proxy(url: str) -> None:
    """Raises `UserError`, which does not repeat what may hold a password."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in PROXIES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable():
        raise UserError(
            "the proxy's URL is not one", do=f"Write it like http://host:port, or with {', '.join(PROXIES[1:])}"
        )


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """A whole ingest run. `engine`: ours, or img2dataset's downloader and resizer behind checks.

    `stop_on_collapse`: end the run early when nearly nothing is fetched any more. `attempts`: tries a shard, until it
    counts as failed.
    """

    source: SourceSettings
    out: str
    name: str
    shard_size: int = 1000
    image: ImageSettings = field(default_factory=ImageSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    engine: Literal["clipstill", "img2dataset", "files"] = "clipstill"
    stop_on_collapse: bool = True
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise UserError(f"shard size {self.shard_size} is not positive")
        if (self.engine == "files") != self.source.files:
            raise UserError(f"engine {self.engine!r} with rows of {'files' if self.source.files else 'URLs'}")
        if self.attempts < 1:
            raise UserError(f"{self.attempts} tries a shard are too few", do="Allow at least 1")
        if self.engine != "clipstill" and self.network.proxy is not None:
            raise UserError("img2dataset's engine knows no proxy", do="Leave out --engine or --proxy")
        if self.image.blur_faces is not None and self.engine != "clipstill":
            raise UserError(f"engine {self.engine!r} blurs no faces", do="Leave --engine or --blur-faces out")

    def identity(self) -> dict[str, Any]:
        """What decides the output: a run with another identity is another dataset.

        Paths are left out (the inputs' hashes stand for them), and so is what only changes how long work takes.
        """
        source = {name: value for name, value in asdict(self.source).items() if name not in {"paths", "subset"}}
        if not self.source.files:
            # What was made of URLs is what it was before there was anything else.
            del source["files"], source["root"]
        identity = {
            "name": self.name,
            "shard_size": self.shard_size,
            "engine": self.engine,
            "source": source,
            "image": asdict(self.image),
        }
        # As it will be read back: lists where there are tuples.
        plain: dict[str, Any] = json.loads(json.dumps(identity))
        return plain
