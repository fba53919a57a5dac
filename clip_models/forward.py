"""What teacher and student do alike before and around a forward: normalise pixels, choose the precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clip_models.config import ModelConfig
from clip_models.precision import PRECISIONS, Precision
from shards.errors import UserError
from shards.lazy import resolve


def square_side(config: ModelConfig, where: str) -> int:
    """The side in pixels of the images a model sees; raises `UserError` naming `where` if they are not square."""
    size = config["preprocess_cfg"]["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UserError(f"the model sees {size} pixels; only square inputs can share a view", where=where)
    side: int = sides.pop()
    return side


class Normaliser:
    """Pixels as a loader makes them to what a model expects, by the mean and standard deviation of its config."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        preprocess = config["preprocess_cfg"]
        self._mean = torch.tensor(preprocess["mean"], device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(preprocess["std"], device=device).view(3, 1, 1) * 255

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, S, S, 3) uint8 on the device → (n, 3, S, S) float32."""
        planes = pixels.permute(0, 3, 1, 2)
        # On the CPU channels must not come last: there the backward of a 1x1 convolution with stride 2 and few input
        # channels, as the stems of FastViT have, writes beyond its memory (torch 2.15 with oneDNN 3.13).
        layout = torch.contiguous_format if pixels.device.type == "cpu" else torch.preserve_format
        normal: Tensor = (planes.to(torch.float32, memory_format=layout) - self._mean) / self._std
        return normal


def casting(precision: Precision) -> Callable[[torch.device], contextlib.AbstractContextManager[Any]]:
    """What makes the context in which a forward of this precision runs.

    To be looked up before the forward: torch.compile follows no import.
    """
    found: Callable[[torch.device], contextlib.AbstractContextManager[Any]] = resolve(PRECISIONS[precision].context)
    return found


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """The context in which a forward of this precision runs, outside torch.compile."""
    return casting(precision)(device)


def plain(device: torch.device) -> contextlib.AbstractContextManager[Any]:  # noqa: ARG001 - as every precision's
    return contextlib.nullcontext()


def bf16(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16)


def fp16(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.float16)
