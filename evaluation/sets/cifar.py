"""CIFAR-10 and CIFAR-100 as cs.toronto.edu/~kriz/cifar.html has them, binary or for Python; the test images alone.

The Python version is a pickle: it is read by an unpickler that makes arrays, texts and numbers, and calls nothing else.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from PIL import Image

from evaluation.prompts import CIFAR_TEMPLATES
from evaluation.sets.base import EvaluationSet, Images, Place, SetSettings, check_labels, chosen_prompts, refuse_empty
from evaluation.sets.files import Tree
from evaluation.tasks import Classification
from shards.errors import UserError

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_FILES = {
    "test_batch.bin": ("cifar10", "batches.meta.txt", 1),
    "test.bin": ("vtab-cifar100", "fine_label_names.txt", 2),
    "test_batch": ("cifar10", "batches.meta", 0),
    "test": ("vtab-cifar100", "meta", 0),
}
"""Images → task, the file with its class names, bytes of labels before each image (0: a pickle)."""
_TRAINING = {"data_batch_1.bin", "data_batch_1", "train.bin", "train"}
_WHERE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def fits(place: Place) -> bool:
    if place.file is not None:
        return place.file in _FILES or place.file in _TRAINING
    metas = {"batches.meta.txt", "fine_label_names.txt", "batches.meta", "meta"}
    return bool(place.files & metas) and bool(place.files & (set(_FILES) | _TRAINING))


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:
    if place.file in _TRAINING or not place.files & set(_FILES):
        raise UserError(
            "only training images are here", where=place.url, do=f"Evaluation is on the test images: {_WHERE}"
        )
    file = place.file or next(name for name in _FILES if name in place.files)
    task, meta, labels_before = _FILES[file]
    read = _binary if labels_before else _pickled
    labels, pixels = read(place.tree, file, labels_before)
    refuse_empty(len(labels), f"{place.tree}/{file}")
    names = _names(place.tree, meta, pickled=not labels_before)
    get = f"{meta} comes with the images: {_WHERE}"
    prompts = chosen_prompts(settings.class_file(), names, CIFAR_TEMPLATES, str(place.tree), get)
    check_labels(prompts, labels, f"{place.tree}/{file}")
    images = _Images(pixels, f"{place.tree}/{file}")
    return EvaluationSet(task, images, {"zero_shot": Classification(prompts, labels)})


def _binary(tree: Tree, file: str, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) int64, of CIFAR-100 the fine ones, and pixels (n, 3, 32, 32) uint8."""
    data = np.frombuffer(tree.read(file), np.uint8)
    row = before + _PIXELS
    if len(data) % row:
        raise UserError(
            f"{len(data):,} bytes are no whole number of images of {row:,}",
            where=f"{tree}/{file}",
            do=f"Fetch it again: {_WHERE}",
        )
    rows = data.reshape(-1, row)
    return rows[:, before - 1].astype(np.int64), rows[:, before:].reshape(-1, 3, _SIDE, _SIDE)


def _pickled(tree: Tree, file: str, _: int) -> tuple[np.ndarray, np.ndarray]:
    held = _unpickled(tree, file)
    found = held.get(b"fine_labels", held.get(b"labels"))
    pixels = held.get(b"data")
    sizes_fit = isinstance(found, list) and isinstance(pixels, np.ndarray) and pixels.shape == (len(found), _PIXELS)
    if not sizes_fit or pixels.dtype != np.uint8:  # type: ignore[union-attr]
        raise UserError("it holds no images and labels of CIFAR", where=f"{tree}/{file}", do=f"Fetch it: {_WHERE}")
    return np.array(found, np.int64), pixels.reshape(-1, 3, _SIDE, _SIDE)  # type: ignore[union-attr]


def _names(tree: Tree, meta: str, *, pickled: bool) -> list[str] | None:
    if not pickled:
        return tree.lines(meta)
    try:
        held = _unpickled(tree, meta)
    except FileNotFoundError:
        return None
    found = held.get(b"fine_label_names", held.get(b"label_names")) or []
    return [name.decode("ascii", "replace") for name in found if isinstance(name, bytes)]


class _Unpickler(pickle.Unpickler):
    """Makes numpy arrays of bytes and the like; whatever else a pickle asks for is refused."""

    _allowed = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is run by nobody here")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickled(tree: Tree, file: str) -> dict[bytes, Any]:
    try:
        held = _Unpickler(io.BytesIO(tree.read(file)), encoding="bytes").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises anything
        raise UserError(
            f"not read as a pickle of CIFAR ({error})", where=f"{tree}/{file}", do=f"Fetch it again: {_WHERE}"
        ) from None
    return held if isinstance(held, dict) else {}


class _Images(Images):
    def __init__(self, pixels: np.ndarray, where: str) -> None:
        self._pixels, self._where = pixels, where

    def __len__(self) -> int:
        return len(self._pixels)

    def name(self, at: int) -> str:
        return f"{self._where}, image {at}"

    def read(self, at: int) -> bytes:
        sink = io.BytesIO()
        self.open(at).save(sink, "PNG")
        return sink.getvalue()

    def open(self, at: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._pixels[at].transpose(1, 2, 0)))
