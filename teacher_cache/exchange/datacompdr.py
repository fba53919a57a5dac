"""What a sample of DataCompDR is (MobileCLIP, arXiv:2311.17049; Apple's ml-mobileclip and ml-mobileclip-dr).

Webdataset tars without images; the name of every member begins with DataComp's `uid`:

    UID.url.txt       where the image was
    UID.syn.json      {"syn_text": [5 synthetic captions]}, CoCa ViT-L-14
    UID.paug.json     {"param_aug": [K augmentations]}; K is 30 in DataCompDR-12M, 10 in DataCompDR-1B
    UID.npz           `image_emb` (K, 1536) float32, `text_emb` (6, 1536) float32
    UID.pth.gz        instead of it, in the bf16 variant: gzip of torch.save of the same, as bfloat16 tensors
    UID.json          {"uid": ..., "sha256": of the image as it was downloaded}
    UID.txt, UID.jpg  only where somebody has joined them; tars that raygen wrote have them

Row 0 of `text_emb` belongs to the real caption, row 1 + n to `syn_text[n]`. raygen, the later public program, has the
synthetic ones apart, as `syn_text_emb`.

MobileCLIP2's sets (Faghri et al., 2025, arXiv:2508.20691) may have captions of several captioners, and embeddings of
several ensembles, each under a tag: `syn_text{tag}` in `UID.syn.json`, and `image_emb{tag2}`, `text_emb{tag2}`,
`syn_text{tag}_emb{tag2}` in the arrays. Every `syn_text{tag}` that was embedded is a set of its own; untagged it is
`syn`, with the tag `_dfn_coca` it is `syn-dfn_coca`.

The 1536 columns are two teachers' 768, each of unit norm by itself: open_clip's ViT-L-14 `openai`, then
`datacomp_xl_s13b_b90k` (the order of Apple's configuration). Training uses a logit scale of 100 for both.

An augmentation is `[[top, left, height, width], [[operation, magnitude], [operation, magnitude]]]`: first
RandomResizedCrop, torchvision's four numbers in pixels of the original image, as its file has them (Apple did not turn
pictures by their EXIF), to 224 pixels; then RandAugment with torchvision's defaults (2 operations, magnitude 9 of 31
bins, nearest pixel, black fill). Operations are counted in torchvision's order; the magnitude is the very number that
torchvision's `_apply_op` takes, with its sign, so translations are in pixels of 224. null in place of the operations
means that there were none. The list may come as a string of JSON. Nothing is mirrored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from teacher_cache.exchange.safe_arrays import Arrays, read_npz, read_pth_gz
from teacher_cache.views import Operation, View
from teacher_cache.views.view import OPERATIONS

SIDE = 224
"""Pixels of the crop that operations were applied to."""

WIDTH, SCALE = 768, 100.0
TEACHERS = (("ViT-L-14:openai", WIDTH, SCALE), ("ViT-L-14:datacomp_xl_s13b_b90k", WIDTH, SCALE))
"""Name, columns and logit scale of each teacher, in the order of the columns."""

_NAMES = list(OPERATIONS)
_SYNTHETIC = "syn_text"
_MOST = 1000
"""Views or captions of one sample."""


class Reinforced(NamedTuple):
    """One sample: `images` (K, D) and `texts` (1 + S, D) float32 as stored, the K augmentations.

    `captions`: the S synthetic ones, by the name of their set. `meta` is the sample's JSON, `caption` the real one
    where the tar has it.
    """

    images: npt.NDArray[np.float32]
    texts: npt.NDArray[np.float32]
    augmentations: list[Any]
    captions: dict[str, list[str]]
    meta: dict[str, Any]
    caption: str | None


def parse(members: Mapping[str, bytes], width: int, tag: str = "") -> Reinforced:
    """A sample from its members, by what their names have after the key. Raises `ValueError` saying what is wrong.

    `width` is D, over all teachers; `tag` is that of the embeddings.
    """
    arrays = _arrays(members)
    images, texts = arrays.get(f"image_emb{tag}"), arrays.get(f"text_emb{tag}")
    if images is None or texts is None:
        held = ", ".join(sorted(arrays)) or "none"
        raise ValueError(f"its embeddings are {held}; image_emb{tag} and text_emb{tag} are needed")
    captions, synthetic = _synthetic(members, arrays, texts, tag)
    if "paug.json" not in members:
        raise ValueError("it has no .paug.json, so nobody knows which views were embedded")
    augmentations = _json(members, "paug.json").get("param_aug")
    augmentations = _loads(augmentations, "param_aug") if isinstance(augmentations, str) else augmentations
    if not isinstance(augmentations, list) or len(augmentations) != len(images) or not 1 <= len(images) <= _MOST:
        raise ValueError(f"{len(images)} image embeddings do not go with the augmentations")
    texts = np.concatenate([texts[:1], *synthetic])
    for rows in (images, texts):
        if rows.shape[1] != width or not (np.linalg.norm(rows, axis=1) > 0).all():
            raise ValueError(f"embeddings of {rows.shape[1]} columns, or of zeros; the teachers have {width}")
    caption = members["txt"].decode("utf-8", "replace") if "txt" in members else None
    return Reinforced(images, texts, augmentations, captions, _json(members, "json"), caption)


def _synthetic(
    members: Mapping[str, bytes], arrays: Arrays, texts: npt.NDArray[np.float32], tag: str
) -> tuple[dict[str, list[str]], list[npt.NDArray[np.float32]]]:
    """The synthetic captions that have embeddings, by set, and these, in the same order."""
    captions: dict[str, list[str]] = {}
    rows: list[npt.NDArray[np.float32]] = []
    said = _json(members, "syn.json")
    for key in sorted(key for key in said if key.startswith(_SYNTHETIC)):
        found = said[key]
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{key} is no list of captions")
        own = arrays.get(f"{key}_emb{tag}")
        if own is None and key == _SYNTHETIC:
            # Where a sample has several real captions, the first is ours.
            own = texts[max(1, len(texts) - len(found)) :]
            if len(own) != len(found):
                raise ValueError(f"{len(texts)} text embeddings cannot be a caption's and {len(found)} synthetic ones'")
        if own is None:
            continue
        if len(own) != len(found) or len(found) > _MOST:
            raise ValueError(f"{len(own)} embeddings cannot be those of {len(found)} captions {key}")
        if found:
            captions[set_name(key.removeprefix(_SYNTHETIC))] = found
            rows.append(own)
    return captions, rows


def set_name(tag: str) -> str:
    """What the set of captions with this tag is called in a cache."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", tag.lower()).strip("_-")
    return f"syn-{plain}" if plain else "syn"


