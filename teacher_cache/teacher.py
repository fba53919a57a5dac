"""Run a teacher: an open_clip model behind the two calls a cache needs, and the identity that names its outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import open_clip
import PIL
import torch

from clip_models import LoadedModel, Normaliser, Precision, autocast, load_model, square_side
from teacher_cache.layout import TeacherFacts, slug

_PROBE = ["a photo of a cat", "Ünïcode, emoji 🙂 & punctuation!", ""]


class Teacher:
    """A loaded teacher on a device.

    `image_size` is the side in pixels it sees; `precision` the forward's (autocast; weights stay float32).
    """

    def __init__(self, loaded: LoadedModel, device: str, precision: Precision) -> None:
        self.device, self.precision = torch.device(device), precision
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self.config = loaded.config
        self.image_size = square_side(loaded.config, loaded.name)
        self._normalise = Normaliser(loaded.config, self.device)
        bias = getattr(self._model, "logit_bias", None)
        self.logit_scale = float(self._model.logit_scale.detach().exp())
        self.logit_bias = None if bias is None else float(bias.detach())

    @staticmethod
    def load(spec: str, *, precision: Precision = "fp32") -> Teacher:
        """Load by spec (see `clip_models.load_model`), onto an accelerator if there is one."""
        where = "cuda" if torch.cuda.is_available() else "cpu"
        return Teacher(load_model(spec, where), where, precision)

    @torch.inference_mode()
    def embed_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(n, S, S, 3) uint8 → (n, D) float32 of unit norm."""
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            return _unit(self._model.encode_image(self._normalise(images)))

    @torch.inference_mode()
    def embed_texts(self, captions: Sequence[str]) -> npt.NDArray[np.float32]:
        """n captions → (n, D) float32 of unit norm."""
        tokens = self._tokenizer(list(captions)).to(self.device)
        with autocast(self.device, self.precision):
            return _unit(self._model.encode_text(tokens))

    def facts(self, spec: str, name: str | None) -> TeacherFacts:
        """Who this is: its weights' and tokenizer's hashes and its preprocessing decide what a cache holds."""
        preprocess = {key: self.config["preprocess_cfg"].get(key) for key in ("size", "mean", "std")}
        tokens = self._tokenizer(_PROBE).numpy().astype("<i8")
        with torch.inference_mode():
            width = int(self._model.encode_text(self._tokenizer([""]).to(self.device)).shape[1])
        return TeacherFacts(
            name=name or slug(spec),
            spec=spec,
            identity={
                "model": self.config["model_cfg"],
                "weights": weights_hash(self._model.state_dict()),
                "preprocess": preprocess,
                "tokenizer": hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
            },
            embed_dim=width,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
            versions={"torch": torch.__version__, "open_clip": open_clip.__version__, "pillow": PIL.__version__},
        )


def _unit(embeddings: torch.Tensor) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()
    return unit


def weights_hash(state: dict[str, torch.Tensor]) -> str:
    """16 hex digits over names, shapes, dtypes and bytes of every tensor, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
