"""What every teacher is: two calls that embed, and the facts that name what they return."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clip_models import autocast
from shards import UserError
from teacher_cache.teachers.settings import Forward, Towers

PROBE = [
    "a photo of a cat",
    "Ünïcode, emoji 🙂 & punctuation!",
    "",
    "A PHOTO of  3 dogs\tand 1,234 birds",
    "the quick brown fox jumps over the lazy dog, " * 100,
]
"""Texts whose token ids tell tokenizers apart: by case, spaces, digits, characters and where they truncate."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a teacher is, whichever of its towers are loaded.

    `image_size` is the side in pixels of the square images it sees, None without an image tower; `resize_mode` how its
    own evaluation makes an image square (shortest: shorter side resized, centre cropped; squash: aspect ratio given
    up; longest: padded), with `interpolation` bicubic or bilinear. `logit_scale` is a multiplier (100, not 4.6),
    `logit_bias` SigLIP's. `identity` is JSON-able and decides the embeddings; `versions` are the libraries that ran,
    for the record.
    """

    image_size: int | None
    resize_mode: str
    interpolation: str
    has_text: bool
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    identity: dict[str, Any]
    versions: dict[str, str]


class Teacher(ABC):
    """A loaded teacher on a device. The attributes are those of `Facts`; a kind implements the two forwards."""

    def __init__(self, spec: str, facts: Facts, forward: Forward, towers: Towers) -> None:
        self.spec, self.forward, self.towers = spec, forward, towers
        self.device = forward.torch_device()
        if forward.precision == "fp32" and self.device.type == "cuda":
            # Torch lets cuDNN round the inputs of convolutions, a ViT's patch embedding among them, to TF32's 10 bits.
            torch.backends.cudnn.allow_tf32 = False
        self.image_size, self.has_text = facts.image_size, facts.has_text
        self.resize_mode, self.interpolation = facts.resize_mode, facts.interpolation
        self.embed_dim, self.logit_scale, self.logit_bias = facts.embed_dim, facts.logit_scale, facts.logit_bias
        self.identity, self.versions = facts.identity, facts.versions
        for tower, present in (("image", self.image_size is not None), ("text", self.has_text)):
            if towers == tower and not present:
                raise UserError(f"this teacher has no {tower} tower", where=spec)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """(n, S, S, 3) uint8 RGB on any device → (n, D) float32 of unit norm on `self.device`; does not wait for it.

        Raises `UserError` if the teacher has no image tower or it was not loaded.
        """
        self._refuse("image", self.image_size is not None)
        with autocast(self.device, self.forward.precision):
            embeddings = self._images(pixels.to(self.device, non_blocking=True))
        return self._unit(embeddings, len(pixels), "embed_images")

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """n texts → (n, D) float32 of unit norm on `self.device`.

        Raises `UserError` if the teacher has no text tower or it was not loaded.
        """
        self._refuse("text", self.has_text)
        with autocast(self.device, self.forward.precision):
            embeddings = self._texts(texts)
        return self._unit(embeddings, len(texts), "embed_texts")

    @abstractmethod
    def _images(self, pixels: Tensor) -> Any:
        """(n, S, S, 3) uint8 on the device → (n, D), any norm."""

    @abstractmethod
    def _texts(self, texts: list[str]) -> Any:
        """n texts → (n, D), any norm."""

    def _refuse(self, tower: Towers, present: bool) -> None:
        if not present:
            raise UserError(f"this teacher has no {tower} tower", where=self.spec)
        if self.towers not in ("both", tower):
            raise UserError(f"the teacher was loaded without its {tower} tower", where=self.spec)

    def _unit(self, embeddings: Any, count: int, call: str) -> Tensor:
        shape = tuple(getattr(embeddings, "shape", ()))
        if shape != (count, self.embed_dim):
            what = f"the shape {shape}" if shape else f"a {type(embeddings).__name__}"
            raise UserError(f"{call} returned {what}, not ({count}, {self.embed_dim})", where=self.spec)
        floats = torch.as_tensor(embeddings).to(self.device).float()
        return nn.functional.normalize(floats, dim=-1)


def compiled(call: Callable[..., Any], forward: Forward) -> Callable[..., Any]:
    """The call itself, or compiled if the forward asks for it."""
    return torch.compile(call) if forward.compile else call


def conv_layout(tower: nn.Module, device: torch.device) -> None:
    """Channels last for a convolutional tower on CUDA, whose kernels want it. A ViT's one patch layer gains nothing."""
    if device.type == "cuda" and sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1:
        tower.to(memory_format=torch.channels_last)


def keep_only(model: nn.Module, kept: Iterable[str]) -> None:
    """Free every child and parameter of a module but these."""
    kept = set(kept)
    for name in [*dict(model.named_children()), *dict(model.named_parameters(recurse=False))]:
        if name not in kept:
            delattr(model, name)


def tokens_hash(ids: Iterable[Tensor]) -> str:
    """16 hex digits over token ids, and masks if there are any."""
    digest = hashlib.sha256()
    for tensor in ids:
        digest.update(tensor.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes, dtypes and bytes of every tensor, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
