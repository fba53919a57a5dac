"""Fetch and resize with img2dataset's own `Downloader` and `Resizer`, made strict.

img2dataset opens every URL with urllib on threads and resizes with OpenCV. What it lets pass is caught here before
its resizer sees it: bodies and pixels over the cap, truncated images (OpenCV fills the missing part with grey), EXIF
orientation (dropped), 16-bit, CMYK and palette images (wrong colours).
"""

from __future__ import annotations

import io
import math
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from PIL import Image, ImageOps

from ingest.fetched import CAUSES, Fetched, Request
from ingest.settings import ImageSettings, IngestSettings

_THREADS = 32
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "ICO", "JPEG2000", "PPM")
"""What Pillow may decode: not EPS, which it hands to Ghostscript, nor formats that the web does not use."""


class Img2datasetEngine:
    """Fetches the URLs of one shard at a time. Of the network's settings it knows those that img2dataset has.

    Not for use by several threads.
    """

    def __init__(self, settings: IngestSettings) -> None:
        # albumentations asks a package registry for its newest version on import unless told not to.
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        with warnings.catch_warnings():
            # Modules that it imports announce their removal from Python.
            warnings.simplefilter("ignore")
            from img2dataset.downloader import Downloader  # noqa: PLC0415 - two seconds; only workers need it

            self._resizer = _StrictResizer(settings)
        self._settings = settings
        self._downloader_class = Downloader

    def fetch(self, requests: Sequence[Request], *, careful: bool = False) -> Generator[tuple[int, Fetched]]:  # noqa: ARG002
        """What came of each request, in order; with the same care always."""
        wanted = [place for place, request in enumerate(requests) if _is_web(request.url)]
        collected: dict[int, Fetched] = {}
        network, image = self._settings.network, self._settings.image
        with tempfile.TemporaryDirectory(prefix="clipstill-") as scratch:
            rows = Path(scratch) / "rows.arrow"
            table = pa.table({"url": [requests[place].url for place in wanted]})
            with pa.ipc.new_file(str(rows), table.schema) as sink:
                sink.write_table(table)
            downloader = self._downloader_class(
                sample_writer_class=lambda *_: _Collector(collected, image),
                resizer=self._resizer,
                thread_count=min(_THREADS, network.connections),
                save_caption=False,
                extract_exif=True,
                output_folder=scratch,
                column_list=["url"],
                timeout=network.connect_timeout,
                number_sample_per_shard=len(wanted),
                oom_shard_count=1,
                compute_hash=image.hash,
                verify_hash_type=None,
                encode_format=image.format,
                retries=network.retries,
                user_agent_token=network.user_agent.split("/")[0],
                disallowed_header_directives=list(network.opt_outs) or None,
            )
            if wanted:
                _beside(lambda: downloader.download_shard((0, str(rows))), self._resizer.stop)
        # Its loop prints and drops a sample that raises; here that sample is a failure like any other.
        lost = Fetched(error_class="other", error_message="img2dataset dropped the row")
        answers = {place: collected.get(number, lost) for number, place in enumerate(wanted)}
        for place, request in enumerate(requests):
            got = answers.get(place, Fetched(error_class="bad_url", error_message="not an http(s) URL"))
            if request.digest and got.digest and request.digest != got.digest:
                got = Fetched(
                    error_class="hash_mismatch", error_message=f"{image.hash} is {got.digest}, not {request.digest}"
                )
            yield place, replace(got, host=_host(request.url))

    def forget_failures(self) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing stays open between shards."""


def _beside(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run `work` on a thread beside this one, so that an interrupt ends the wait, not only the work.

    img2dataset's loop hangs when an exception leaves it: its pool waits for a feeder that waits for the loop.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        stop()
        raise
    if raised:
        raise raised[0]


class _Collector:
    """Stands where img2dataset has its sample writers, which write in order of completion."""

    def __init__(self, into: dict[int, Fetched], image: ImageSettings) -> None:
        self._into, self._image = into, image

    def write(self, image: bytes | None, key: str, _caption: str | None, meta: dict[str, Any]) -> None:
        # With shard 0 img2dataset's key is the zero-padded row number.
        sizes = {name: meta[name] for name in ("width", "height", "original_width", "original_height")}
        if image is None:
            message = str(meta["error_message"])
            cause, _, rest = message.partition(": ")
            known = cause in CAUSES
            fetched = Fetched(
                error_class=cause if known else classify(message), error_message=rest if known else message
            )
        else:
            exif = (meta["exif"] or "{}") if self._image.exif else "{}"
            digest = meta[self._image.hash]
            fetched = Fetched(image=image, extension=self._image.format, digest=digest, exif=exif, **sizes)
        self._into[int(key)] = fetched

    def close(self) -> None:
        pass


class _StrictResizer:
    """img2dataset's resizer behind checks; returns its tuple, or `cause: detail` as the error."""

    def __init__(self, settings: IngestSettings) -> None:
        from img2dataset.resizer import Resizer  # noqa: PLC0415

        Image.init()
        self._formats = [name for name in _FORMATS if name in Image.OPEN]
        self._turn = threading.Lock()
        self._image = settings.image
        self._resize = Resizer(
            image_size=self._image.size,
            resize_mode=self._image.resize_mode,
            resize_only_if_bigger=not self._image.enlarge,
            encode_quality=self._image.quality,
            encode_format=self._image.format,
            skip_reencode=self._image.skip_reencode,
            min_image_size=self._image.min_size,
            max_image_area=self._image.max_area or math.inf,
            max_aspect_ratio=self._image.max_aspect_ratio or math.inf,
        )

    def __call__(self, stream: io.BytesIO, _boxes: None) -> tuple[Any, ...]:
        with self._turn, warnings.catch_warnings():
            # Oversized and oddly tagged images are judged by our own limits; deprecations are img2dataset's affair.
            warnings.simplefilter("ignore")
            try:
                checked = self._check(stream)
            except _RefusedError as error:
                return None, None, None, None, None, str(error)
            result: tuple[Any, ...] = self._resize(checked, None)
            return result

    def stop(self) -> None:
        """Let no further resize begin: while one runs, img2dataset has the process's output closed."""
        self._turn.acquire()

    def _check(self, stream: io.BytesIO) -> io.BytesIO:
        size = stream.getbuffer().nbytes
        if size > self._image.max_bytes:
            raise _RefusedError(f"too_large: {size} bytes, the limit is {self._image.max_bytes}")
        try:
            image = Image.open(stream, formats=self._formats)
        except Image.DecompressionBombError as error:
            raise _RefusedError(f"bomb: {error}") from None
        except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes
            raise _RefusedError(f"not_an_image: {_one_line(error)}") from None
        if image.width * image.height > self._image.max_pixels:
            limit = self._image.max_pixels
            raise _RefusedError(f"bomb: {image.width}x{image.height} pixels, the limit is {limit}")
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            # OpenCV sees these as Pillow does; others not always (a PNG with 16 bits a colour would come out white).
            same = image.format in {"JPEG", "WEBP"} and image.mode in {"RGB", "L"}
            if same and image.getexif().get(0x0112, 1) == 1:
                stream.seek(0)
                return stream
            plain = io.BytesIO()
            _eight_bit(upright).save(plain, "PNG", compress_level=1)
        except Exception as error:  # noqa: BLE001
            cause = "truncated" if classify(str(error)) == "truncated" else "not_an_image"
            raise _RefusedError(f"{cause}: {_one_line(error)}") from None
        plain.seek(0)
        return plain


