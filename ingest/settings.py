"""What the user chooses for an ingest run: what a field says here is what the command line offers, and its help.

Everything that changes the output is in `IngestSettings.identity`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from PIL import Image

from ingest.formats import LAYOUTS
from shards.errors import UserError
from shards.settings import Known, option, settings

OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex", "none")
"""The words of `X-Robots-Tag` that keep an image out of a dataset; `none` is short for `noindex, nofollow`."""
ENGINES = ("clipstill", "img2dataset")
"""Of lists of URLs."""
PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
PER_HOST = 32
"""Connections to one host, unless something else is asked for."""
_LEAST_RATE = 0.001
USER_AGENT = "clipstill/0.1 (makes image-text datasets)"
_QUALITY = {"jpg": 95, "png": 3, "webp": 95}
_PILLOW_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Pillow opens no image with more."""


@settings
class SourceSettings:
    """Where the rows come from. `paths` may hold folders, globs and URLs; their order is the rows' order.

    The columns' names are the list's own unless given. `keep` names columns that travel into the ledger and each
    sample's JSON. `subset` is the list of YFCC15M's photos, `paths` then YFCC100M's own files. With `files` the URL
    column has paths, relative ones below `root` (the list's own folder unless given), or in Parquet the images' bytes.
    """

    paths: Annotated[
        tuple[str, ...], option("metadata files; folders, globs and URLs are fine", flag="FILE", path=True)
    ]
    format: Annotated[str, Known(LAYOUTS), option("a published list's, or a kind of file; auto: by the ending")] = (
        "auto"
    )
    url_column: Annotated[str | None, option("the column with the URLs (default: the format's, or url)", "NAME")] = None
    caption_column: Annotated[
        str | None, option("the column with the captions (default: the format's, or caption)", "NAME")
    ] = None
    keep: Annotated[tuple[str, ...], option("further columns to keep in ledger and JSON", "A,B", split=True)] = ()
    hash_column: Annotated[str | None, option("the column with the hash that each file must have", "NAME")] = None
    where: Annotated[
        tuple[str, ...],
        option("fetch only rows that meet it, as in 'similarity >= 0.3'; may be given more than once", "CONDITION"),
    ] = ()
    subset: Annotated[str | None, option("yfcc15m: the list of the photos to take", "FILE", path=True)] = None
    columns: Annotated[
        tuple[str, ...],
        option("what the columns of a CSV or TSV are called that has no header", "A,B", split=True),
    ] = ()
    quoted: Annotated[bool, option("the fields of a TSV may be quoted, as those of a CSV")] = False
    encoding: Annotated[str, option("of the text in the list, as Python calls it: latin-1, cp1252", "NAME")] = "utf-8"
    captions: Annotated[bool, option("take images alone: no column holds captions")] = True
    files: bool = False
    root: str | None = None

    def __post_init__(self) -> None:
        if self.root is not None and "://" not in self.root:
            # It decides which files are meant, wherever the same is asked for again.
            object.__setattr__(self, "root", str(Path(self.root).expanduser().absolute()))


@settings
class ImageSettings:
    """How images are checked and stored.

    `size` and `resize_mode` as in img2dataset; images are enlarged only with `enlarge`. `exact`: instead of decoding
    JPEG at a reduced scale. `blur_faces`: the column with the boxes of faces (`faces.py`).
    """

    size: Annotated[int, option("side to resize to", "PX", flag="--image-size", ge=1)] = 256
    resize_mode: Annotated[
        Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"],
        option("keep_ratio: the shorter side becomes PX"),
    ] = "keep_ratio"
    enlarge: Annotated[bool, option("resize smaller images too")] = False
    format: Annotated[Literal["jpg", "png", "webp"], option("how they are stored", flag="--image-format")] = "jpg"
    quality: Annotated[
        int,
        option("of JPEG and WebP, 1 to 100 (default: 95); PNG's compression, 0 to 9 (default: 3)", ge=0, le=100),
    ] = None  # type: ignore[assignment]  # of each format another; never None once made
    exact: Annotated[bool, option("decode every pixel and average, as img2dataset does")] = False
    skip_reencode: Annotated[bool, option("store what needs no change as it came")] = False
    min_size: Annotated[int, option("leave out images with a shorter side", "PX", ge=0)] = 0
    max_area: Annotated[int | None, option("leave out images of more pixels", "N", ge=1)] = None
    max_aspect_ratio: Annotated[float | None, option("leave out images that are longer", "R", ge=1)] = None
    max_bytes: Annotated[int, option("refuse larger files", "N", ge=1)] = 50_000_000
    max_pixels: Annotated[int, option("refuse larger images", "N", ge=1, le=_PILLOW_PIXELS)] = 100_000_000
    hash: Annotated[Literal["md5", "sha256", "sha512"], option("of each file as it came, in the ledger")] = "sha256"
    exif: Annotated[bool, option("keep it, in ledger and JSON", flag="--exif", words={"on": True, "off": False})] = True
    blur_faces: Annotated[
        str | None,
        option("blur what is in the boxes of this column (DataComp's face_bboxes), and keep it", "COLUMN"),
    ] = None

    def __post_init__(self) -> None:
        if self.quality is None:
            object.__setattr__(self, "quality", _QUALITY[self.format])
        low, high = (0, 9) if self.format == "png" else (1, 100)
        if not low <= self.quality <= high:
            raise UserError(
                f"quality {self.quality} is out of range", do=f"The quality of {self.format} is {low} to {high}"
            )


