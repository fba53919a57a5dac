"""The processes of one run: who this one is, and what they tell each other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=4)
"""How long processes wait for each other: the first one writes, while the others stand by."""


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`, computing on `device`. A size of 1 talks to nobody. `began`: the group is its own."""

    rank: int
    size: int
    device: torch.device
    began: bool = False

    @staticmethod
    def join() -> Ranks:
        """As the launcher's environment says (`torchrun`, Ray Train), or alone.

        Joins the process group if nobody has: NCCL between GPUs, else gloo.
        """
        cuda = torch.cuda.is_available()
        began = not dist.is_initialized()
        if began:
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                return Ranks(0, 1, torch.device("cuda" if cuda else "cpu"))
            if cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        return Ranks(dist.get_rank(), dist.get_world_size(), device, began)

    @property
    def first(self) -> bool:
        """Whether this process writes the logs and checkpoints."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's part of a global batch."""
        part = batch_size // self.size
        return slice(self.rank * part, (self.rank + 1) * part) if self.size > 1 else slice(None)

    def gather(self, part: Tensor) -> Tensor:
        """(b, ...) of each process → (B, ...) of all, in the order of ranks, with gradient."""
        if self.size == 1:
            return part
        whole: Tensor = _Gather.apply(part, self.rank, self.size)
        return whole

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean over processes of 0-d tensors that every one of them has."""
        if self.size == 1:
            return dict(values)
        packed = torch.stack([value.detach().double() for value in values.values()])
        dist.all_reduce(packed)
        return dict(zip(values, (packed / self.size).unbind(), strict=True))

    def most(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The largest over processes of 0-d tensors that every one of them has."""
        packed = torch.stack([value.detach().double() for value in values.values()]).to(self.device)
        if self.size > 1:
            dist.all_reduce(packed, dist.ReduceOp.MAX)
        return dict(zip(values, packed.unbind(), strict=True))

    def mean_gradients(self, modules: Iterable[nn.Module]) -> None:
        """Replace the gradients of small modules by their mean over processes."""
        if self.size == 1:
            return
        for module in modules:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    # One that took no part here may have taken part elsewhere.
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.size

    def told(self, word: Any) -> Any:
        """What the first process says: anything JSON could hold."""
        if self.size == 1:
            return word
        # Not torch's broadcast of objects, which pickles them.
        text = np.frombuffer(json.dumps(word).encode(), np.uint8).copy()
        length = torch.tensor(len(text), device=self.device)
        dist.broadcast(length, src=0)
        said = torch.from_numpy(text) if self.first else torch.empty(int(length), dtype=torch.uint8)
        said = said.to(self.device)
        dist.broadcast(said, src=0)
        return json.loads(said.cpu().numpy().tobytes())

    def heard(self, word: Any) -> list[Any]:
        """What each process says, in the order of ranks: anything JSON could hold."""
        if self.size == 1:
            return [word]
        text = torch.from_numpy(np.frombuffer(json.dumps(word).encode(), np.uint8).copy()).to(self.device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)], device=self.device))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(text)] = text
        said = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(said, padded)
        pairs = zip(said, lengths, strict=True)
        return [json.loads(part[: int(length)].cpu().numpy().tobytes()) for part, length in pairs]

    def leave(self) -> None:
        """End the group if `join` began it: one that a launcher began is the launcher's."""
        if self.began and dist.is_initialized():
            dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is that of every process's loss: they are summed, and each takes its own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.count = rank, len(part)
        parts = [torch.empty_like(part) for _ in range(size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count], None, None
