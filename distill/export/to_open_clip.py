"""Export to open_clip's own folder format, which holds every model that open_clip can build."""

from __future__ import annotations

import open_clip

from clip_models import LoadedModel, ModelConfig, save_model
from distill.export.card import write_card
from distill.export.compare import (
    CAPTIONS,
    HOLDS_EVERY_MODEL,
    Measured,
    beyond_open_clip,
    compared,
    on_cpu,
    outputs,
    reference_outputs,
)
from distill.export.staging import staged
from distill.export.tokenizer_file import keep_tokenizer
from shards.errors import UserError


def export_open_clip(loaded: LoadedModel, folder: str) -> Measured:
    """Write open_clip's folder (`open_clip_config.json`, `open_clip_model.safetensors`, a named tokenizer's files).

    `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads it, of open_clip 3 and 4: the configuration also
    has `eos_id`, which 3 has another default for than 4. Returns the largest absolute differences between the
    original and what open_clip loads back, both float32 on the CPU: `image_embedding`, `text_embedding` (unit
    length), `logits`; and `captions` tried, of which `captions_tokenised_differently`.
    Raises `UserError` if the folder holds something, the model's embeddings are not finite, or open_clip cannot build
    the model (one without a text tower, a pruned one, a mixer of ours); `RuntimeError` if an embedding differs by more
    than `EMBEDDING_TOLERANCE`, or a logit by more than `LOGIT_TOLERANCE`. Nothing is left behind then.
    """
    reason = beyond_open_clip(loaded)
    if reason is not None:
        raise UserError(
            f"open_clip cannot build this model: {reason}", where=loaded.name, do=f"Export it as {HOLDS_EVERY_MODEL}"
        )
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging:
        save_model(model, _with_end(loaded), str(staging))
        keep_tokenizer(staging, loaded)
        other, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{staging}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{staging}")
        differing = (tokenizer(CAPTIONS) != loaded.tokenizer(CAPTIONS)).any(dim=1).sum().item()
        measured = compared(reference, outputs(other.eval(), preprocess, tokenizer))
        write_card(staging, loaded, "open_clip", measured)
    return {**measured, "captions": len(CAPTIONS), "captions_tokenised_differently": differing}


def _with_end(loaded: LoadedModel) -> ModelConfig:
    """The configuration with the id of its tokenizer's end token, where that has one."""
    text_cfg = loaded.config["model_cfg"]["text_cfg"]
    end = getattr(loaded.tokenizer, "eot_token_id", None)
    if text_cfg.get("hf_tokenizer_name"):
        end = getattr(getattr(loaded.tokenizer, "tokenizer", None), "eos_token_id", None)
    if end is None or "eos_id" in text_cfg:
        return loaded.config
    model_cfg = {**loaded.config["model_cfg"], "text_cfg": {**text_cfg, "eos_id": end}}
    return {**loaded.config, "model_cfg": model_cfg}
