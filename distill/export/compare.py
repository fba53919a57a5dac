"""What every export is compared by: the original's embeddings and logits beside those of what was read back.

The comparison runs random images, an image through both preprocessors, and captions chosen to be hard to tokenise.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from open_clip.utils import to_2tuple
from PIL import Image
from torch import Tensor

from clip_models import LoadedModel
from clip_models.shapes import PRUNED
from shards.errors import UserError

Measured = dict[str, float]
"""What an export measured; see `to_open_clip.export_open_clip`."""

EMBEDDING_TOLERANCE = 1e-4
"""Largest difference allowed in any component of a unit-length float32 embedding."""

LOGIT_TOLERANCE = 1e-3
"""Largest difference allowed in a logit, as a share of the largest logit (of 1, if all are smaller)."""

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


HOLDS_EVERY_MODEL = "torchscript, onnx or safetensors, which hold every model"


class Outputs(NamedTuple):
    """Unit-length embeddings (5, D) and (captions, D), and logits (5, captions); float32.

    Of a model without a text tower, `texts` is None, and logits are those of `made_up_texts`.
    """

    images: Tensor
    texts: Tensor | None
    logits: Tensor


def has_text(model: Any) -> bool:
    return hasattr(model, "encode_text")


def beyond_open_clip(loaded: LoadedModel) -> str | None:
    """Why open_clip itself cannot build this model; None if it can."""
    if not has_text(loaded.model):
        return "it has no text tower"
    if PRUNED in loaded.config["model_cfg"]:
        return "it was pruned, and its layers differ"
    name = loaded.config["model_cfg"]["vision_cfg"].get("timm_model_name")
    # Where only Clipstill registers it, a process that has imported no more than open_clip does not know the name.
    if name and timm.is_model(name) and not timm.model_entrypoint(name).__module__.startswith("timm."):
        return f"its image tower, {name}, is Clipstill's own and unknown to timm"
    return None


def reference_outputs(model: Any, loaded: LoadedModel) -> Outputs:
    reference = outputs(model, loaded.preprocess, loaded.tokenizer)
    if not all(part.isfinite().all() for part in reference if part is not None):
        raise UserError(
            "the model's embeddings are not finite",
            where=loaded.name,
            do="Export a checkpoint from before training diverged",
        )
    return reference


@torch.no_grad()
def outputs(model: Any, preprocess: Callable[[Image.Image], Tensor], tokenizer: Any) -> Outputs:
    images = model.encode_image(shown(model, preprocess), normalize=True)
    texts = model.encode_text(tokenizer(CAPTIONS), normalize=True) if has_text(model) else None
    return Outputs(images, texts, logits_of(model, images, texts))


def shown(model: Any, preprocess: Callable[[Image.Image], Tensor]) -> Tensor:
    """What the image tower is shown: (5, 3, h, w) float32."""
    return torch.cat([random_pixels(model), preprocess(picture(model))[None]])


def made_up_texts(dim: int) -> Tensor:
    """(captions, dim) float32 of unit norm, in place of what a text tower from elsewhere would say."""
    return F.normalize(torch.randn(len(CAPTIONS), dim, generator=torch.Generator().manual_seed(1)), dim=-1)


def scale_and_bias(model: Any) -> tuple[float, float]:
    """Logits are scale · image · text + bias."""
    bias = getattr(model, "logit_bias", None)
    return model.logit_scale.exp().item(), 0.0 if bias is None else bias.item()


def logits_of(model: Any, images: Tensor, texts: Tensor | None) -> Tensor:
    """(n, D) and (m, D) of unit norm → (n, m)."""
    scale, bias = scale_and_bias(model)
    return scale * images @ (made_up_texts(images.shape[1]) if texts is None else texts).T + bias


def compared(reference: Outputs, exported: Outputs) -> Measured:
    measured = {}
    for name, here, there in zip(("image_embedding", "text_embedding", "logits"), reference, exported, strict=True):
        if here is None or there is None:
            continue
        measured[name] = (here - there).abs().max().item()
        largest = max(1.0, here.abs().max().item())
        if not measured[name] <= (LOGIT_TOLERANCE * largest if name == "logits" else EMBEDDING_TOLERANCE):
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
