"""Text files that the user names: read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

from shards.errors import UserError


def read_text(path: Path | str, do: str) -> str:
    """The text of a local file. Raises `UserError`, with `do`, if there is none, or none that can be read as UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        problem = "there is no such file"
    except IsADirectoryError:
        problem = "this is a folder, and a file is wanted"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError as error:
        problem = f"this is no text in UTF-8 (byte {error.start})"
    raise UserError(problem, where=str(path), do=do)
