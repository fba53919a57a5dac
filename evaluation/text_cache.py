"""Embedded prompts and captions, kept by who embedded them: the text side of an evaluation is computed once a model.

A file is named by a hash of the weights that a text passes through, the tokenizer's configuration, the precision and
the texts; so another model, or one that was trained on, never finds it. They lie in `.texts/` of `$CLIPSTILL_CACHE`
(`~/.cache/clipstill`), a gigabyte of them at most; the one used longest ago goes first.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_models import LoadedModel
from shards import copies
from shards.errors import UserError
from shards.fingerprint import fingerprint
from shards.storage import Folder

_MOST_BYTES = 1_000_000_000


class TextCache:
    """Files in `folder`, or where the class's description says."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or copies.root() / ".texts"
        self.found = 0
        """How often nothing had to be embedded."""

    def kept(
        self, by: Sequence[str], texts: Sequence[str], rows: int, embed: Callable[[Sequence[str]], Tensor]
    ) -> Tensor:
        """(rows, D) of `embed(texts)`, computed or read; `by` names who embeds: `text_fingerprint`, and how.

        A file that cannot be read or written costs nothing but time.
        """
        digest = hashlib.sha256()
        for text in texts:
            digest.update(f"{len(text.encode('utf-8', 'surrogatepass'))}:".encode())
            digest.update(text.encode("utf-8", "surrogatepass"))
        name = f"{fingerprint([*by, digest.hexdigest()])}.npy"
        path = self._folder / name
        held = _read(path, rows)
        if held is not None:
            self.found += 1
            return torch.from_numpy(held)
        made = embed(texts)
        self._keep(name, made.numpy())
        return made

    def _keep(self, name: str, rows: np.ndarray) -> None:
        sink = io.BytesIO()
        np.save(sink, rows, allow_pickle=False)
        if sink.tell() > _MOST_BYTES:
            return
        try:
            Folder(self._folder).publish(name, sink.getvalue())
            self._make_room()
        except (OSError, UserError):
            # A home that is full or may not be written is no reason to stop.
            return

    def _make_room(self) -> None:
        held = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*.npy"))
        over = sum(size for _, size, _ in held) - _MOST_BYTES
        for _, size, path in held:
            if over <= 0:
                return
            path.unlink(missing_ok=True)
            over -= size


def text_fingerprint(loaded: LoadedModel) -> str:
    """A hash of what a text passes through: every tensor and every setting that is not the image tower's alone.

    Settings beside `text_cfg` count too: with QuickGELU the same weights say something else.
    """
    settings = {name: value for name, value in loaded.config["model_cfg"].items() if name != "vision_cfg"}
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, value in sorted(loaded.model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, rows: int) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == rows else None
