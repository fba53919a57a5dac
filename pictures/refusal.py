"""Why an image file is not taken."""

from __future__ import annotations

import re


class RefusedError(OSError):
    """`cause` is one of the ledger's causes (docs/formats.md); the message is one line, the same for the same bytes."""

    def __init__(self, cause: str, message: object) -> None:
        told = " ".join(str(message).split())
        if not told and isinstance(message, Exception):
            told = type(message).__name__
        # Pillow names streams by their addresses, which differ from run to run.
        super().__init__(re.sub(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>", "", told))
        self.cause = cause
