"""Graphs of ONNX: written from torch modules by tracing, and run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distill.export.encoders import plain_operations
from shards.errors import UserError

Feeds = Mapping[str, npt.NDArray[Any]]


def require_onnx(where: str) -> None:
    """Raise `UserError` unless the optional packages are there."""
    try:
        import onnx  # noqa: F401, PLC0415 - optional
        import onnxruntime  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            f"the ONNX packages are not installed ({error.name} is missing)",
            where=where,
            do="Run `pip install 'clipstill[onnx]'`",
        ) from None


def write_graph(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    gives: Sequence[str],
    path: Path,
    axes: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Trace `module` on `examples`, its inputs by name, into the file `path`.

    `axes`: which axes of which inputs and outputs may have any length, and what they are called; by default the first
    of each, `batch`. An input for which none is named is of the example's size.
    """
    import onnx  # noqa: PLC0415 - optional

    free = {name: {0: "batch"} for name in (*examples, *gives)} if axes is None else axes
    with plain_operations():
        # By tracing: torch's newer exporter gave the same numbers on each kind of tower, and took ten times as long.
        torch.onnx.export(
            module.eval(),
            tuple(examples.values()),
            str(path),
            input_names=list(examples),
            output_names=list(gives),
            dynamic_axes={name: dict(named) for name, named in free.items()},
            dynamo=False,
        )
    onnx.checker.check_model(str(path))


def session(path: Path) -> Any:
    """An onnxruntime session of a file, on the CPU."""
    import onnxruntime  # noqa: PLC0415 - optional

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_graph(running: Any, feeds: Feeds) -> list[Tensor]:
    """Its outputs, of feeds as it takes them."""
    return [torch.from_numpy(np.asarray(part)) for part in running.run(None, dict(feeds))]


def run_in_parts(path: Path, batch: Tensor) -> Tensor:
    """The first output of a graph of one input: of a batch of one and of one of the rest."""
    running = session(path)
    (taken,) = running.get_inputs()
    return torch.cat([run_graph(running, {taken.name: part.numpy()})[0] for part in (batch[:1], batch[1:])])