@settings
class NetworkSettings:
    """How URLs are fetched. Nothing here is part of a dataset's identity.

    `deadline` is with everything: redirects, body, waits and further tries. What a host is asked for (`per_host` and
    `per_host_rate`) is the run's; a worker has its part (`shared_by`). A site's rules for the first word of
    `user_agent` before "/" apply to us. A `proxy` looks names up, and which addresses it connects to nobody checks.
    """

    deadline: Annotated[float, option("seconds for one URL, all in all", "S", gt=0, le=3600)] = 30.0
    connect_timeout: Annotated[float, option("seconds for a connection", "S", gt=0, le=3600)] = 10.0
    retries: Annotated[int, option("further tries after what may pass", "N", ge=0)] = 2
    connections: Annotated[int, option("open at once in a worker", "N", ge=1)] = 128
    per_host: Annotated[
        int | None,
        option(
            "open at once to one host, by all workers together (default: 32, or one for each if those are more)",
            "N",
            ge=1,
        ),
    ] = None
    per_host_rate: Annotated[
        float,
        option("requests a second to one host, by all workers together; 0: as fast as it answers", "N", ge=0, le=1e6),
    ] = 100.0
    max_redirects: Annotated[int, option("followed for one URL", "N", ge=0)] = 10
    allow_addresses: Annotated[
        tuple[str, ...],
        option(
            "fetch from this address or network although it is not public; may be given more than once",
            "NET",
            flag="--allow-address",
        ),
    ] = ()
    opt_outs: Annotated[
        tuple[str, ...],
        option(
            "leave out images whose X-Robots-Tag says one of these",
            "A,B",
            flag="--opt-out",
            split=True,
            off=("--ignore-opt-outs", "take images whatever their X-Robots-Tag says"),
        ),
    ] = OPT_OUTS
    robots_txt: Annotated[bool, option("ask each host's robots.txt first")] = False
    user_agent: Annotated[str, option("what to say who we are", "TEXT")] = USER_AGENT
    ca_file: Annotated[str | None, option("certificates to trust instead of the usual ones", "PEM", path=True)] = None
    proxy: Annotated[
        str | None,
        option(
            "connect through it (http, https, socks4, socks5); which addresses it fetches from, nobody here checks",
            "URL",
        ),
    ] = field(default=None, repr=False)  # it may have a password in it, which belongs in no log

    def __post_init__(self) -> None:
        object.__setattr__(self, "opt_outs", tuple(word.lower() for word in self.opt_outs))
        if 0 < self.per_host_rate < _LEAST_RATE:
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

    def shared_by(self, workers: int) -> NetworkSettings:
        """One worker's part of what all of them together may ask of a host.

        Raises `UserError` where there is less than one connection for each, or next to no request.
        """
        per_host = max(PER_HOST, workers) if self.per_host is None else self.per_host
        if per_host < workers:
            raise UserError(
                f"{workers} workers cannot share {per_host} connections to a host",
                where="--per-host",
                do="Ask for fewer --workers, or allow one connection for each",
            )
        rate = self.per_host_rate / workers
        if 0 < rate < _LEAST_RATE:
            raise UserError(
                f"{workers} workers cannot share {self.per_host_rate:g} requests a second to a host",
                where="--per-host-rate",
                do="Ask for fewer --workers",
            )
        return replace(self, per_host=per_host // workers, per_host_rate=rate)


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


@settings
class IngestSettings:
    """A whole ingest run. `engine`: ours, or img2dataset's downloader and resizer behind checks."""

    source: Annotated[SourceSettings, option("", section="the input")]
    out: Annotated[str, option("where the shards go (a path or s3://...)", "FOLDER", section="")]
    name: Annotated[str, option("the dataset's name; begins every sample's key")]
    shard_size: Annotated[int, option("rows to fetch a shard", "ROWS", section="the input", ge=1)] = 1000
    image: Annotated[ImageSettings, option("", section="the images")] = field(default_factory=ImageSettings)
    network: Annotated[NetworkSettings, option("", section="the network")] = field(default_factory=NetworkSettings)
    attempts: Annotated[int, option("tries a shard until it counts as failed", "N", ge=1)] = 3
    stop_on_collapse: Annotated[bool, option("go on even if nothing comes through any more", flag="--no-stop")] = True
    engine: Annotated[
        Literal["clipstill", "img2dataset", "files"],
        option("what fetches, decodes and resizes", words={name: name for name in ENGINES}, section=""),
    ] = "clipstill"

    def __post_init__(self) -> None:
        if (self.engine == "files") != self.source.files:
            raise UserError(
                f"engine {self.engine!r} with rows of {'files' if self.source.files else 'URLs'}",
                do="`clipstill shards pack` is for files",
            )
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
