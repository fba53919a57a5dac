"""What this process has of the machine's memory, by the kernel's account."""

from __future__ import annotations

from pathlib import Path


def memory() -> dict[str, int]:
    """Bytes: `VmHWM` at most at once, `RssAnon` now, without what is mapped from files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[0] in {"VmHWM:", "RssAnon:"}}
