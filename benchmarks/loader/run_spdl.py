"""SPDL's way: threads that decode, crop and resize with FFmpeg, uint8; captions as they are, not tokenised.

python run_spdl.py JSON
"""

from __future__ import annotations

import importlib
import math
import os
import random
from collections.abc import Iterator
from typing import Any

from benchmarks.loader.clock import answer, speed, wanted

io: Any = importlib.import_module("spdl.io")
pipelines: Any = importlib.import_module("spdl.pipeline")

_SIZE = (341, 256)


def main() -> None:
    wish = wanted()
    size, (low, high) = wish["size"], wish["scale"]

    def samples() -> Iterator[bytes]:
        while True:
            for tar in wish["tars"]:
                with open(tar, "rb") as file:
                    for name, data in io.iter_tarfile(file):
                        if name.endswith(".jpg"):
                            yield bytes(data)

    def load(data: bytes) -> object:
        width, height, left, top = _crop(low, high)
        chain = f"crop={width}:{height}:{left}:{top},scale={size}:{size}:flags=bicubic,format=pix_fmts=rgb24"
        return io.decode_packets(io.demux_image(data), filter_desc=chain)

    pipeline = (
        pipelines.PipelineBuilder()
        .add_source(samples())
        .pipe(load, concurrency=wish["cores"])
        .aggregate(wish["batch"])
        .pipe(lambda frames: io.to_numpy(io.convert_frames(frames)))
        .add_sink(3)
        .build(num_threads=wish["cores"])
    )
    pipeline.start()
    answer(speed((len(batch) for batch in pipeline), wish["seconds"]))
    # The pipeline is still at it.
    os._exit(0)


def _crop(low: float, high: float) -> tuple[int, int, int, int]:
    """RandomResizedCrop: width, height, left, top."""
    whole, tall = _SIZE
    for _ in range(10):
        area = whole * tall * random.uniform(low, high)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= whole and 0 < height <= tall:
            return width, height, random.randint(0, whole - width), random.randint(0, tall - height)
    return whole, tall, 0, 0


if __name__ == "__main__":
    main()
