"""The errors of the libraries behind object stores, in words.

These libraries are optional and not imported here, so their exceptions are recognised by name.
"""

from __future__ import annotations

CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"})
UNREACHABLE = frozenset({"EndpointConnectionError", "ConnectTimeoutError"})
"""Raised by the S3 client before any answer."""
_LIBRARIES = frozenset(
    {
        *("botocore", "aiobotocore", "s3fs", "boto3"),
        *("gcsfs", "google", "azure", "adlfs"),
        *("aiohttp", "requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"),
    }
)


def told(error: BaseException) -> tuple[str, str] | None:
    """Why a path, local or on a store, cannot be read and what to do; None for what is no error of storage."""
    text = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ in CREDENTIALS:
        return f"no usable credentials ({text})", "Set the store's credentials"
    if is_of_library(error):
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return f"the server answers {status}", "Check the address"
        return f"cannot be reached ({text})", "Check the address and the network"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or text})", "Check the path and its permissions"
    # fsspec hands on what it does not understand of a path, which then is an argument too many somewhere.
    if isinstance(error, ImportError | ValueError | TypeError):
        return f"cannot be opened ({text})", "Check the path"
    return None


def is_of_library(error: BaseException) -> bool:
    """Whether a library that talks to a store, and not the operating system, raised it."""
    return type(error).__module__.partition(".")[0] in _LIBRARIES
