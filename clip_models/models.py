"""Load and save CLIP models in open_clip's formats; no pickle is written, none is executed on reading."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_models.config import (
    ModelConfig,
    has_no_image,
    has_no_text,
    preprocess_cfg,
    read_config,
)
from clip_models.create import build
from clip_models.spec import CONFIG_NAME, SPEC_FORMS, WEIGHT_SUFFIXES, WEIGHTS_NAME, refuse_absent
from clip_models.tokenizer import Tokenizer, named_tokenizer, tokenizer_for
from shards.errors import UserError
from shards.storage import Folder


@dataclass
class LoadedModel:
    """A CLIP model ready to embed.

    `model` is open_clip's module in evaluation mode and float32: `encode_image((n, 3, h, w) float32, normalize=True)`
    and `encode_text((n, context_length) int64, normalize=True)` return (n, embed_dim) float32. `preprocess` is the
    evaluation transform, PIL image → (3, h, w) float32.

    A model that was saved without a text tower is an `ImageTower`: there is no `encode_text`, and `tokenizer` raises a
    `UserError` that says so. One that was saved without an image tower is a `TextTower`: `encode_image` takes the
    embeddings that it was trained to meet, and `preprocess` raises.
    """

    name: str
    model: Any
    config: ModelConfig
    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Tokenizer


def load_model(spec: str, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model with its evaluation preprocessing and its tokenizer.

    `spec` is `ARCH:TAG` (a pretrained tag of open_clip, fetched and cached by open_clip), `ARCH:/path/to/weights`
    (.safetensors; .pt, .pth and .bin are read without executing pickled code), a folder with `open_clip_config.json`
    and `open_clip_model.safetensors` (also as `local-dir:FOLDER`), or `hf-hub:ORG/NAME`, a repository of such files,
    fetched and cached by huggingface_hub. Weights without a config beside them get the preprocessing that all tags of
    their architecture share (SigLIP's, say), else open_clip's default. A tag that was trained with QuickGELU gets it,
    also under an architecture whose own configuration says GELU (open_clip itself only warns there, and computes
    something else).

    Raises `UserError` if the architecture, tag, folder or file is unknown, cannot be fetched or read, or if the
    weights do not fit the architecture.
    """
    refuse_absent(spec)
    if spec.startswith("hf-hub:"):
        return _load_hub(spec, device)
    if spec.startswith("local-dir:") or Path(spec).is_dir():
        return _load_folder(spec, Path(spec.removeprefix("local-dir:")), device)
    name, _, source = spec.partition(":")
    architecture = name.replace("/", "-")
    model_cfg: dict[str, Any] = open_clip.get_model_config(architecture)
    tag = open_clip.get_pretrained_cfg(architecture, source)
    if tag:
        weights = _downloaded(tag, spec)
        if tag.get("quick_gelu"):
            model_cfg["quick_gelu"] = True
    elif "/" in source or source.endswith(WEIGHT_SUFFIXES):
        weights = Path(source)
        if not source.endswith(WEIGHT_SUFFIXES):
            raise UserError(f"weights end in {', '.join(WEIGHT_SUFFIXES)}; this is {source!r}", where=spec)
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        problem = f"{source!r} is no tag of {architecture}" if source else f"no weights are named for {architecture}"
        raise UserError(problem, where=spec, do=f"Its tags: {tags}. {SPEC_FORMS}")
    chosen = preprocess_cfg(model_cfg, tag) if tag else _usual_preprocess_cfg(architecture, model_cfg)
    config = {"model_cfg": model_cfg, "preprocess_cfg": chosen}
    return _load(spec, config, weights, tokenizer_for(config), device)


def save_model(model: nn.Module, config: ModelConfig, folder: str) -> None:
    """Write `model` as a folder that `load_model` and open_clip (`local-dir:FOLDER`) read.

    One whose layers differ (`clip_models.pruned`) is read by `load_model` alone.

    Each file appears complete or not at all, the config last: a folder without one is no model. Tensors that share
    memory are written out one by one. Files of other names are left alone.
    Raises `UserError` if the folder cannot be written.
    """
    target = Folder(folder)
    text = (json.dumps(config, indent=2) + "\n").encode()
    if target.exists(CONFIG_NAME) and target.read(CONFIG_NAME) != text:
        # The old config must not stand beside the new weights, not even for a moment.
        target.delete(CONFIG_NAME)
    # A copy of each: safetensors refuses tensors that share memory and those that are views with gaps.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    with target.staged(WEIGHTS_NAME) as path:
        # safetensors makes files that only their owner may read; a model is as readable as any other new file.
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)
    target.publish(CONFIG_NAME, text)


