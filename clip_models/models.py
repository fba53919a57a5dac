"""Load, create and save CLIP models in open_clip's formats; no pickle is written, none is executed on reading."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_models.pruned import put_blocks, take_shapes
from clip_models.published import PUBLISHED
from clip_models.students import PREFIX, ImageTower, timm_student
from shards.errors import UserError
from shards.storage import Folder

ModelConfig = dict[str, Any]
"""The content of an `open_clip_config.json`: `{"model_cfg": {...}, "preprocess_cfg": {...}}`.

That of a model without a text tower also has `"towers": ["image"]`.
"""

Tower = Literal["image", "text"]

Tokenizer = Callable[[list[str]], Tensor]
"""n texts → token ids (n, context_length) int64."""

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SPEC_FORMS = "Give ARCH:TAG, ARCH:/path/to/weights, hf-hub:ORG/NAME, or a folder that holds " + CONFIG_NAME


@dataclass
class LoadedModel:
    """A CLIP model ready to embed.

    `model` is open_clip's module in evaluation mode and float32: `encode_image((n, 3, h, w) float32, normalize=True)`
    and `encode_text((n, context_length) int64, normalize=True)` return (n, embed_dim) float32. `preprocess` is the
    evaluation transform, PIL image → (3, h, w) float32.

    A model that was saved without a text tower is an `ImageTower`: there is no `encode_text`, and `tokenizer` raises a
    `UserError` that says so.
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
    if spec.startswith("hf-hub:"):
        return _load_hub(spec, device)
    if spec.startswith("local-dir:") or Path(spec).is_dir():
        return _load_folder(spec, Path(spec.removeprefix("local-dir:")), device)
    name, colon, source = spec.partition(":")
    if not colon and ("/" in spec or spec.startswith(".")):
        raise UserError("there is no such folder", where=spec, do=_SPEC_FORMS)
    architecture = name.replace("/", "-")
    model_cfg = open_clip.get_model_config(architecture)
    if model_cfg is None:
        raise _unknown_architecture(name, spec, _SPEC_FORMS)
    tag = open_clip.get_pretrained_cfg(architecture, source)
    if tag:
        weights = _downloaded(tag, spec)
        if tag.get("quick_gelu"):
            model_cfg["quick_gelu"] = True
    elif "/" in source or source.endswith(_WEIGHT_SUFFIXES):
        weights = Path(source)
        if not source.endswith(_WEIGHT_SUFFIXES):
            raise UserError(f"weights end in {', '.join(_WEIGHT_SUFFIXES)}; this is {source!r}", where=spec)
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        problem = f"{source!r} is no tag of {architecture}" if source else f"no weights are named for {architecture}"
        raise UserError(problem, where=spec, do=f"Its tags: {tags}. {_SPEC_FORMS}")
    chosen = _preprocess_cfg(model_cfg, tag) if tag else _usual_preprocess_cfg(architecture, model_cfg)
    config = {"model_cfg": model_cfg, "preprocess_cfg": chosen}
    return _load(spec, config, weights, tokenizer_for(config), device)


def create_student(
    config: str, seed: int, towers: Sequence[Tower] = ("image", "text"), like: ModelConfig | None = None
) -> tuple[Any, ModelConfig]:
    """Create a randomly initialised float32 model in training mode, with its config.

    `config` is the name of a published student (`clip_models.students`) or of an open_clip architecture, `timm/NAME`
    for any image model of timm's, the path of a .json file in the format of open_clip's `model_configs` (`embed_dim`,
    `vision_cfg`, `text_cfg`), or a model's folder. The weights are a function of `config`, `seed` and `towers` alone;
    the caller's random state is left as it was. Preprocessing is the folder's, else open_clip's default at the model's
    image size. Without "text" in `towers` the model is an `ImageTower`, with a config by which `load_model` makes one
    again. `like`: the config of a model whose weights it is to inherit; its activation and the mean and deviation of
    its pixels are then the student's.

    Raises `UserError` for an unknown name, an unreadable file, or a configuration no model can be built from.
    """
    within = Path(config, CONFIG_NAME)
    full = _read_config(within) if within.is_file() else _named_config(config)
    full.pop("towers", None)
    if "text" not in towers:
        full["towers"] = ["image"]
    if like is not None:
        full["model_cfg"]["quick_gelu"] = like["model_cfg"].get("quick_gelu", False)
        full["preprocess_cfg"] |= {name: like["preprocess_cfg"][name] for name in ("mean", "std")}
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would reseed the accelerators as well, which the fork does not restore.
        torch.default_generator.manual_seed(seed)
        return _build(full, config), full