def _arrays(members: Mapping[str, bytes]) -> Arrays:
    if "npz" in members:
        return read_npz(members["npz"])
    if "pth.gz" in members:
        return read_pth_gz(members["pth.gz"])
    raise ValueError("it has neither .npz nor .pth.gz")


def _json(members: Mapping[str, bytes], name: str) -> dict[str, Any]:
    value = _loads(members.get(name, b"{}"), f".{name}")
    if not isinstance(value, dict):
        raise ValueError(f".{name} is no object")  # noqa: TRY004 - the file is wrong, not a type in the program
    return value


def _loads(text: bytes | str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged ({error})") from None


def views_of(augmentations: Sequence[Any], width: int, height: int) -> list[View] | None:
    """The views of an image of `width` x `height` pixels; None if a crop does not fit into it.

    Raises `ValueError` for what is no augmentation.
    """
    views = [_view(augmentation, width, height) for augmentation in augmentations]
    found = [view for view in views if view is not None]
    return found if len(found) == len(views) else None


def _view(augmentation: Any, width: int, height: int) -> View | None:
    match augmentation:
        case [[int(top), int(left), int(rows), int(columns)], [*listed]]:
            pass
        case [[int(top), int(left), int(rows), int(columns)]] | [[int(top), int(left), int(rows), int(columns)], None]:
            listed = []
        case _:
            raise ValueError(f"{json.dumps(augmentation)[:80]} is no augmentation")
    if len(listed) > 2:
        raise ValueError(f"{len(listed)} operations on one view; at most 2 can be replayed")
    operations = tuple(_operation(entry) for entry in listed)
    if not (0 <= top < top + rows <= height and 0 <= left < left + columns <= width):
        return None
    crop = (left / width, top / height, columns / width, rows / height)
    a, b, c, d = (float(np.float32(value)) for value in crop)
    return View(a, b, c, d, False, None, operations)


def _operation(entry: Any) -> Operation:
    match entry:
        # Solarize's threshold is the largest; of a picture moved further, nothing would be left.
        case [int(number), int() | float() as magnitude] if 0 <= number < len(_NAMES) and abs(magnitude) <= 255:
            name = _NAMES[number]
            return Operation(name, (_fraction if name.startswith("Translate") else _half)(magnitude))
    raise ValueError(f"{json.dumps(entry)[:80]} is no operation")


def _half(value: float) -> float:
    return float(np.float16(value))


def _fraction(pixels: float) -> float:
    """Pixels of a side of 224 as a fraction that float16 holds, such that the very same whole pixels come of it again:
    torchvision cuts what is behind the point, so a fraction just below would move the picture by one pixel less.
    """
    fraction = np.float16(pixels / SIDE)
    if abs(int(float(fraction) * SIDE)) < abs(int(pixels)):
        fraction = np.nextafter(fraction, np.float16(math.copysign(math.inf, pixels)))
    elif abs(int(float(fraction) * SIDE)) > abs(int(pixels)):
        fraction = np.nextafter(fraction, np.float16(0))
    return float(fraction)


def augmentation_of(view: View, width: int, height: int) -> list[Any]:
    """A view as DataCompDR writes it, in whole pixels of an image of `width` x `height`. Mirrored views and jittered
    colours have no place in it.
    """
    assert not view.flip, view
    assert view.jitter is None, view
    left, columns = _pixels(view.left, view.width, width)
    top, rows = _pixels(view.top, view.height, height)
    operations = [
        [_NAMES.index(name), magnitude * (SIDE if name.startswith("Translate") else 1)]
        for name, magnitude in view.operations
    ]
    # Readers take two of them.
    operations += [[0, 0.0]] * (2 - len(operations))
    return [[top, left, rows, columns], operations]


def _pixels(start: float, length: float, side: int) -> tuple[int, int]:
    first = min(max(round(start * side), 0), side - 1)
    return first, min(max(round((start + length) * side), first + 1), side) - first
