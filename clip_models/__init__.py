"""What a model on disk is: load, create and save CLIP models in open_clip's formats.

Comes in: a spec (`ARCH:TAG`, `ARCH:/path/to/weights`, a folder, `hf-hub:ORG/NAME`) or a configuration. Goes out:
open_clip modules with their preprocessing and tokenizer, and folders that open_clip reads. Teachers and students are
loaded and run alike.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from clip_models.config import ModelConfig
    from clip_models.create import Tower, build_model, create_student
    from clip_models.forward import Normaliser, autocast, casting, square_side
    from clip_models.join import join_towers
    from clip_models.models import LoadedModel, load_model, save_model
    from clip_models.precision import Precision
    from clip_models.students import ImageTower, TextTower, student_names
    from clip_models.tokenizer import Tokenizer, tokenizer_for
else:
    __getattr__ = lazily(
        __name__, "precision", "config", "tokenizer", "forward", "students", "create", "models", "join"
    )

__all__ = [
    "ImageTower",
    "LoadedModel",
    "ModelConfig",
    "Normaliser",
    "Precision",
    "TextTower",
    "Tokenizer",
    "Tower",
    "autocast",
    "build_model",
    "casting",
    "create_student",
    "join_towers",
    "load_model",
    "save_model",
    "square_side",
    "student_names",
    "tokenizer_for",
]
