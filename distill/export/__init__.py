"""Export a model to the formats other libraries load, and prove that what they load computes the same.

An export is written beside its destination, read back with the other library's own loader, compared with the original,
given a model card, and only then renamed into place. Read `staging.py` and `compare.py` first, then one file a format;
`encoders.py` is what torchscript and onnx share. `card.py` writes the README.md, with `lineage.py` for what the model
began from, and `snippets.py` for how it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.lazy import lazily, resolve

if TYPE_CHECKING:
    from clip_models import LoadedModel
    from distill.export.compare import EMBEDDING_TOLERANCE, LOGIT_TOLERANCE, Measured
    from distill.export.pairs import Pairs
    from distill.export.small import Calibration
    from distill.export.staging import refuse_taken
    from distill.export.to_immich import export_immich
    from distill.export.to_onnx import export_onnx
    from distill.export.to_open_clip import export_open_clip
    from distill.export.to_pt2 import export_pt2
    from distill.export.to_safetensors import export_safetensors
    from distill.export.to_torchscript import export_torchscript
    from distill.export.to_transformers import export_transformers
    from distill.export.to_transformers_js import export_transformers_js
else:
    __getattr__ = lazily(
        __name__,
        "staging",
        "pairs",
        "small",
        "compare",
        "to_immich",
        "to_onnx",
        "to_open_clip",
        "to_pt2",
        "to_safetensors",
        "to_torchscript",
        "to_transformers",
        "to_transformers_js",
    )


@dataclass(frozen=True, kw_only=True)
class Format:
    """`about`: for the command's help. `export`: `module:function` of a loaded model and a folder, which writes, reads
    back and compares. `snippet`: `module:function` of a loaded model, the lines of Python in the card that load it;
    `notes` likewise, more Markdown below them. `library`: what the hub calls what loads it. `marks`: names of files by
    which its folder is known from others, and `opens`: `module:function` of such a folder and a device, its
    `distill.use.encoders.Encoders`; None if it cannot be computed here. Folders that every command takes as a model
    need neither. `calibrates`: `export` takes a `Calibration` too, or None. `needs`: a package that only
    this format does. `copies`: how many times the float32 weights it takes on disk, about.
    """

    about: str
    export: str
    snippet: str
    notes: str | None = None
    library: str | None = None
    marks: tuple[str, ...] = ()
    opens: str | None = None
    calibrates: bool = False
    needs: str | None = None
    copies: float = 1.0

    @property
    def is_installed(self) -> bool:
        """Whether the package is there that it needs beside what Clipstill is installed with."""
        return self.needs is None or find_spec(self.needs) is not None

    def __call__(self, loaded: LoadedModel, folder: str, calibration: Calibration | None = None) -> Measured:
        """Export a model; what comes of it as `export_open_clip` says. Raises `UserError` of a text tower alone."""
        if loaded.config.get("towers") == ["text"]:
            raise UserError(
                "it is a text tower alone, trained beside the images of another model",
                where=loaded.name,
                do="Make one model of both: `clipstill models join`",
            )
        from distill.export.staging import refuse_no_room  # noqa: PLC0415

        weights = sum(value.numel() * 4 for value in loaded.model.state_dict().values())
        refuse_no_room(folder, int(self.copies * weights))
        export: Callable[..., Measured] = resolve(self.export)
        return export(loaded, folder, calibration) if self.calibrates else export(loaded, folder)


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
        marks=("config.json", "model.safetensors", "preprocessor_config.json"),
        opens="distill.use.by_torch:open_transformers",
    ),
    "torchscript": Format(
        about="for torch.jit.load, in the interface of teensy-tiny-clip; holds every model.",
        export="distill.export.to_torchscript:export_torchscript",
        snippet="distill.export.snippets:torchscript",
        marks=("config.json", "model.pt"),
        opens="distill.use.by_torch:open_torchscript",
    ),
    "onnx": Format(
        about="image and text encoder for batches of any size; holds every model. `pip install 'clipstill[onnx]'`",
        export="distill.export.to_onnx:export_onnx",
        snippet="distill.export.plain_snippets:onnx",
        library="onnx",
        marks=("config.json", "image_encoder.onnx"),
        opens="distill.use.by_onnx:open_onnx",
        calibrates=True,
    ),
    "pt2": Format(
        about="for torch.export.load, an image and a text encoder for batches of any size; holds every model.",
        export="distill.export.to_pt2:export_pt2",
        snippet="distill.export.snippets:pt2",
        marks=("config.json", "image_encoder.pt2"),
        opens="distill.use.by_torch:open_pt2",
    ),
    "immich": Format(
        about="for Immich's smart search; holds models with a text tower and square pictures. `pip install "
        "'clipstill[onnx]'`",
        export="distill.export.to_immich:export_immich",
        snippet="distill.export.plain_snippets:immich",
        notes="distill.export.to_immich:notes",
        library="immich",
        marks=("config.json", "visual/model.onnx", "textual/model.onnx"),
        opens="distill.use.by_onnx:open_immich",
    ),
    "coreml": Format(
        about="for Core ML on iPhones and Macs, image and text encoder of one each; holds every model. `pip install "
        "'clipstill[coreml]'`",
        export="distill.export.to_coreml:export_coreml",
        snippet="distill.export.plain_snippets:coreml",
        library="coreml",
        marks=("config.json", "image_encoder.mlpackage"),
        needs="coremltools",
    ),
    "executorch": Format(
        about="for ExecuTorch on phones, an image and a text encoder of one each; holds every model. `pip install "
        "'clipstill[executorch]'`",
        export="distill.export.to_executorch:export_executorch",
        snippet="distill.export.plain_snippets:executorch",
        library="executorch",
        marks=("config.json", "image_encoder.pte"),
        opens="distill.use.by_executorch:open_executorch",
        needs="executorch",
    ),
    "transformers_js": Format(
        about="for transformers.js and ONNX Runtime Web, in float32, fp16, 8 and 4 bits, with a page to try it; holds "
        "models with a text tower. `pip install 'clipstill[onnx]'`",
        export="distill.export.to_transformers_js:export_transformers_js",
        snippet="distill.export.plain_snippets:transformers_js",
        notes="distill.export.to_transformers_js:notes",
        library="transformers.js",
        marks=("config.json", "onnx/vision_model.onnx"),
        opens="distill.use.by_onnx:open_transformers_js",
        calibrates=True,
        copies=5.0,
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
    "Calibration",
    "Format",
    "Measured",
    "Pairs",
    "export_immich",
    "export_onnx",
    "export_open_clip",
    "export_pt2",
    "export_safetensors",
    "export_torchscript",
    "export_transformers",
    "export_transformers_js",
    "refuse_taken",
]
