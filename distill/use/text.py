"""Texts → token ids by an export's `tokenizer.json`, without torch: what it cannot say about cleaning is done here."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import UserError

TOKENIZER_NAME = "tokenizer.json"


class TextTokens:
    """n texts → (n, context_length) int64, as open_clip's own tokenizer makes them."""

    def __init__(self, folder: Path, text_cfg: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - a model without texts needs none

        path = folder / TOKENIZER_NAME
        if not path.is_file():
            raise UserError("there is no such file", where=str(path), do="Export the model again")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._lowers = cleaning(text_cfg) != "whitespace"

    def __call__(self, texts: list[str]) -> npt.NDArray[np.int64]:
        cleaned = [self._clean(text) for text in texts]
        return np.array([one.ids for one in self._tokenizer.encode_batch(cleaned)], np.int64)

    def _clean(self, text: str) -> str:
        import ftfy  # noqa: PLC0415

        mended = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        # Python has another rule for a final sigma than the tokenizer's own lowering.
        return mended.lower() if self._lowers else mended


def cleaning(text_cfg: Mapping[str, Any]) -> str:
    """How a model's tokenizer cleans texts: lower, whitespace or canonicalize, as open_clip calls them."""
    given = (text_cfg.get("tokenizer_kwargs") or {}).get("clean")
    return str(given or ("whitespace" if text_cfg.get("hf_tokenizer_name") else "lower"))


def read_settings(path: Path) -> dict[str, Any]:
    """An export's JSON. Raises `UserError` if it is none, or not there."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"it cannot be read ({reason})", where=str(path), do="Export the model again") from error
    if not isinstance(body, dict):
        raise UserError(f"it holds a {type(body).__name__}, not an object", where=str(path), do="Export it again")
    return body
