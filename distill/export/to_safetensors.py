"""Export to plain safetensors: weights and configuration, which clip_models loads again; it holds every model."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from clip_models import LoadedModel, load_model, save_model
from clip_models.spec import WEIGHTS_NAME
from distill.export.card import write_card
from distill.export.compare import Measured, compared, on_cpu, outputs, reference_outputs
from distill.export.staging import staged
from distill.export.tokenizer_file import keep_tokenizer


def export_safetensors(loaded: LoadedModel, folder: str) -> Measured:
    """Write `open_clip_model.safetensors` and `open_clip_config.json`, as `clip_models.save_model` does.

    `clip_models.load_model(FOLDER)` loads it, and so do all commands that take a model; `safetensors.torch.load_file`
    gives the tensors alone, equal to the model's own bit for bit.

    Returns the largest differences as `export_open_clip` does, `text_embedding` only of a model with a text tower.
    Raises as `export_open_clip` does, but for models that open_clip cannot build: all can be exported.
    """
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging:
        save_model(model, loaded.config, str(staging))
        keep_tokenizer(staging, loaded)
        written, own = load_file(staging / WEIGHTS_NAME), model.state_dict()
        if set(written) != set(own) or not all(torch.equal(written[name], own[name]) for name in own):
            raise RuntimeError("the exported tensors are not the model's")
        other = load_model(str(staging))
        measured = compared(reference, outputs(other.model, other.preprocess, other.tokenizer))
        write_card(staging, loaded, "safetensors", measured)
    return measured
