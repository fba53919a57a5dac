"""The little Markdown that a model card needs, for text that may hold anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: bool = False) -> str:
    """A table, of `numbers` flush right; a bar in a cell stays a bar."""
    lines = [heads, ["---:" if numbers else "---"] * len(heads), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def without_folders(value: Any) -> Any:
    """Of paths that begin at this machine's root or home, also in specs (`ARCH:/path/to/weights`), the last part."""
    if isinstance(value, Mapping):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return re.sub(r"(^|:)[~/].*/", r"\1", value) if isinstance(value, str) else value