def _named_config(config: str) -> ModelConfig:
    if config.endswith(".json"):
        model_cfg = _read_json(Path(config), "Give a JSON file in the format of open_clip's model_configs")
    elif config.startswith(PREFIX):
        model_cfg = timm_student(config)
    else:
        model_cfg = open_clip.get_model_config(config.replace("/", "-"))
        if model_cfg is None:
            raise _unknown_student(config)
    _check_model_cfg(model_cfg, config)
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(model_cfg, {})}


def build_model(config: ModelConfig) -> Any:
    """A float32 model of this config in training mode, with some weights or other; no random state is touched.

    Raises `UserError` for a configuration no model can be built from.
    """
    with torch.random.fork_rng(devices=[]):
        return _build(config, "the configuration")


def tokenizer_for(config: ModelConfig) -> Tokenizer:
    """The tokenizer open_clip would choose for this config: n texts → (n, context_length) int64.

    Without an `hf_tokenizer_name` this is CLIP's own byte-pair encoding, which open_clip bundles: it needs no network.
    Of a model without a text tower it is one that raises a `UserError` when it is called.
    Raises `UserError` if a named tokenizer can neither be found locally nor fetched.
    """
    if _has_no_text(config):
        return _no_tokenizer
    text_cfg = config["model_cfg"]["text_cfg"]
    return _tokenizer(text_cfg, text_cfg.get("hf_tokenizer_name") or "")


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
    if not folder.is_dir():
        raise UserError("there is no such folder", where=spec, do=_SPEC_FORMS)
    config = _read_config(folder / CONFIG_NAME)
    text_cfg = config["model_cfg"]["text_cfg"]
    beside = text_cfg.get("hf_tokenizer_name") and (folder / "tokenizer_config.json").is_file()
    own = beside and not _has_no_text(config)
    tokenizer = _tokenizer(text_cfg, str(folder)) if own else tokenizer_for(config)
    return _load(spec, config, folder / WEIGHTS_NAME, tokenizer, device)


def _load_hub(spec: str, device: str | torch.device) -> LoadedModel:
    name = spec.removeprefix("hf-hub:")
    try:
        config = _read_config(Path(download_pretrained_from_hf(name, CONFIG_NAME)))
        weights = Path(download_pretrained_from_hf(name))
    except FileNotFoundError as error:
        raise UserError(
            f"the hub does not give it: {str(error).rstrip('.')}",
            where=spec,
            do="Check the name and the network, or fetch the repository elsewhere and give its folder",
        ) from error
    return _load(spec, config, weights, tokenizer_for(config), device)


def _read_config(path: Path) -> ModelConfig:
    do = f"A model folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
    config = _read_json(path, do)
    if not isinstance(config.get("model_cfg"), dict):
        raise UserError("it has no model_cfg", where=str(path), do=do)
    _check_model_cfg(config["model_cfg"], str(path))
    preprocess_cfg = _preprocess_cfg(config["model_cfg"], config.get("preprocess_cfg") or {})
    towers = {"towers": ["image"]} if _has_no_text(config) else {}
    return {"model_cfg": config["model_cfg"], "preprocess_cfg": preprocess_cfg, **towers}


def _has_no_text(config: ModelConfig) -> bool:
    return config.get("towers") == ["image"]


def _no_tokenizer(_texts: list[str]) -> Tensor:
    raise UserError(
        "this model has no text tower: it was trained to meet text embeddings from elsewhere",
        do="Embed texts with the text teacher that its run had",
    )


def _load(
    spec: str, config: ModelConfig, weights: Path, tokenizer: Tokenizer, device: str | torch.device
) -> LoadedModel:
    if not weights.is_file():
        raise UserError("there is no such weights file", where=str(weights), do=_SPEC_FORMS)
    model = _build(config, spec)
    try:
        keys = open_clip.load_checkpoint(model, str(weights), strict=False, weights_only=True, device="cpu")
    except Exception as error:  # a damaged file can raise anything
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
        raise UserError(f"the weights cannot be loaded into {spec}: {reason}", where=str(weights)) from error
    for fault, names in (("the file lacks", keys.missing_keys), ("it has no place for", keys.unexpected_keys)):
        if names:
            raise UserError(
                f"the weights do not fit {spec}: {fault} {len(names)} tensors, {names[0]!r} the first",
                where=str(weights),
                do="Name the architecture that the weights were trained with",
            )
    preprocess = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False)
    return LoadedModel(spec, model.to(device).eval(), config, preprocess, tokenizer)


