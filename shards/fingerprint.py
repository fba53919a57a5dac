"""Fingerprints of settings and derived seeds: short names for "the same input gives the same output"."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON (sorted keys, no spaces).

    `value` may hold only JSON types; floats keep their shortest exact form, so equal settings give equal text.
    """
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


def seed64(*parts: str | int) -> int:
    """An unsigned 64-bit seed derived from `parts`, the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a local file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """Name the first setting in which two nested settings differ, with both values; None when they agree."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = first_difference(before, after, f"{prefix}{name}.")
            if inner:
                return inner
        elif before != after:
            return f"{prefix}{name} was {json.dumps(before)}, now {json.dumps(after)}"
    return None
