"""Teachers of the user's own: any class that embeds.

    class Mine:                                     # python:package.module:Mine
        image_size = 224
        identity = {"weights": "sha256 of what I loaded"}

        def embed_images(self, pixels): ...         # (n, 224, 224, 3) uint8 tensor on the device → (n, D)
        def embed_texts(self, texts): ...           # n strings → (n, D)

It is made without arguments. Without one of the two methods it has no such tower. The methods return tensors or
arrays, which need not be normalised. `logit_scale` (a multiplier, default 100), `logit_bias`, `resize_mode` (default
"shortest") and `interpolation` (default "bicubic", else "bilinear") are optional. An nn.Module is moved to the device
and is identified by its state; any other class must have `identity`, a JSON-able value that changes whenever its
embeddings may. The module's source is part of the identity either way.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from shards import UserError
from teacher_cache.teachers.base import Facts, Teacher, weights_hash
from teacher_cache.teachers.settings import Forward, Towers


class PythonTeacher(Teacher):
    """Runs an instance of the class that `name` (`package.module:Class`) names. Compiling is left to the class."""

    def __init__(self, spec: str, name: str, forward: Forward, towers: Towers) -> None:
        self._object, source = _make(name, spec)
        if isinstance(self._object, nn.Module):
            self._object.to(forward.torch_device()).eval()
        super().__init__(spec, _facts(self._object, source, spec), forward, towers)
        self.embed_dim = self._probe()

    def _images(self, pixels: Tensor) -> Any:
        return self._object.embed_images(pixels)

    def _texts(self, texts: list[str]) -> Any:
        return self._object.embed_texts(texts)

    @torch.inference_mode()
    def _probe(self) -> int:
        """D, from one embedding by each tower that is wanted."""
        widths = {}
        if self.image_size is not None and self.towers != "text":
            black = torch.zeros(1, self.image_size, self.image_size, 3, dtype=torch.uint8, device=self.device)
            widths["embed_images"] = self._width("embed_images", black)
        if self.has_text and self.towers != "image":
            widths["embed_texts"] = self._width("embed_texts", ["a photo"])
        if len(set(widths.values())) > 1:
            raise UserError(f"its embeddings differ in width: {widths}", where=self.spec)
        return next(iter(widths.values()))

    def _width(self, method: str, batch: Any) -> int:
        try:
            embedding = getattr(self._object, method)(batch)
        except Exception as error:  # it is the user's code
            raise UserError(f"{method} raised {type(error).__name__}: {error}", where=self.spec) from error
        shape = tuple(getattr(embedding, "shape", ()))
        if len(shape) != 2 or shape[0] != 1:
            what = f"the shape {shape}" if shape else f"a {type(embedding).__name__}"
            raise UserError(f"{method} returned {what} for one input, not (1, D)", where=self.spec)
        return int(shape[1])


def _make(name: str, spec: str) -> tuple[Any, str]:
    """The object, and the hash of the source it comes from."""
    place, colon, attribute = name.partition(":")
    if not (place and colon and attribute):
        raise UserError("it does not name a class", where=spec, do="Give python:package.module:Class")
    try:
        module = importlib.import_module(place)
        made = getattr(module, attribute)()
    except Exception as error:  # it is the user's code
        raise UserError(
            f"the class cannot be imported and made: {type(error).__name__}: {error}",
            where=spec,
            do="It must be importable (PYTHONPATH) and take no arguments",
        ) from error
    file = getattr(module, "__file__", None)
    if file is None:
        raise UserError("its module has no source file", where=spec)
    with open(file, "rb") as source:
        return made, hashlib.file_digest(source, "sha256").hexdigest()[:16]


def _facts(made: Any, source: str, spec: str) -> Facts:
    images, texts = (callable(getattr(made, name, None)) for name in ("embed_images", "embed_texts"))
    if not (images or texts):
        raise UserError("the class has neither embed_images nor embed_texts", where=spec)
    size = getattr(made, "image_size", None)
    if images and not (isinstance(size, int) and size > 0):
        raise UserError(f"image_size is {size!r}, not the side in pixels of the images it sees", where=spec)
    identity: dict[str, Any] = {"kind": "python", "class": type(made).__qualname__, "source": source}
    own = getattr(made, "identity", None)
    if own is not None:
        try:
            identity["identity"] = json.loads(json.dumps(own))
        except (TypeError, ValueError) as error:
            raise UserError(f"its identity is not JSON-able: {error}", where=spec) from error
    if isinstance(made, nn.Module):
        identity["weights"] = weights_hash(made.state_dict())
    elif own is None:
        raise UserError(
            "the class has no identity",
            where=spec,
            do="Give it `identity`, a JSON-able value that changes whenever its embeddings may, or make it an "
            "nn.Module, whose state is hashed",
        )
    bias = getattr(made, "logit_bias", None)
    mode, interpolation = str(getattr(made, "resize_mode", "shortest")), getattr(made, "interpolation", "bicubic")
    if interpolation not in ("bicubic", "bilinear"):
        raise UserError(f"interpolation is {interpolation!r}, neither bicubic nor bilinear", where=spec)
    preprocess = {"size": size, "resize_mode": mode, "interpolation": interpolation}
    return Facts(
        image_size=size if images else None,
        resize_mode=mode,
        interpolation=interpolation,
        has_text=texts,
        embed_dim=0,  # known once it has embedded something
        logit_scale=float(getattr(made, "logit_scale", 100.0)),
        logit_bias=None if bias is None else float(bias),
        identity={**identity, "preprocess": preprocess} if images else identity,
        versions={"torch": torch.__version__},
    )