def _build(config: ModelConfig, where: str) -> Any:
    """open_clip's module for a config, without weights of any source; as its `create_model` would make it."""
    arguments = deepcopy(config["model_cfg"])
    text_cfg, vision_cfg = arguments["text_cfg"], arguments["vision_cfg"]
    custom_text = arguments.pop("custom_text", False) or "hf_model_name" in text_cfg
    if "timm_model_name" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False
    if "hf_model_name" in text_cfg:
        text_cfg["hf_model_pretrained"] = False
    kind = open_clip.CLIP
    if _has_no_text(config):
        kind = ImageTower
    elif custom_text:
        kind = open_clip.CoCa if "multimodal_cfg" in arguments else open_clip.CustomTextCLIP
    try:
        shapes = take_shapes(arguments)
        model = kind(**arguments)
        put_blocks(model, shapes)
    except Exception as error:  # whatever the constructors of open_clip, timm and transformers object to
        reason = str(error) or type(error).__name__
        raise UserError(f"no model can be built from this configuration: {reason}", where=where) from error
    open_clip.set_model_preprocess_cfg(model, config["preprocess_cfg"])
    return model


def _tokenizer(text_cfg: dict[str, Any], source: str) -> Tokenizer:
    """`source` is the name or folder of a Hugging Face tokenizer, "" for CLIP's own."""
    length = text_cfg.get("context_length", 77)
    arguments = dict(text_cfg.get("tokenizer_kwargs") or {})
    if not source:
        own: Tokenizer = open_clip.get_tokenizer("", context_length=length, **arguments)
        return own
    mode = text_cfg.get("tokenizer_mode")
    try:
        named: Tokenizer = open_clip.tokenizer.HFTokenizer(
            source, context_length=length, tokenizer_mode=mode, **arguments
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the tokenizer cannot be loaded: {error}",
            where=source,
            do="Check the network, or save the tokenizer's files into the model's folder",
        ) from error
    return named


def _preprocess_cfg(model_cfg: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """open_clip's defaults overridden by `chosen`, at the model's own image size; as JSON would give it back."""
    merged = merge_preprocess_dict(asdict(PreprocessCfg()), chosen)
    merged["size"] = model_cfg["vision_cfg"].get("image_size", 224)
    plain: dict[str, Any] = json.loads(json.dumps(merged))
    return plain


def _usual_preprocess_cfg(architecture: str, model_cfg: dict[str, Any]) -> dict[str, Any]:
    """What all tags of an architecture were trained with, open_clip's default if they differ or there are none."""
    names = open_clip.list_pretrained_tags_by_model(architecture)
    tags = [_preprocess_cfg(model_cfg, open_clip.get_pretrained_cfg(architecture, name)) for name in names]
    alike = bool(tags) and all(tag == tags[0] for tag in tags)
    return tags[0] if alike else _preprocess_cfg(model_cfg, {})


def _downloaded(tag: dict[str, Any], spec: str) -> Path:
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # network, hub, disk and checksum each have their own family
        raise UserError(
            f"the weights cannot be downloaded: {error}",
            where=spec,
            do="Check the network, or fetch the file elsewhere and give ARCH:/path/to/weights",
        ) from error


def _read_json(path: Path, do: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path), do=do) from None
    except (OSError, ValueError) as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path), do=do) from error
    if not isinstance(data, dict):
        raise UserError(f"it holds a {type(data).__name__}, not an object", where=str(path), do=do)
    return data


def _check_model_cfg(model_cfg: dict[str, Any], where: str) -> None:
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    wrong = [field for field, kind in kinds.items() if not isinstance(model_cfg.get(field), kind)]
    if wrong:
        raise UserError(
            f"these fields are missing or of the wrong kind: {', '.join(wrong)}",
            where=where,
            do="A model has embed_dim (a number), vision_cfg and text_cfg (objects)",
        )


def _unknown_student(name: str) -> UserError:
    if any(row.name == name and row.role == "pruned" for row in PUBLISHED):
        return UserError(
            "its architecture is what a pruning run leaves",
            where=name,
            do=f"Run the recipe {name.lower()}-prune, and give that run's model folder",
        )
    if timm.is_model(name):
        return UserError(f"open_clip has no {name!r}, timm has", where="student", do=f"Give {PREFIX}{name}")
    hint = f"The path of a .json file works too, a model's folder, and {PREFIX}NAME for any image model of timm's"
    return _unknown_architecture(name, "student", hint)


def _unknown_architecture(name: str, where: str, hint: str) -> UserError:
    close = _closest(name, open_clip.list_models())
    do = f"The closest are {', '.join(close)}. {hint}" if close else hint
    return UserError(f"open_clip knows no architecture {name!r}", where=where, do=do)


def _closest(name: str, known: Iterable[str]) -> list[str]:
    by_lower = {item.lower(): item for item in known}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
