"""What every export shares: it is written aside, read back, compared with the original, and only then put in place.

The comparison runs random images, an image through both preprocessors, and captions chosen to be hard to tokenise.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.utils import to_2tuple
from PIL import Image
from torch import Tensor

from clip_models import LoadedModel
from shards.errors import UserError
from shards.storage import sync_to_disk

Measured = dict[str, float]
"""What an export measured; see `to_open_clip.export_open_clip`."""

EMBEDDING_TOLERANCE = 1e-4
"""Largest difference allowed in any component of a unit-length float32 embedding."""

CAPTIONS = [
    "a photo of a cat",
    "A Photo OF a CAT, taken In 2024 & 3.14 times",
    "café naïve Ångström Ünïcödé",
    "😀 a dog 🎉 👨‍👩‍👧",
    "it's John's dogs' toys; they're I'VE don't",
    "  many   spaces\t\nhere  ",
    "日本語のテキスト, привет мир, नमस्ते",
    "½ ² a_b_c !!!...---",
    "",
    "a very long caption " * 60,
    # From here on open_clip's cleaning (ftfy, html) changes the text before it is encoded.
    "Tom &amp; Jerry &lt;3 &quot;cheese&quot;",
    "“curly” ‘quotes’ and ﬁne ligatures",
]


class Outputs(NamedTuple):
    """Unit-length embeddings (5, D) and (captions, D), and logits (5, captions); float32."""

    images: Tensor
    texts: Tensor
    logits: Tensor


def reference_outputs(model: Any, loaded: LoadedModel) -> Outputs:
    reference = outputs(model, loaded.preprocess, loaded.tokenizer)
    if not (reference.images.isfinite().all() and reference.texts.isfinite().all()):
        raise UserError(
            "the model's embeddings are not finite",
            where=loaded.name,
            do="Export a checkpoint from before training diverged",
        )
    return reference


@torch.no_grad()
def outputs(model: Any, preprocess: Callable[[Image.Image], Tensor], tokenizer: Any) -> Outputs:
    pixels = torch.cat([random_pixels(model), preprocess(picture(model))[None]])
    images = model.encode_image(pixels, normalize=True)
    texts = model.encode_text(tokenizer(CAPTIONS), normalize=True)
    logits = model.logit_scale.exp() * images @ texts.T
    if model.logit_bias is not None:
        logits = logits + model.logit_bias
    return Outputs(images, texts, logits)


def compared(reference: Outputs, exported: Outputs) -> Measured:
    pairs = zip(("image_embedding", "text_embedding", "logits"), reference, exported, strict=True)
    measured = {name: (here - there).abs().max().item() for name, here, there in pairs}
    for name in ("image_embedding", "text_embedding"):
        if not measured[name] <= EMBEDDING_TOLERANCE:
            raise RuntimeError(f"the exported model differs: {name} by {measured[name]:.2g}")
    return measured


def random_pixels(model: Any) -> Tensor:
    return torch.randn(4, 3, *to_2tuple(model.visual.image_size), generator=torch.Generator().manual_seed(0))


def picture(model: Any) -> Image.Image:
    """A smooth coloured picture, three times as wide as high so that the centre crop's margin is always even."""
    height, _ = to_2tuple(model.visual.image_size)
    noise = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((6 * height, 2 * height), Image.Resampling.BICUBIC)


def on_cpu(loaded: LoadedModel) -> Any:
    """A copy to compare with: accelerators may compute float32 convolutions less exactly."""
    return deepcopy(loaded.model).to("cpu", torch.float32).eval()


@contextmanager
def staged(folder: str) -> Iterator[Path]:
    """A sibling of `folder` that takes its name when the block ends without an exception, and vanishes otherwise."""
    if "://" in folder:
        raise UserError("an export's folder must be on a local disk", where=folder, do="Give a path")
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("there is something already", where=folder, do="Name another folder or remove this one")
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"no folder can be made there ({error.strerror})", where=folder, do="Check the path") from error
    try:
        yield staging
        for path in (*staging.rglob("*"), staging):
            sync_to_disk(path)
        staging.rename(target)
        sync_to_disk(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
