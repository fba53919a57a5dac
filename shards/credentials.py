"""Credentials stay out of everything that is printed or written: where they are told apart, in one place."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

_SECRET = r"""(?:
    x-amz-(?:signature|credential|security-token) | x-goog-(?:signature|credential) | awsaccesskeyid | signature | sig
  | (?:\w+[-_])?(?:secret|password|passwd|token) | (?:\w+[-_])?(?:secret|access|api|account)[-_]?key | key-pair-id
  | policy | hdnts | hdnea | __token__ | secret[-_]?\w* | pass | pwd | auth
)"""
"""Parameters that sign a request or name who may make it: of S3, GCS, Azure, CloudFront, Akamai, hubs and others."""
_PARAMETER = re.compile(rf"(?P<name>[?&;]{_SECRET}=)(?P<value>[^&;\s'\"<>)]+)", re.IGNORECASE | re.VERBOSE)
_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^/\s@'\"<>]*:[^/\s'\"<>]*)@")
_NAMED = re.compile(r"secret|password|passwd|token|access_?key|account_?key|api_?key|connection_?string", re.IGNORECASE)
_LEAST = 8
"""Characters of a value that is looked for in texts: a shorter one may be a word."""


def are_in(url: str) -> bool:
    """Whether a URL has a password or a signature in it."""
    return bool(_PARAMETER.search(url) or _USER.search(url))


def without_credentials(text: str) -> str:
    """A text with passwords and signatures of URLs, and the values of this process's own credentials, blotted out."""
    text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", text)
    for value in _held():
        text = text.replace(value, HIDDEN)
    return text


def _held() -> list[str]:
    """The credentials that the environment, or fsspec's own configuration, gives this process; the longest first."""
    found = {value for name, value in os.environ.items() if _NAMED.search(name) and "://" not in value}
    if (config := sys.modules.get("fsspec.config")) is not None:
        found |= set(_secrets(config.conf))
    found |= {unquote(value) for value in found}
    # A path names where a token lies, and is none.
    return sorted((value for value in found if len(value) >= _LEAST and value[0] not in "/~"), key=len, reverse=True)


def _secrets(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and (_NAMED.search(str(name)) or str(name) in {"key", "sas"}):
            yield value
