"""8 bits for weights and activations, whose ranges are measured on a user's own pictures and captions.

Static quantisation by onnxruntime (onnxruntime.ai/docs/performance/model-optimizations/quantization.html), as
QuantizeLinear and DequantizeLinear around products with weights. What has no weights (attention's products, softmax,
norms) stays float32: it is where embeddings of CLIP break in 8 bits, and is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.export.graphs import Feeds
from distill.export.variants import quiet

_OPERATIONS = ["MatMul", "Gemm", "Conv", "Gather"]


def calibrated_int8(source: Path, out: Path, feeds: Iterable[Feeds]) -> None:
    """From the file of a float32 graph to one of 8 bits, by what flows through it for these inputs."""
    from onnxruntime.quantization import (  # noqa: PLC0415 - optional
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, given: Iterable[Feeds]) -> None:
            self._given: Iterator[Feeds] = iter(given)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._given, None)
            return None if found is None else dict(found)

    with quiet():
        quantize_static(
            source,
            out,
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATIONS,
            per_channel=True,
            # 7 bits: products of 8 by 8 overflow on CPUs without VNNI.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        )
