"""Export a model to the formats other libraries load, and prove that what they load computes the same.

An export is written beside its destination, read back with the other library's own loader, compared with the original,
given a model card, and only then renamed into place. Read `staging.py` and `compare.py` first, then one file a format;
`encoders.py` is what torchscript and onnx share. `card.py` writes the README.md, with `lineage.py` for what the model
began from, and `snippets.py` for how it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.lazy import lazily, resolve

if TYPE_CHECKING:
    from clip_models import LoadedModel
    from distill.export.compare import EMBEDDING_TOLERANCE, LOGIT_TOLERANCE, Measured
    from distill.export.staging import refuse_taken
    from distill.export.to_onnx import export_onnx
    from distill.export.to_open_clip import export_open_clip
    from distill.export.to_safetensors import export_safetensors
    from distill.export.to_torchscript import export_torchscript
    from distill.export.to_transformers import export_transformers
else:
    __getattr__ = lazily(
        __name__,
        "staging",
        "compare",
        "to_onnx",
        "to_open_clip",
        "to_safetensors",
        "to_torchscript",
        "to_transformers",
    )


@dataclass(frozen=True, kw_only=True)
class Format:
    """`about`: for the command's help. `export`: `module:function` of a loaded model and a folder, which writes, reads
    back and compares. `snippet`: `module:function` of a loaded model, the lines of Python in the card that load it.
    `library`: what the hub calls what loads it.
    """

    about: str
    export: str
    snippet: str
    library: str | None = None

    def __call__(self, loaded: LoadedModel, folder: str) -> Measured:
        """Export a model; what comes of it as `export_open_clip` says. Raises `UserError` of a text tower alone."""
        if loaded.config.get("towers") == ["text"]:
            raise UserError(
                "it is a text tower alone, trained beside the images of another model",
                where=loaded.name,
                do="Make one model of both: `clipstill models join`",
            )
        export: Callable[[LoadedModel, str], Measured] = resolve(self.export)
        return export(loaded, folder)


FORMATS: dict[str, Format] = {
    "open_clip": Format(
        about='for open_clip.create_model_and_transforms("local-dir:FOLDER"); holds every model that open_clip can '
        "build.",
        export="distill.export.to_open_clip:export_open_clip",
        snippet="distill.export.snippets:open_clip",
        library="open_clip",
    ),
    "transformers": Format(
        about="for CLIPModel.from_pretrained and CLIPProcessor.from_pretrained; holds plain ViT towers.",
        export="distill.export.to_transformers:export_transformers",
        snippet="distill.export.snippets:transformers",
        library="transformers",
    ),
    "torchscript": Format(
        about="for torch.jit.load, in the interface of teensy-tiny-clip; holds every model.",
        export="distill.export.to_torchscript:export_torchscript",
        snippet="distill.export.snippets:torchscript",
    ),
    "onnx": Format(
        about="image and text encoder for batches of any size; holds every model. `pip install 'clipstill[onnx]'`",
        export="distill.export.to_onnx:export_onnx",
        snippet="distill.export.snippets:onnx",
        library="onnx",
    ),
    "safetensors": Format(
        about="weights and configuration, which every command here takes as MODEL; holds every model.",
        export="distill.export.to_safetensors:export_safetensors",
        snippet="distill.export.snippets:safetensors",
    ),
}
"""Every export by its name."""

__all__ = [
    "EMBEDDING_TOLERANCE",
    "FORMATS",
    "LOGIT_TOLERANCE",
    "Format",
    "Measured",
    "export_onnx",
    "export_open_clip",
    "export_safetensors",
    "export_torchscript",
    "export_transformers",
    "refuse_taken",
]
