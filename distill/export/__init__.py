"""Export a model to the formats other libraries load, and prove that what they load computes the same.

An export is written beside its destination, read back with the other library's own loader, compared with the original,
and only then renamed into place. Read `compare.py` first, then one file a format.
"""

from collections.abc import Callable

from clip_models import LoadedModel
from distill.export.compare import EMBEDDING_TOLERANCE, Measured
from distill.export.to_open_clip import export_open_clip
from distill.export.to_transformers import export_transformers

FORMATS: dict[str, Callable[[LoadedModel, str], Measured]] = {
    "open_clip": export_open_clip,
    "transformers": export_transformers,
}
"""Every export by its name."""

__all__ = ["EMBEDDING_TOLERANCE", "FORMATS", "Measured", "export_open_clip", "export_transformers"]
