"""DALI on the CPU: its webdataset reader, fused decoder and random crop, antialiased cubic resize, uint8; captions as
bytes, not tokenised.

python run_dali.py JSON
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from benchmarks.loader.clock import answer, speed, wanted

dali: Any = importlib.import_module("nvidia.dali")
fn: Any = importlib.import_module("nvidia.dali.fn")
types: Any = importlib.import_module("nvidia.dali.types")


def main() -> None:
    wish = wanted()

    def steps() -> Any:
        jpeg, text = fn.readers.webdataset(paths=wish["tars"], ext=["jpg", "txt"], random_shuffle=True)
        image = fn.decoders.image_random_crop(
            jpeg, device="cpu", output_type=types.RGB, random_area=wish["scale"], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        size = [wish["size"], wish["size"]]
        return fn.resize(image, size=size, interp_type=types.INTERP_CUBIC, antialias=True), text

    running = dali.pipeline_def(steps, batch_size=wish["batch"], num_threads=wish["cores"], device_id=None)()
    running.build()
    answer(speed(_sizes(running), wish["seconds"]))


def _sizes(running: Any) -> Iterator[int]:
    while True:
        images, _ = running.run()
        yield len(images)


if __name__ == "__main__":
    main()