class _RefusedError(Exception):
    pass


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in {"LA", "PA"} or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in {"RGB", "L", "RGBA"} else image.convert("RGB")


def _one_line(error: Exception) -> str:
    # Pillow names the stream by its address, which would make the ledger differ from run to run.
    return " ".join(str(error).split()).split(" <_io", 1)[0]


_BY_MESSAGE = (
    (r"X-Robots-Tag", "opt_out"),
    (r"CERTIFICATE|SSL|TLS", "tls"),
    (r"timed out|timeout", "timeout"),
    (r"IncompleteRead", "incomplete"),
    (r"truncated|broken data stream", "truncated"),
    (r"Errno -[235]\b|Name or service not known|getaddrinfo|nodename nor servname", "dns"),
    (r"unknown url type|no host given|control characters|unsupported URL|Invalid URL|nonnumeric port|idna", "bad_url"),
    (r"Invalid IPv6|codec can't encode|Errno -8\b", "bad_url"),
    (r"Image decoding error", "not_an_image"),
    (r"image too small", "filtered_size"),
    (r"area too large", "filtered_area"),
    (r"aspect ratio", "filtered_aspect"),
    (r"Errno 1\d\d\b|[Cc]onnection|Remote end closed|reset by peer", "connect"),
)


def classify(message: str) -> str:
    """The cause that a message of urllib or img2dataset stands for: one of `ledger.CAUSES` or `http_NNN`."""
    status = re.match(r"HTTP Error (\d{3})", message)
    if status:
        return f"http_{status.group(1)}"
    for pattern, cause in _BY_MESSAGE:
        if re.search(pattern, message):
            return cause
    return "other"


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_web(url: str) -> bool:
    # It stores what file: and data: name, too.
    return url.lower().startswith(("http://", "https://"))
