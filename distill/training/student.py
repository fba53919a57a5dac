"""The student as a run trains it: which towers there are, which of them learn, what a forward returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clip_models import ModelConfig, Normaliser, casting, create_student, load_model
from clip_models.inheritance import Inherited, inherit
from distill.losses import LOSSES
from distill.patch_masking import mask_patches
from distill.settings import RunSettings, Tower
from distill.short_texts import encode_by_length, encode_text, has_short_form
from distill.training.batch_norm import batch_norms, draws
from shards import UserError

_SIGLIP_SCALE, _SIGLIP_BIAS = math.log(10), -10.0
_SCALARS = ("logit_scale", "logit_bias")


def make_student(settings: RunSettings, width: int = 0) -> tuple[Any, ModelConfig, list[Inherited]]:
    """The open_clip module that the run trains, in training mode, its config, and what it inherited from `initial`.

    `width`: of the image embeddings that stand for an image tower. It is not yet on its device. With a sigmoid loss the
    student gets a logit bias if it has none, scale and bias beginning as SigLIP's do. Raises `UserError` if the
    student, or what is asked of it, is not to be had.
    """
    own = {"image": settings.image_tower == "own", "text": settings.text_tower == "own"}
    towers: list[Tower] = [tower for tower in ("image", "text") if own[tower]]
    teacher = load_model(settings.initial) if settings.initial else None
    model, config = create_student(
        settings.student,
        settings.seed,
        towers,
        teacher.config if teacher else None,
        image_size=settings.image_size,
        context_length=settings.context_length,
        cached_images={"width": width, "head": settings.image_head},
    )
    if any(LOSSES[name].uses_bias for name in settings.terms()) and getattr(model, "logit_bias", None) is None:
        model.logit_bias = nn.Parameter(torch.tensor(_SIGLIP_BIAS))
        with torch.no_grad():
            model.logit_scale.fill_(_SIGLIP_SCALE)
        config["model_cfg"] |= {"init_logit_bias": _SIGLIP_BIAS, "init_logit_scale": _SIGLIP_SCALE}
    inherited = inherit(model, config, teacher) if teacher else []
    if settings.student_scale is not None:
        with torch.no_grad():
            model.logit_scale.fill_(math.log(settings.student_scale))
        model.logit_scale.requires_grad_(False)
        inherited = [row for row in inherited if row.student != "logit_scale"]
    if settings.patch_mask:
        mask_patches(model, settings.patch_mask, settings.student)
    if settings.micro_batches > 1 and batch_norms(model) and (drawing := draws(model)):
        raise UserError(
            f"{drawing} of {settings.student} draws at random: in micro-batches batch norms need two passes that agree",
            where="--micro-batches",
            do="Set its share to 0 in the student's configuration, or leave out --micro-batches",
        )
    if settings.checkpoint_activations:
        _checkpoint_activations(model, settings)
    for tower in settings.lock:
        for parameter in tower_parameters(model, tower):
            parameter.requires_grad_(False)
    return model.train(), config, inherited


def tower_parameters(model: nn.Module, tower: Tower) -> list[nn.Parameter]:
    """The parameters of one tower of an open_clip module; the scalars of the logits belong to neither."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if name not in _SCALARS and name.startswith("visual.") == (tower == "image")
    ]


class Student(nn.Module):
    """Pixels and tokens → raw embeddings, in the run's precision; the module that processes share.

    Where the cache's images stand for an image tower, these embeddings take the place of pixels.
    """

    def __init__(self, model: Any, config: ModelConfig, settings: RunSettings, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self._normalise = nn.Identity() if settings.image_tower == "cache" else Normaliser(config, device)
        self._device, self._casting = device, casting(settings.precision)
        visual = set(model.visual.modules())
        others = [module for module in model.modules() if module not in visual and module is not model]
        self._still = [*(visual if "image" in settings.lock else ()), *(others if "text" in settings.lock else ())]
        # Of a compiled model shapes have to stay; under masks a forward is one draw of the gates.
        self.shortens = has_short_form(model) and not settings.compile
        by_length = self.shortens and device.type == "cpu" and settings.prune is None
        self._encode_text = encode_by_length if by_length else encode_text
        self.train()

    def train(self, mode: bool = True) -> Student:
        """Locked towers stay as in evaluation: their batch statistics must not move either."""
        super().train(mode)
        for module in self._still:
            module.training = False
        return self

    def forward(self, pixels: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(b, S, S, 3) uint8 and, by caption set, (b, n) int64 on the device → the embeddings and the scalars.

        `image` and `text/SET` are (b, D) float32 as the towers gave them, not normalised, or float64 of a model in
        float64; `logit_scale` is the multiplier, `logit_bias` what is added, both 0-d.
        """
        with self._casting(self._device):
            out = {"image": self.model.encode_image(self._normalise(pixels))}
            for captions, ids in tokens.items():
                out[f"text/{captions}"] = self._encode_text(self.model, ids)
        wide = {name: rows.to(torch.promote_types(rows.dtype, torch.float32)) for name, rows in out.items()}
        return wide | self.scalars()

    def scalars(self) -> dict[str, Tensor]:
        """`logit_scale` and `logit_bias`, with gradient."""
        bias = getattr(self.model, "logit_bias", None)
        scale = self.model.logit_scale.exp()
        return {"logit_scale": scale, "logit_bias": torch.zeros_like(scale) if bias is None else bias * 1}


def _checkpoint_activations(model: Any, settings: RunSettings) -> None:
    if batch_norms(model):
        raise UserError(
            f"activations of {settings.student} cannot be recomputed: its batch statistics would count twice",
            where="--checkpoint-activations",
            do="Use --micro-batches, which saves memory too",
        )
    model.set_grad_checkpointing(True)