def _load_folder(spec: str, folder: Path, device: str | torch.device) -> LoadedModel:
    config = read_config(folder / CONFIG_NAME)
    text_cfg = config["model_cfg"]["text_cfg"]
    beside = text_cfg.get("hf_tokenizer_name") and (folder / "tokenizer_config.json").is_file()
    own = beside and not has_no_text(config)
    tokenizer = named_tokenizer(text_cfg, str(folder)) if own else tokenizer_for(config)
    return _load(spec, config, folder / WEIGHTS_NAME, tokenizer, device)


def _load_hub(spec: str, device: str | torch.device) -> LoadedModel:
    name = spec.removeprefix("hf-hub:")
    try:
        config = read_config(Path(download_pretrained_from_hf(name, CONFIG_NAME)))
        weights = Path(download_pretrained_from_hf(name))
    except FileNotFoundError as error:
        raise UserError(
            f"the hub does not give it: {str(error).rstrip('.')}",
            where=spec,
            do="Check the name and the network, or fetch the repository elsewhere and give its folder",
        ) from error
    return _load(spec, config, weights, tokenizer_for(config), device)


def _load(
    spec: str, config: ModelConfig, weights: Path, tokenizer: Tokenizer, device: str | torch.device
) -> LoadedModel:
    if not weights.is_file():
        raise UserError("there is no such weights file", where=str(weights), do=SPEC_FORMS)
    model = build(config, spec)
    try:
        keys = open_clip.load_checkpoint(model, str(weights), strict=False, weights_only=True, device="cpu")
    except Exception as error:  # a damaged file can raise anything
        raise _unreadable(error, spec, weights) from error
    for fault, names in (("the file lacks", keys.missing_keys), ("it has no place for", keys.unexpected_keys)):
        if names:
            raise UserError(
                f"the weights do not fit {spec}: {fault} {len(names)} tensors, {names[0]!r} the first",
                where=str(weights),
                do="Name the architecture that the weights were trained with",
            )
    seen = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False)
    preprocess = _no_preprocess if has_no_image(config) else seen
    return LoadedModel(spec, model.to(device).eval(), config, preprocess, tokenizer)


def _no_preprocess(_image: Image.Image) -> Tensor:
    raise UserError(
        "this model has no image tower: it was trained to meet image embeddings from elsewhere",
        do="Join it with the image tower that its run's teacher has: `clipstill models join`",
    )


def _unreadable(error: Exception, spec: str, weights: Path) -> UserError:
    """Why weights cannot be loaded, out of what torch and safetensors say, which is several lines and in colours."""
    text = str(error)
    asked = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:global|class) (\S+)", text)
    if asked:
        there = str(weights)
        return UserError(
            f"it holds Python objects beside the weights ({asked[1] or asked[2]}), and none are made out of a file",
            where=there,
            do='If you trust it, save the weights alone and give that file: python -c "import torch; c = '
            f"torch.load({there!r}, weights_only=False); torch.save(c.get('state_dict', c), 'weights.pt')\"",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    reason = next((line for line in lines if "size mismatch" in line), "")
    if reason:
        do = "Name the architecture that the weights were trained with"
    else:
        do = "Give weights as torch.save or safetensors wrote them; fetch the file again if it is damaged"
        said = f" ({lines[0].rstrip('.')})" if "Weights only" not in text and not lines[0].isdigit() else ""
        reason = f"it is damaged, or of another kind{said}"
    return UserError(f"the weights cannot be loaded into {spec}: {reason}", where=str(weights), do=do)


def _usual_preprocess_cfg(architecture: str, model_cfg: dict[str, Any]) -> dict[str, Any]:
    """What all tags of an architecture were trained with, open_clip's default if they differ or there are none."""
    names = open_clip.list_pretrained_tags_by_model(architecture)
    tags = [preprocess_cfg(model_cfg, open_clip.get_pretrained_cfg(architecture, name)) for name in names]
    alike = bool(tags) and all(tag == tags[0] for tag in tags)
    return tags[0] if alike else preprocess_cfg(model_cfg, {})


def _downloaded(tag: dict[str, Any], spec: str) -> Path:
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # network, hub, disk and checksum each have their own family
        raise UserError(
            f"the weights cannot be downloaded: {error}",
            where=spec,
            do="Check the network, or fetch the file elsewhere and give ARCH:/path/to/weights",
        ) from error
