"""One sample of a dataset, each part of it read when it is asked for."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shards.errors import UserError, one_line

if TYPE_CHECKING:
    from PIL import Image

    from shards.shard import Shard

_MOST_OPEN = 64
"""Shards that are mapped at a time: each costs two file descriptors, and its keys as text."""


class OpenShards:
    """Keeps the shards that were used last mapped, and lets go of the others; for any number of threads."""

    def __init__(self) -> None:
        self._used: dict[Shard, None] = {}
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenShards], tuple[()]]:
        return OpenShards, ()

    def use(self, shard: Shard) -> Shard:
        """The shard, which stays mapped until many others were used."""
        with self._turn:
            self._used.pop(shard, None)
            self._used[shard] = None
            oldest = next(iter(self._used)) if len(self._used) > _MOST_OPEN else None
            if oldest is not None:
                del self._used[oldest]
        if oldest is not None:
            oldest.release()
        return shard


class Sample:
    """A sample by its `key`; it lies in `row` of `shard`.

    It holds no bytes until a part is asked for, and reads each part anew but the image, which stays decoded.
    """

    def __init__(
        self, shard: Shard, row: int, opened: OpenShards, columns: Mapping[str, Any], absent: Sequence[str]
    ) -> None:
        self._shard, self.row, self._opened, self._columns, self._absent = shard, row, opened, columns, absent
        self.key = opened.use(shard).keys[row]

    def __repr__(self) -> str:
        return f"Sample({self.key!r}, shard {self._shard.id:05d}, row {self.row})"

    @property
    def shard(self) -> Shard:
        return self._opened.use(self._shard)

    @property
    def image_bytes(self) -> bytes:
        """The image as it is stored."""
        return self.shard.image_bytes(self.row)

    @cached_property
    def image(self) -> Image.Image:
        """The picture, upright. Raises `UserError` if it does not decode."""
        from PIL import Image, ImageOps  # noqa: PLC0415 - whoever reads captions alone need not wait for it

        try:
            return ImageOps.exif_transpose(Image.open(io.BytesIO(self.image_bytes)))
        except Exception as error:  # noqa: BLE001 - decoders raise anything; none of it is an image
            raise UserError(
                f"the image of {self.key} does not decode ({one_line(str(error))})",
                where=self._shard.tar,
                do="`clipstill shards verify` names all that do not",
            ) from None

    @property
    def caption(self) -> str:
        """The caption, of a table beside the dataset if one has it; "" where there is none."""
        told, listed = self._told
        return told if told is not None else listed[0] if listed else self.shard.caption(self.row)

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions that say something, `caption` first."""
        told, listed = self._told
        if not listed:
            own = self.shard.captions(self.row)
            listed = own if told is None else own[1:]
        return tuple(text for text in ([] if told is None else [told]) + listed if text.strip())

    @property
    def _told(self) -> tuple[str | None, list[str]]:
        """What tables beside the dataset say: the caption, and several."""
        told = self._columns.get("caption")
        return told if isinstance(told, str) else None, texts_of(self._columns.get("captions"))

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata, with the columns of tables beside the dataset: None where they have no row for this key."""
        return {**dict.fromkeys(self._absent), **self.shard.meta(self.row), **self._columns}


def texts_of(value: Any) -> list[str]:
    """A list of texts, which may be the text of its JSON; of anything else nothing."""
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list | tuple) else []
