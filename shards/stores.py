"""The errors of the libraries behind object stores, in words.

These libraries are optional and not imported here, so their exceptions are recognised by name.
"""

from __future__ import annotations

CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"})
UNREACHABLE = frozenset({"EndpointConnectionError", "ConnectTimeoutError"})
"""Raised by the S3 client before any answer."""
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
