"""Why an original's bytes cannot be stored."""

from __future__ import annotations

import re


class RefusedError(Exception):
    """`cause` is one of `ledger.CAUSES`; the message is one line, the same for the same bytes."""

    def __init__(self, cause: str, message: object) -> None:
        # Pillow names streams by their addresses, which differ from run to run.
        super().__init__(re.sub(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>", "", " ".join(str(message).split())))
        self.cause = cause
