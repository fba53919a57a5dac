"""Optional packages of export formats."""

from __future__ import annotations

from importlib.util import find_spec

from shards.errors import UserError


def require(package: str, extra: str, where: str) -> None:
    """Raise `UserError` unless a package is installed, which `pip install 'clipstill[EXTRA]'` brings."""
    if find_spec(package) is None:
        raise UserError(f"{package} is not installed", where=where, do=f"Run `pip install 'clipstill[{extra}]'`")
