"""Export a model to the formats other libraries load, and prove that what they load computes the same.

An export is written beside its destination, read back with the other library's own loader, compared with the original,
given a model card, and only then renamed into place. Read `staging.py` and `compare.py` first, then one file a format;
`encoders.py` is what torchscript and onnx share. `card.py` writes the README.md, with `lineage.py` for what the model
began from, `left.py` for what pruning left of it, and `snippets.py` for how it is loaded.
"""

from collections.abc import Callable

from clip_models import LoadedModel
from distill.export.compare import EMBEDDING_TOLERANCE, LOGIT_TOLERANCE, Measured
from distill.export.staging import refuse_taken
from distill.export.to_onnx import export_onnx
from distill.export.to_open_clip import export_open_clip
from distill.export.to_safetensors import export_safetensors
from distill.export.to_torchscript import export_torchscript
from distill.export.to_transformers import export_transformers

FORMATS: dict[str, Callable[[LoadedModel, str], Measured]] = {
    "open_clip": export_open_clip,
    "transformers": export_transformers,
    "torchscript": export_torchscript,
    "onnx": export_onnx,
    "safetensors": export_safetensors,
}
"""Every export by its name."""

__all__ = [
    "EMBEDDING_TOLERANCE",
    "FORMATS",
    "LOGIT_TOLERANCE",
    "Measured",
    "export_onnx",
    "export_open_clip",
    "export_safetensors",
    "export_torchscript",
    "export_transformers",
    "refuse_taken",
]
