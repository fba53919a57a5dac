"""How large a model is and how fast: parameters by tower, multiply-accumulates, pairs a second."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
import torch
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from clip_models.create import Tower, create_student
from clip_models.published import PUBLISHED
from clip_models.sizes import TABLE, Size
from shards.errors import UserError

_SCALARS = {"logit_scale", "logit_bias"}
_VOCABULARIES = ("token_embedding.weight", "word_embeddings.weight")


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Images, texts and image-text pairs a second. Without a text tower texts are None, and pairs are images."""

    images: float
    texts: float | None

    @property
    def pairs(self) -> float:
        return self.images if self.texts is None else 1 / (1 / self.images + 1 / self.texts)


def made_by_name(name: str, device: str) -> Any:
    """A student by name as `create_student` makes it, in evaluation mode; on the meta device without any numbers.

    One whose text tower is another library's is made without it: nothing is asked of a hub.
    """
    described = open_clip.get_model_config(name.replace("/", "-"))
    if described is None:
        with torch.device("meta"), _NoNumbers():
            described = create_student(name, 0, ("image",))[1]["model_cfg"]
    towers: tuple[Tower, ...] = ("image",) if "hf_model_name" in described["text_cfg"] else ("image", "text")
    if device != "meta":
        return create_student(name, 0, towers)[0].to(device).eval()
    with torch.device("meta"), _NoNumbers():
        return create_student(name, 0, towers)[0].eval()


def tower_sizes(model: nn.Module) -> dict[Tower, int]:
    """How many parameters each tower has, the text tower's without its token embedding, as papers count them.

    A model without a text tower has no "text".
    """
    counts: dict[Tower, int] = {}
    for name, parameter in model.named_parameters():
        if name not in _SCALARS and not name.endswith(_VOCABULARIES):
            tower: Tower = "image" if name.startswith("visual.") else "text"
            counts[tower] = counts.get(tower, 0) + parameter.numel()
    return counts


def size_of(model: Any) -> Size:
    """Count parameters and multiply-accumulates of an open_clip module, on any device, the meta device too.

    Counted are matrix products and convolutions; norms, activations and the like cost nothing. This gives the
    published tables' numbers. Torch's fused attention hides its products from a counter, so it is switched off here.
    The model is left as it was, in training mode too.
    """
    has_text = hasattr(model, "encode_text")
    counted = tower_sizes(model)
    return Size(
        image=counted.get("image", 0),
        text=counted["text"] if has_text else None,
        total=sum(p.numel() for p in model.parameters()),
        image_macs=_macs(model, model.encode_image, _pixels(model, 1)) if _has_image(model) else 0,
        text_macs=_macs(model, model.encode_text, _tokens(model, 1)) if has_text else None,
    )


def throughput(model: Any, *, batch: int = 32, warm_up: int = 10, timed: int = 50) -> Throughput:
    """Time an open_clip module in evaluation mode on the device it lies on, by TinyCLIP's protocol.

    Without gradients, batches of 32, for each tower 10 to warm up and 50 timed ones, each waited for; under autocast to
    float16 on a GPU, in float32 elsewhere. The rate of pairs is 1 / (1 / image rate + 1 / text rate).
    """
    if not _has_image(model):
        raise UserError("a text tower alone has no rate of pairs", do="Join it with its image tower first")
    device = model.logit_scale.device
    rates = []
    for encode, given in _forwards(model, batch):
        with torch.no_grad(), torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            for _ in range(warm_up):
                encode(given)
            _wait(device)
            began = time.perf_counter()
            for _ in range(timed):
                encode(given)
                _wait(device)
        rates.append(batch * timed / (time.perf_counter() - began))
    return Throughput(images=rates[0], texts=rates[1] if len(rates) > 1 else None)


def _has_image(model: Any) -> bool:
    return hasattr(model.visual, "image_size")


def latency(model: Any, *, warm_up: int = 2, timed: int = 10) -> float:
    """Milliseconds from one image and one text to their embeddings, one after the other: medians, as `throughput`."""
    device = model.logit_scale.device
    total = 0.0
    for encode, given in _forwards(model, 1):
        took = []
        with torch.no_grad(), torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            for _ in range(warm_up + timed):
                _wait(device)
                began = time.perf_counter()
                encode(given)
                _wait(device)
                took.append(time.perf_counter() - began)
        total += statistics.median(took[warm_up:])
    return 1000 * total


def _forwards(model: Any, batch: int) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor]]:
    yield model.encode_image, _pixels(model, batch)
    if hasattr(model, "encode_text"):
        yield model.encode_text, _tokens(model, batch)


def _pixels(model: Any, batch: int) -> Tensor:
    # Not zeros: on those a GPU draws less power and runs faster.
    weights = next(model.visual.parameters())
    return torch.rand(batch, 3, *to_2tuple(model.visual.image_size), device=weights.device, dtype=weights.dtype)


def _tokens(model: Any, batch: int) -> Tensor:
    tower = model if hasattr(model, "context_length") else model.text
    return torch.ones(batch, tower.context_length, dtype=torch.int64, device=model.logit_scale.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _macs(model: nn.Module, encode: Callable[[Tensor], Tensor], given: Tensor) -> int:
    with ExitStack() as stack:
        for context in (_evaluating(model), _unfused(), sdpa_kernel(SDPBackend.MATH), torch.no_grad()):
            stack.enter_context(context)
        counter: _Counter = stack.enter_context(_Counter())  # type: ignore[no-untyped-call]
        encode(given)
    return counter.operations // 2


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A batch norm in training mode would learn from what it is measured with, and refuse a single image."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _unfused() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What torch's FlopCounterMode counts, without its table by module, which takes most of its time."""

    operations: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = flop_registry.get(func._overloadpacket)
        if known is not None:
            self.operations += known(*args, **(kwargs or {}), out_val=out)
        return out


class _NoNumbers(TorchFunctionMode):
    """Initialisers do nothing: on the meta device there is nothing to fill, and they take most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fills = getattr(func, "__module__", "") == nn.init.__name__ or func in (Tensor.normal_, Tensor.uniform_)
        if fills:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def measured_sizes() -> dict[str, Size]:
    """What the table of the published models' sizes holds, of models that are built for it."""
    names = [row.name for row in PUBLISHED if row.role != "pruned"]
    return {name: size_of(made_by_name(name, "meta")) for name in names}


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(asdict(size))}" for name, size in measured_sizes().items())
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
