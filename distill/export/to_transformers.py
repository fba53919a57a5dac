"""Export to a folder for transformers' CLIPModel and CLIPProcessor, which hold plain ViT towers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from clip_models import LoadedModel
from distill.export.card import write_card
from distill.export.compare import (
    CAPTIONS,
    HOLDS_EVERY_MODEL,
    Measured,
    Outputs,
    beyond_open_clip,
    compared,
    on_cpu,
    picture,
    random_pixels,
    reference_outputs,
)
from distill.export.staging import staged
from distill.use.by_torch import quiet_transformers
from shards.errors import UserError

_EOT = 49407


def export_transformers(loaded: LoadedModel, folder: str) -> Measured:
    """Write a folder for `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` of transformers.

    Returns what `export_open_clip` returns, and `image_embedding_default_preprocessor`. Three things are not the same
    by the design of transformers:

    - Its tokenizer skips open_clip's cleaning (ftfy: broken encodings, curly quotes, ligatures, full-width letters;
      HTML entities) and lowers a final sigma by another rule. Captions on which that matters are counted in
      `captions_tokenised_differently`; the same captions, once cleaned, must give the same ids, or the export fails.
      It pads with the end token where open_clip pads with 0, which no embedding sees. Text that spells out one
      library's special tokens is encoded differently.
    - Its default (torchvision) image processor rounds a resized pixel by up to one level of 255 differently from PIL,
      which moves an embedding by about 1e-4: this is `image_embedding_default_preprocessor`. With
      `CLIPProcessor.from_pretrained(folder, backend="pil")` the pixels are equal; that is what is compared.
    - Where the margin that the centre crop removes leaves 3 when divided by 4, it crops one pixel further to the left.

    Raises as `export_open_clip` does, and `UserError` if the model has a part that `CLIPModel` cannot express.
    """
    beyond = beyond_open_clip(loaded)
    part = beyond or _inexpressible(loaded.model, loaded.config)
    if part is not None:
        raise UserError(
            f"transformers' CLIPModel cannot hold this model: {part}",
            where=loaded.name,
            do=f"Export it as {HOLDS_EVERY_MODEL if beyond else 'open_clip'}",
        )
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging, quiet_transformers():
        measured = _write_transformers(model, loaded, reference, staging)
        write_card(staging, loaded, "transformers", measured)
    return measured


def _inexpressible(model: Any, config: dict[str, Any]) -> str | None:
    """The first part that `CLIPModel` has no counterpart for; None if there is none."""
    if type(model) is not open_clip.CLIP:
        return f"its text tower is a custom one ({type(model).__name__})"
    if type(model.visual) is not VisionTransformer:
        return f"its image tower is a {type(model.visual).__name__}, not a plain ViT"
    visual, text_cfg = model.visual, config["model_cfg"]["text_cfg"]
    tokenizer_kwargs = text_cfg.get("tokenizer_kwargs") or {}
    checks = [
        (model.logit_bias is not None, "it has a logit bias (SigLIP)"),
        (visual.attn_pool is not None, "its image tower has an attentional pool"),
        (visual.pool_type != "tok", f"its image tower pools by {visual.pool_type!r}, not the class token"),
        (isinstance(visual.ln_pre, nn.Identity), "its image tower has no layer norm before the blocks (no_ln_pre)"),
        (visual.output_tokens, "its image tower returns tokens too (output_tokens)"),
        (len(set(visual.image_size)) > 1 or len(set(visual.patch_size)) > 1, "its images or patches are not square"),
        (model.attn_mask is None, "its text tower has no causal mask"),
        (
            model.text_pool_type != "argmax" and (model.text_pool_type, model.text_eos_id) != ("eos", _EOT),
            f"its text tower pools by {model.text_pool_type!r}, not the end token",
        ),
        (model.vocab_size != _EOT + 1, f"its vocabulary has {model.vocab_size} tokens, CLIP's has {_EOT + 1}"),
        (bool(text_cfg.get("hf_tokenizer_name")), "its tokenizer is not CLIP's"),
        (tokenizer_kwargs not in ({}, {"clean": "lower"}), f"its tokenizer has settings of its own {tokenizer_kwargs}"),
        (model.text_projection is None, "its text tower has no projection"),
        (getattr(model.text_projection, "bias", None) is not None, "its text projection has a bias"),
        (config["preprocess_cfg"]["resize_mode"] == "longest", "its preprocessing pads the image (longest)"),
    ]
    found = next((part for wrong, part in checks if wrong), None)
    return found or _unusual_blocks("image", visual) or _unusual_blocks("text", model)


def _unusual_blocks(name: str, tower: Any) -> str | None:
    blocks = list(tower.transformer.resblocks)
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        return f"its {name} tower has custom attention blocks"
    if any(not isinstance(block.ls_1, nn.Identity) for block in blocks):
        return f"its {name} tower has layer scale"
    shapes = {(block.attn.num_heads, block.attn.embed_dim, block.mlp.c_fc.out_features) for block in blocks}
    if len(shapes) > 1:
        return f"the layers of its {name} tower differ in heads or width"
    if _activation(blocks[0]) is None:
        return f"its {name} tower has the activation {blocks[0].mlp.gelu}"
    return None


def _activation(block: Any) -> str | None:
    if isinstance(block.mlp.gelu, QuickGELU):
        return "quick_gelu"
    if isinstance(block.mlp.gelu, nn.GELU):
        return {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[block.mlp.gelu.approximate]
    return None


def _write_transformers(model: Any, loaded: LoadedModel, reference: Outputs, staging: Path) -> Measured:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor  # noqa: PLC0415  (slow)

    projection = model.visual.proj.shape[1]
    config = CLIPConfig(
        projection_dim=projection,
        logit_scale_init_value=model.logit_scale.item(),
        vision_config={
            **_tower_config(model.visual, model.visual.ln_post),
            "image_size": model.visual.image_size[0],
            "patch_size": model.visual.patch_size[0],
            "projection_dim": projection,
        },
        text_config={
            **_tower_config(model, model.ln_final),
            "vocab_size": model.vocab_size,
            "max_position_embeddings": model.context_length,
            "projection_dim": projection,
            "bos_token_id": _EOT - 1,
            "eos_token_id": _EOT,
            "pad_token_id": _EOT,
        },
    )
    twin = CLIPModel(config)
    twin.load_state_dict(_transformers_weights(model), strict=True)
    twin.save_pretrained(staging)
    processor = _transformers_processor(loaded, model.context_length)
    processor.save_pretrained(staging)
    # Also under the name that older releases and other libraries read.
    processor.image_processor.save_pretrained(staging)
    # safetensors makes files that only their owner may read.
    shutil.copymode(staging / "config.json", staging / "model.safetensors")

    twin = CLIPModel.from_pretrained(staging).eval()
    processor = CLIPProcessor.from_pretrained(staging, backend="pil")
    default = CLIPImageProcessor.from_pretrained(staging)
    shown = [one(images=picture(model), return_tensors="pt").pixel_values for one in (processor, default)]
    tokens, differing = _transformers_tokens(loaded.tokenizer, processor.tokenizer)
    with torch.no_grad():
        out = twin(pixel_values=torch.cat([random_pixels(model), *shown]), **tokens)
    images = out.image_embeds[:-1]
    measured = compared(reference, Outputs(images, out.text_embeds, out.logits_per_image[:-1]))
    return {
        **measured,
        "image_embedding_default_preprocessor": (out.image_embeds[-1] - reference.images[-1]).abs().max().item(),
        "captions": len(CAPTIONS),
        "captions_tokenised_differently": differing,
    }


def _tower_config(tower: Any, norm: nn.LayerNorm) -> dict[str, Any]:
    blocks = tower.transformer.resblocks
    return {
        "hidden_size": blocks[0].attn.embed_dim,
        "intermediate_size": blocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "hidden_act": _activation(blocks[0]),
        "layer_norm_eps": norm.eps,
    }


def _transformers_weights(model: Any) -> dict[str, Tensor]:
    """open_clip's tensors under the names of transformers' CLIPModel: QKV split in three, projections transposed."""
    projection = model.text_projection
    renamed = {
        "logit_scale": model.logit_scale.reshape(()),
        "visual_projection.weight": model.visual.proj.T,
        "text_projection.weight": projection.weight if isinstance(projection, nn.Linear) else projection.T,
        "vision_model.embeddings.class_embedding": model.visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": model.visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": model.visual.positional_embedding,
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
    }
    for name, norm in (
        ("vision_model.pre_layrnorm", model.visual.ln_pre),
        ("vision_model.post_layernorm", model.visual.ln_post),
        ("text_model.final_layer_norm", model.ln_final),
    ):
        renamed |= {f"{name}.{key}": value for key, value in norm.state_dict().items()}
    for name, tower in (("vision_model", model.visual), ("text_model", model)):
        for number, block in enumerate(tower.transformer.resblocks):
            renamed |= {f"{name}.encoder.layers.{number}.{key}": value for key, value in _block_weights(block).items()}
    return {key: value.detach().contiguous() for key, value in renamed.items()}


def _block_weights(block: Any) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for kind, fused in (("weight", block.attn.in_proj_weight), ("bias", block.attn.in_proj_bias)):
        for part, value in zip("qkv", fused.chunk(3), strict=True):
            weights[f"self_attn.{part}_proj.{kind}"] = value
    for name, module in (
        ("self_attn.out_proj", block.attn.out_proj),
        ("layer_norm1", block.ln_1),
        ("layer_norm2", block.ln_2),
        ("mlp.fc1", block.mlp.c_fc),
        ("mlp.fc2", block.mlp.c_proj),
    ):
        weights |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    return weights


def _transformers_processor(loaded: LoadedModel, context_length: int) -> Any:
    """CLIPProcessor with open_clip's preprocessing and its bundled vocabulary, under OpenAI's special token names."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer  # noqa: PLC0415

    preprocess_cfg = loaded.config["preprocess_cfg"]
    size = preprocess_cfg["size"]
    edge = size if isinstance(size, int) else size[0]
    square = {"height": edge, "width": edge}
    squash = preprocess_cfg["resize_mode"] == "squash"
    bilinear = preprocess_cfg["interpolation"] == "bilinear"
    images = CLIPImageProcessor(
        size=square if squash else {"shortest_edge": edge},
        crop_size=square,
        resample=Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC,
        image_mean=preprocess_cfg["mean"],
        image_std=preprocess_cfg["std"],
    )
    own = open_clip.SimpleTokenizer()
    vocabulary = dict(own.encoder)
    vocabulary["<|startoftext|>"] = vocabulary.pop("<start_of_text>")
    vocabulary["<|endoftext|>"] = vocabulary.pop("<end_of_text>")
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks), model_max_length=context_length)
    return CLIPProcessor(images, tokenizer)


def _transformers_tokens(own: Any, other: Any) -> tuple[Any, int]:
    """The captions, cleaned, as transformers tokenises them (a padded batch); and how many differ if not cleaned."""
    cleaned = [own.clean_fn(caption) for caption in CAPTIONS]
    tokens = other(cleaned, padding=True, truncation=True, return_tensors="pt")
    raw = other(CAPTIONS, truncation=True).input_ids
    differing = 0
    for row, caption in enumerate(CAPTIONS):
        expected = own([caption])[0].tolist()
        expected = expected[: expected.index(_EOT) + 1]
        kept = tokens.input_ids[row][tokens.attention_mask[row].bool()].tolist()
        if kept != expected:
            raise RuntimeError(f"transformers' tokenizer differs on {caption!r}: {kept} instead of {expected}")
        differing += raw[row] != expected
    return tokens, differing
