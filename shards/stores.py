"""Object stores by fsspec: opened in one place, and the errors of the libraries behind them in words.

These libraries are optional and not imported here, so their exceptions are recognised by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import fsspec

from shards.errors import UserError

CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"})
_PACKAGES = {
    **{"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"},
    "hf": "huggingface_hub",
}
"""What fsspec needs for a scheme, beside itself."""
_LIBRARIES = frozenset(
    {
        *("botocore", "aiobotocore", "s3fs", "boto3"),
        *("gcsfs", "google", "azure", "adlfs"),
        *("aiohttp", "requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"),
    }
)
_BROKEN = frozenset(
    {
        *("ConnectionError", "TimeoutError", "FSTimeoutError", "IncompleteRead", "IncompleteReadError"),
        *("HTTPClientError", "ResponseParserError", "ResponseStreamingError"),  # botocore
        *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
        *("TransportError", "ServiceRequestError", "ServiceResponseError"),  # httpx and Google; Azure
    }
)
"""Kinds of errors that say that a store could not be reached, or that an answer broke off."""
_DIFFERENT = frozenset({"FlexibleChecksumError", "ChecksumError"})
"""Kinds of errors that say that what came is not what was stored."""
_CERTIFICATES = frozenset({"SSLError", "ClientSSLError", "CertificateError", "SSLCertVerificationError"})
_BUSY = frozenset({408, 409, 425, 429})
_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "SlowDown"})
"""S3's codes for what came to grief on the way."""


class ShortReadError(OSError):
    """A store sent fewer or more bytes than there are, or others than were stored."""


def came_wrong(error: BaseException) -> bool:
    """Whether an answer came that does not fit: the next one may, unless the file is damaged.

    Of other bytes than there are; or that there is no such upload. Where the answer to the last request of one in parts
    was lost, and the library asks again, some stores say so of what is done. It is made anew then.
    """
    forgotten = code_of(error) == "NoSuchUpload"
    return isinstance(error, ShortReadError) or type(error).__name__ in _DIFFERENT or forgotten


def located(url: str) -> tuple[Any, str]:
    """The file system of fsspec's for a URL, and the path in it. Raises `UserError` for one that is not understood."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"cannot be opened ({error})", where=url, do=to_install(error, url)) from None
    except ValueError as error:
        raise UserError(f"cannot be opened ({error})", where=url, do="Check the URL's scheme") from None
    return fs, str(path)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a while later: the store is away or overloaded, or an answer broke off."""
    if came_wrong(error):
        return True
    if isinstance(error, UserError | FileNotFoundError | PermissionError | BrokenPipeError):
        return False
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    if kinds & (CREDENTIALS | _CERTIFICATES):
        return False
    return bool(kinds & _BROKEN) or any(_is_busy(link) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def code_of(error: BaseException) -> str:
    """S3's own word for an error, or for what it came of; "" for any other."""
    answers = (getattr(link, "response", None) for link in _chain(error))
    return next((str(answer.get("Error", {}).get("Code", "")) for answer in answers if isinstance(answer, dict)), "")


def _is_busy(error: BaseException) -> bool:
    answer = getattr(error, "response", None)
    told: Any = None
    if isinstance(answer, dict):  # botocore
        if code_of(error) in _CODES:
            return True
        told = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif is_of_library(error):
        sources = ((error, "status"), (error, "status_code"), (error, "code"), (answer, "status_code"))
        told = next((value for source, name in sources if (value := getattr(source, name, None)) is not None), None)
    status = int(told) if isinstance(told, int) or (isinstance(told, str) and told.isdigit()) else 0
    return status in _BUSY or (500 <= status < 600 and status not in {501, 505})


def to_install(error: ImportError, url: str = "") -> str:
    """What to do where the package for a URL is missing; by the error's own words where it is not known of which."""
    named = next((package for package in _PACKAGES.values() if package in str(error)), "what it names")
    return f"Install it: pip install {_PACKAGES.get(url.partition('://')[0], named)}"


def told(error: BaseException) -> tuple[str, str] | None:
    """Why a path, local or on a store, cannot be read and what to do; None for what is no error of storage."""
    text = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ in CREDENTIALS:
        return f"no usable credentials ({text})", "Set the store's credentials"
    if is_of_library(error) and not isinstance(error, FileNotFoundError):
        status = getattr(error, "status", None)
        known = f"the server answers {status}", "Check the address"
        return (
            known if isinstance(status, int) else (f"cannot be reached ({text})", "Check the address and the network")
        )
    if isinstance(error, ImportError):
        return f"cannot be opened ({text})", to_install(error)
    if isinstance(error, OSError):
        # A store's says no more than a path or a URL where there is nothing.
        absent = isinstance(error, FileNotFoundError) and not error.strerror
        told = f"is not there ({text})" if absent else f"cannot be read ({error.strerror or text})"
        return told, "Check the path" if absent else "Check the path and its permissions"
    # fsspec hands on what it does not understand of a path, which then is an argument too many somewhere.
    return (f"cannot be opened ({text})", "Check the path") if isinstance(error, ValueError | TypeError) else None


def is_of_library(error: BaseException) -> bool:
    """Whether a library that talks to a store, and not the operating system, raised it."""
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def seconds_of(told: Iterable[Any]) -> Iterator[float]:
    """The first of what a store says of a file that is a time, in seconds since 1970, if any is."""
    for mark in told:
        if isinstance(mark, str):
            with contextlib.suppress(ValueError):
                mark = datetime.fromisoformat(mark)  # noqa: PLW2901
        if isinstance(mark, datetime):
            mark = mark.timestamp()  # noqa: PLW2901
        if isinstance(mark, int | float):
            yield float(mark)
            return
