"""One shard's numbers: each sample's image hashed and its size read, its caption and metadata counted.

No image is decoded but those that are to be shown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from pages.sheet import thumbnail
from pictures import RefusedError
from pictures.kind import NO_IMAGE, kind_of
from pictures.opening import UnforeseeableError, upright_size
from shards import Shard
from shards.sample import texts_of
from stats.measures import Count, Numbers

_HOST = re.compile(r"https?://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]+)", re.IGNORECASE)
_SEVERAL = {"labels", "classes", "categories"}
_LABELS = {"label", "class", "category", *_SEVERAL}
ASPECT_SCALE = 1000
NUMBERS = ("width", "height", "shorter", "aspect", "bytes", "words", "characters", "captions")
"""What is counted of each sample. `aspect` is width by height, in thousandths."""

OWN_WORDS = ("format", "size", "host", "unreadable")


@dataclass(frozen=True)
class Cell:
    """A sample as the page shows it; `image` is a data URL, "" where it does not decode."""

    key: str
    image: str
    caption: str


@dataclass
class ShardFigures:
    """What is counted of some samples of a shard, whose rows are counted from the first of them.

    `numbers`: name → values and the rows they are of, both (n,). `words`: one of `OWN_WORDS`, or the name of a metadata
    column → word → its samples. `images` has 16 bytes for each sample, `texts` for each caption
    that says something, whose rows are `text_rows`. `empty`: the captions that say nothing.
    """

    keys: list[str] = field(default_factory=list)
    numbers: dict[str, tuple[Numbers, Numbers]] = field(default_factory=dict)
    words: dict[str, dict[str, Count]] = field(default_factory=dict)
    images: bytes = b""
    texts: bytes = b""
    text_rows: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    empty: Count = field(default_factory=Count)
    cells: list[Cell] = field(default_factory=list)


def read_shard(shard: Shard, rows: range, shown: Container[int], *, captioned: bool) -> ShardFigures:
    """Read neighbouring samples of a shard; those at the rows `shown` become cells."""
    found = ShardFigures(keys=shard.keys[rows.start : rows.stop])
    values: dict[str, list[tuple[int, int]]] = {name: [] for name in NUMBERS}
    images, texts, text_rows = [], [], []
    for row, key in enumerate(found.keys):
        at = rows[row]
        image, meta, caption = shard.image_bytes(at), shard.meta(at), shard.caption(at)
        images.append(hashlib.sha256(image).digest()[:16])
        values["bytes"].append((row, len(image)))
        words = [("format", kind_of(image)), *_words(meta)]
        size = _size(image, meta)
        if isinstance(size, str):
            words.append(("unreadable", size))
        else:
            words.append(("size", f"{size[0]} × {size[1]}"))
            told = (*size, min(size), round(ASPECT_SCALE * size[0] / size[1]))
            for name, value in zip(("width", "height", "shorter", "aspect"), told, strict=True):
                values[name].append((row, value))
        text = caption.strip()
        if captioned:
            several = [one for one in shard.all_captions(caption, meta) if one.strip()]
            values["captions"].append((row, len(several)))
            if text:
                texts.append(hashlib.sha256(text.encode()).digest()[:16])
                text_rows.append(row)
                values["words"].append((row, len(text.split())))
                values["characters"].append((row, len(text)))
            else:
                found.empty.add(1, [key])
        for name, word in words:
            found.words.setdefault(name, {}).setdefault(word, Count()).add(1, [key])
        if at in shown:
            found.cells.append(Cell(key, picture_of(image), text))
    for name, pairs in values.items():
        places, numbers = np.array(pairs, np.int64).reshape(-1, 2).T
        found.numbers[name] = numbers, places
    found.images, found.texts, found.text_rows = b"".join(images), b"".join(texts), np.array(text_rows, np.int64)
    return found


def picture_of(image: bytes) -> str:
    """A small picture as a data URL, "" if it does not decode."""
    try:
        return thumbnail(image)
    except Exception:  # noqa: BLE001 - decoders raise anything; the page shows an empty place
        return ""


def _size(image: bytes, meta: dict[str, Any]) -> tuple[int, int] | str:
    """Width and height as the metadata has them, else of the upright picture by its header; or why nobody knows."""
    width, height = meta.get("width"), meta.get("height")
    if type(width) is int and type(height) is int and width > 0 and height > 0:
        return width, height
    if kind_of(image) == NO_IMAGE:
        return "its bytes are of no known format"
    try:
        return upright_size(image)
    except UnforeseeableError:
        return "of a format whose header is not read"
    except RefusedError as error:
        return error.cause


def _words(meta: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Host, labels and licences of a sample: column and word."""
    for name, value in meta.items():
        if name == "url":
            if isinstance(value, str) and (host := _HOST.match(value)):
                yield "host", host[1].lower()
        elif _is_counted(name):
            for word in dict.fromkeys(_listed(name, value)):
                if word:
                    yield name, word


def _listed(name: str, value: Any) -> list[str]:
    """What a column says of a sample: one word, a list of them, or several between commas (CC3M's `labels`)."""
    if isinstance(value, list):
        return [str(word).strip() for word in value if isinstance(word, str | int)]
    if texts := texts_of(value):
        return [word.strip() for word in texts]
    several = isinstance(value, str) and name.lower() in _SEVERAL
    words = value.split(",") if several else [str(value)] if isinstance(value, str | int) else []
    return [word.strip() for word in words]


@lru_cache(1000)
def _is_counted(name: str) -> bool:
    """Whether a column's name says that it holds labels or licences."""
    return name.lower() in _LABELS or name.lower().startswith(("licen", "cc_licen"))
