"""A graph in fewer bits, by onnxruntime's tools, from its weights alone: the variants that transformers.js asks for.

8 bits of weights leave activations to be measured as they come (dynamic quantisation); `calibrated.py` has the better
way, for who has pictures to calibrate on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_OPERATIONS = ["MatMul", "Gemm", "Gather"]
"""Products with weights, and the table of tokens. Convolutions of 8 bits are slow and coarse without calibration."""
_BLOCK = 32
"""Weights that share a scale, of 4 bits."""

Variant = Callable[[Path, Path], None]
"""From the file of a float32 graph to that of another."""


def fp16(source: Path, out: Path) -> None:
    """float16 within; what goes in and comes out stays float32."""
    import onnx  # noqa: PLC0415 - optional
    from onnxruntime.transformers.float16 import (  # noqa: PLC0415
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )
    from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: PLC0415

    # onnxruntime 1.31 and 1.32 crash as they load a Gelu in float16.
    kept = [*DEFAULT_OP_BLOCK_LIST, "Gelu"]
    graph = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True, op_block_list=kept)
    converted = OnnxModel(graph)
    # It adds nodes out of their order, which the format forbids.
    converted.topological_sort()
    onnx.checker.check_model(converted.model)
    onnx.save(converted.model, str(out))


def int8(source: Path, out: Path) -> None:
    """Signed weights, a scale an output."""
    _dynamic(source, out, signed=True)


def uint8(source: Path, out: Path) -> None:
    """Unsigned weights."""
    _dynamic(source, out, signed=False)


def q4(source: Path, out: Path) -> None:
    """4 bits a weight of each product, 32 of them to a scale."""
    import onnx  # noqa: PLC0415 - optional
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: PLC0415

    with quiet():
        quantiser = MatMulNBitsQuantizer(onnx.load(str(source)), block_size=_BLOCK, is_symmetric=True)
        quantiser.process()
    onnx.save(quantiser.model.model, str(out))


def _dynamic(source: Path, out: Path, *, signed: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - optional

    with quiet():
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=_OPERATIONS,
            per_channel=True,
            # 7 bits: products of 8 by 8 overflow on CPUs without VNNI.
            reduce_range=True,
            weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )


VARIANTS: dict[str, Variant] = {"fp16": fp16, "quantized": int8, "int8": int8, "uint8": uint8, "q4": q4}
"""Suffix of the file → what makes it, as transformers.js has them. `quantized` is its default in a browser, and here
the same as `int8`."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without onnxruntime's advice to run its own pre-processing, and its account of each node."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
