"""Samples a second of one core from a JPEG to a student's view, beside Pillow's bicubic.

python -m benchmarks.cache.rendering PHOTOS SAMPLES ROUNDS
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.cache.process import answer
from benchmarks.record import spread
from teacher_cache.views import EncodedImage, ViewPolicy

_SIZE = 224
_POLICY = ViewPolicy(scale=(0.9, 1.0))


def _ours(data: bytes, key: str) -> object:
    image = EncodedImage(data)
    return _POLICY.render(image, _POLICY.draw(key, 0, image.width, image.height), _SIZE)


def _pillow(data: bytes, key: str) -> object:
    """The same crop of the fully decoded picture."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    view = _POLICY.draw(key, 0, width, height)
    left, top = view.left * width, view.top * height
    box = left, top, left + view.width * width, top + view.height * height
    return np.asarray(picture.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC, box))


def measure(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    """Rates of both in turns, by CPU time."""
    bodies = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    ways: dict[str, Callable[[bytes, str], object]] = {"ours": _ours, "pillow_bicubic": _pillow}
    for way in ways.values():
        way(bodies[0], "warm")
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            for number in range(samples):
                way(bodies[number % len(bodies)], f"bench-{turn}-{number}")
            runs[name].append(samples / (time.process_time() - start))
    return {
        "samples_per_second": {name: spread(values) for name, values in runs.items()},
        "ratio": spread([a / b for a, b in zip(runs["ours"], runs["pillow_bicubic"], strict=True)]),
    }


if __name__ == "__main__":
    answer(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
