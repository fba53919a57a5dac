"""Batch norms over the whole batch, however many processes and micro-batches it is cut into.

Each normalises by the mean and variance of all rows of all processes, with the gradient through both. In micro-batches
the first pass, which keeps no activations, takes all of a process's rows at once, for the statistics of a layer need
all that the layer before has made; the second normalises each piece by what the first one found. So values are those of
the undivided batch. Two means in the gradient, of dL/dy and of dL/dy · normalised x, are then over a piece of every
process, for no more has been carried back by then: an estimate from B / micro-batches rows (as in the gradient of batch
renormalisation, Ioffe 2017, arXiv:1702.03275), the same for any number of processes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from distill.training.ranks import Ranks

Statistics = tuple[Tensor, Tensor]
"""Mean and variance (divided by the number of values) of each channel, (C,) each."""


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The modules that normalise by the batch's statistics in training."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class WholeBatchNorms:
    """The batch norms of a student, as they are while one of these contexts is around its forward.

    A norm of a locked tower is left alone. `any`: whether there are others.
    """

    def __init__(self, student: nn.Module, ranks: Ranks) -> None:
        self._norms: list[Any] = [norm for norm in batch_norms(student) if norm.training]
        self._ranks = ranks
        self._found: list[Statistics] = []
        self._known: Iterator[Statistics] | None = None

    @property
    def any(self) -> bool:
        return bool(self._norms)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """A forward of all of a process's rows; running statistics move once."""
        self._found, self._known = [], None
        with self._in_place():
            yield

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        """A forward of some rows of those that were measured last, by the statistics of all."""
        self._known = iter(self._found)
        with self._in_place():
            yield

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        for norm in self._norms:
            norm.forward = functools.partial(self._forward, norm)
        try:
            yield
        finally:
            for norm in self._norms:
                del norm.forward

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forward(self, norm: Any, x: Tensor) -> Tensor:
        if self._known is None:
            self._found.append(self._measured(norm, x))
            statistics = self._found[-1]
        else:
            statistics = next(self._known)
        y: Tensor = _Normalise.apply(x, norm.weight, norm.bias, *statistics, norm.eps, self._ranks)
        # timm has the activation, and perhaps a dropout, in a class of its own, after the norm.
        for after in ("drop", "act"):
            y = getattr(norm, after, _nothing)(y)
        return y

    @torch.no_grad()
    def _measured(self, norm: Any, x: Tensor) -> Statistics:
        """The statistics of all processes' rows; the norm's running ones move towards them."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variances, means = torch.var_mean(wide, _all_but_channels(x), correction=0)
        variances, means = self._ranks.gather(torch.stack([variances, means])[None]).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean) ** 2).mean(dim=0)
        if norm.running_mean is not None:
            count = x.numel() // x.shape[1] * self._ranks.size
            norm.num_batches_tracked += 1
            share = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean += share * (mean - norm.running_mean)
            norm.running_var += share * (variance * (count / max(1, count - 1)) - norm.running_var)
        return mean, variance


class _Normalise(torch.autograd.Function):
    """(x − mean) / √(variance + eps) · weight + bias by channel, where the statistics are the rows' of all processes.

    The gradient is through them, and is of every process's loss, as `Ranks.gather`'s.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch gives them by place
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.ranks = eps, ranks
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, mean, variance = ctx.saved_tensors
        shape, dims = (1, -1, *(1 for _ in x.shape[2:])), _all_but_channels(x)
        scale = (variance + ctx.eps).rsqrt()
        normalised = (x - mean.view(shape)) * scale.view(shape)
        grad = grads[0].to(normalised.dtype)
        of_bias, of_weight = grad.sum(dims), (grad * normalised).sum(dims)
        means = torch.stack([of_bias, of_weight])
        if ctx.ranks.size > 1:
            dist.all_reduce(means)
        means /= x.numel() // x.shape[1] * ctx.ranks.size
        by_x = grad - means[0].view(shape) - normalised * means[1].view(shape)
        by_x *= (scale if weight is None else scale * weight).view(shape)
        by_weight, by_bias = (None if weight is None else of.to(weight.dtype) for of in (of_weight, of_bias))
        return by_x.to(x.dtype), by_weight, by_bias, None, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _nothing(x: Tensor) -> Tensor:
    return x


def draws(model: nn.Module) -> str | None:
    """The name of a module that draws at random in a forward in training, None if there is none."""
    for name, module in model.named_modules():
        share = module.p if isinstance(module, nn.Dropout) else getattr(module, "drop_prob", None)
        if share:
            return str(name)
    return None
